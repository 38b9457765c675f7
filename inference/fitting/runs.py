"""The directory of a run: whose it is, told before any work; its checkpoints, by Orbax; its parameters, read back.

Every leaf of a checkpoint is kept by name, under a checksum, so that what does not fit is told apart.
"""

import json
import math
import os
import platform
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from dpm_ppl.inference.devices import whole
from dpm_ppl.inference.records import probe, write_bytes, write_json
from dpm_ppl.tracing import trace_quietly

FILE = "run.json"

CHECKPOINTS = "checkpoints"

FORMAT = 2  # of a checkpoint: each leaf is an array of its own; in the first, which has no number, all are one of bytes

_PROBE_BYTES = 1 << 20

_MADE_WITH = ("dpm_ppl", "numpyro", "jax", "equinox", "optax", "numpy")


def open_run(run_dir: str | Path, *, resume: bool) -> Path:
    """Makes the directory of a run if there is none, and checks that it is free, or to be resumed, and can be written.

    Args:
        run_dir: The directory.
        resume: Whether a run that is there is to be continued.

    Returns:
        Its path.

    Raises:
        TypeError: run_dir is no path.
        FileExistsError: it holds a run, and resume is False.
        OSError: it cannot be written, or its disk is full.
    """
    if not isinstance(run_dir, str | os.PathLike):
        raise TypeError(f"Expected `run_dir` to be a path; got {type(run_dir).__name__}.")
    path = Path(run_dir)
    if not resume and any((path / name).exists() for name in (FILE, CHECKPOINTS)):
        raise FileExistsError(
            f"Expected `run_dir` without a run; {path} holds one. resume=True continues it; another directory starts "
            "afresh."
        )
    try:
        probe(path, num_bytes=_PROBE_BYTES)
    except OSError as error:
        raise OSError(
            f"Expected `run_dir` to be a directory that can be written, with room for checkpoints; {path} is not: "
            f"{error}."
        ) from error
    return path


def require_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Checks that a directory holds no run, or one of these settings.

    Args:
        path: The directory.
        settings: What a run must keep to be continued exactly; JSON.

    Raises:
        ValueError: it holds a run of other settings, or its `run.json` is missing or damaged.
    """
    if not (path / FILE).exists():
        if (path / CHECKPOINTS).exists():
            raise ValueError(f"Expected {FILE} beside the checkpoints in {path}; it is missing. Use another `run_dir`.")
        return
    found = differences(read_run(path)["settings"], settings, "was {} and is now {}")
    if found:
        raise ValueError(
            f"Expected the run that {path} holds, to continue it; this one differs: {'; '.join(found)}. "
            "Give back what it was, or use another `run_dir`."
        )


def write_run(path: Path, settings: Mapping[str, Any], *, information: Mapping[str, Any]) -> None:
    """Writes `run.json`, all of it or nothing, with the versions that it was made with.

    Args:
        path: The directory.
        settings: What a run must keep to be continued exactly; JSON.
        information: What it may change; JSON.

    Raises:
        OSError: it cannot be written.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in _MADE_WITH}}
    write_json(path / FILE, {"settings": settings, **information, "versions": versions})


def write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a run, each all of it or nothing.

    Args:
        path: The directory.
        files: Contents by relative path.

    Raises:
        OSError: one cannot be written.
    """
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path / name, content)


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """What `run.json` says of a run: its `settings`, the caller's `fingerprint` among them, and `num_iterations`.

    Raises:
        FileNotFoundError: the directory holds no run.
        ValueError: the file is damaged.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"Expected the directory of a fit, with {FILE}; there is none in {Path(run_dir)}.")
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        run["settings"].keys(), run["num_iterations"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a readable {path}; it is damaged ({error}).") from error
    return run


def differences(there: Mapping[str, Any], here: Mapping[str, Any], said: str) -> list[str]:
    """Which of two dictionaries of JSON differ, by their whole name, as `said` of the one value and the other."""
    one, other = _flat(there), _flat(json.loads(json.dumps(here)))
    return [
        f"{name} {said.format(one.get(name, 'not there'), other.get(name, 'not there'))}"
        for name in dict.fromkeys([*other, *one])
        if other.get(name) != one.get(name)
    ]


def _flat(settings: Mapping[str, Any], *, above: str = "") -> dict[str, str]:
    """Settings by their whole name, such as `fingerprint.seed`, as JSON."""
    flat = {}
    for name, value in settings.items():
        flat.update(
            _flat(value, above=f"{above}{name}.") if isinstance(value, dict) else {above + name: json.dumps(value)}
        )
    return flat


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        position: Number of iterations done.
        seconds: Time that they took.
        folder: Its directory.
        leaves: Every array that was asked for, by name; random keys as their key data.
        kinds: Shape and dtype of every leaf, by name.
    """

    position: int
    seconds: float
    folder: Path
    leaves: dict[str, np.ndarray]
    kinds: dict[str, str]

    def restore(self, template: Any, *, optional: str | None = None) -> Any:
        """The tree that was saved.

        Args:
            template: A tree of arrays (or their shapes and dtypes) of the structure to restore. Leaves that it lacks
                are left out.
            optional: A leaf of the template that stays as it is where it was not saved.

        Raises:
            ValueError: a leaf is missing, or has another shape or dtype.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        restored = []
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path)
            if name == optional and name not in self.kinds:
                restored.append(leaf)
                continue
            if self.kinds.get(name) != _kind(leaf):
                raise ValueError(
                    f"Expected a checkpoint of this program and optimiser in {self.folder}; at {name} the program has "
                    f"{_kind(leaf)} and the checkpoint {self.kinds.get(name, 'nothing')}. Is it of another model or "
                    "optimiser?"
                )
            array = jnp.asarray(self.leaves[name])
            restored.append(jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array)
        return jax.tree_util.tree_unflatten(structure, restored)


def save_checkpoint(run_dir: Path, position: int, tree: Any, *, seconds: float, num_checkpoints: int) -> None:
    """Saves a checkpoint, all of it or nothing, and deletes the oldest beyond `num_checkpoints`; Ctrl-C waits for it.

    Of arrays on devices of several processes, each process writes its parts: all of them are to call this.

    Args:
        run_dir: Directory of the run.
        position: Number of iterations done.
        tree: Arrays.
        seconds: Time that they took.
        num_checkpoints: How many to keep.

    Raises:
        OSError: it cannot be written; older checkpoints are as they were.
    """
    import orbax.checkpoint as ocp  # slow to import

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = [_kept(leaf) for _, leaf in leaves]
    about: dict[str, Any] = {
        "format": FORMAT,
        "position": position,
        "seconds": seconds,
        "leaves": [
            [jax.tree_util.keystr(path), _kind(leaf), str(array.dtype), list(array.shape), _checksum(array)]
            for (path, leaf), array in zip(leaves, arrays, strict=True)
        ],
    }
    about["checksum"] = _checksum(about)
    kept = {str(number): array for number, array in enumerate(arrays) if array.size}  # Orbax takes no empty array
    of_several = any(not getattr(array, "is_fully_addressable", True) for array in arrays)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=num_checkpoints,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        **({} if of_several else _alone()),
    )
    try:
        with uninterrupted(), ocp.CheckpointManager((run_dir / CHECKPOINTS).absolute(), options=options) as manager:
            if position not in manager.all_steps():
                items = {"arrays": ocp.args.StandardSave(kept), "about": ocp.args.JsonSave(about)}
                manager.save(position, args=ocp.args.Composite(**items), force=True)
    except Exception as error:
        raise OSError(
            f"Expected to save iteration {position} in {run_dir / CHECKPOINTS}; got {type(error).__name__}: {error}. "
            "Earlier checkpoints are kept: make room, or the directory writable, and continue with resume=True."
        ) from error


def kinds(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf of a tree, by name."""
    return {jax.tree_util.keystr(path): _kind(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def folder(run_dir: Path, position: int) -> Path:
    """Directory of the checkpoint after `position` iterations."""
    return run_dir / CHECKPOINTS / str(position)


def newest_position(run_dir: Path) -> int:
    """Number of iterations after which the newest checkpoint was saved; 0 where there is none."""
    return max(_positions(run_dir), default=0)


def newest_checkpoint(run_dir: Path, *, under: str = "") -> Checkpoint | None:
    """Reads the newest checkpoint of a run; None where there is none.

    Args:
        run_dir: Directory of the run.
        under: How the names of the leaves begin that are wanted; by default all are.

    Raises:
        ValueError: it is damaged; which leaf is named.
    """
    positions = sorted(_positions(run_dir))
    if not positions:
        return None
    try:
        return _read(run_dir, positions[-1], under)
    except Exception as error:
        fall_back = f"falls back to iteration {positions[-2]}" if positions[1:] else "lets resume=True begin again"
        raise ValueError(
            f"Expected a readable checkpoint in {folder(run_dir, positions[-1])}; it is damaged "
            f"({type(error).__name__}: {error}). Deleting that directory {fall_back}."
        ) from error


def _read(run_dir: Path, position: int, under: str) -> Checkpoint:
    import orbax.checkpoint as ocp  # slow to import

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **_alone())
    with ocp.CheckpointManager((run_dir / CHECKPOINTS).absolute(), options=options) as manager:

        def array(name: str) -> np.ndarray:
            """One alone: Orbax says of several neither which is damaged nor, in the background, anything in quiet."""
            wanted = ocp.args.PyTreeRestore(
                {name: 0}, restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)}, partial_restore=True
            )
            return np.asarray(manager.restore(position, args=ocp.args.Composite(arrays=wanted))["arrays"][name])

        about = manager.restore(position, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        checksum = about.pop("checksum", None)
        if about.get("format", 1) == 1:
            leaves = _of_first_format(about, array("leaves"), checksum)
        elif checksum != _checksum(about):
            raise ValueError("what it says of its leaves is not what was saved")
        else:
            leaves = {
                row[0]: _leaf(row, partial(array, str(number)))
                for number, row in enumerate(about["leaves"])
                if row[0].startswith(under)
            }
    if about["position"] != position:
        raise ValueError(f"it is of iteration {about['position']}")
    kinds = {row[0]: row[1] for row in about["leaves"]}
    return Checkpoint(position, about["seconds"], folder(run_dir, position), leaves, kinds)


def _alone() -> dict[str, Any]:
    """What has Orbax not wait for other processes, where there are any."""
    if jax.process_count() == 1:
        return {}
    from orbax.checkpoint.options import MultiprocessingOptions

    here = jax.process_index()
    of_its_own = MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"dpm_ppl_{here}"
    )
    return {"multiprocessing_options": of_its_own, "create": False}


def _leaf(row: Sequence[Any], read: Callable[[], np.ndarray]) -> np.ndarray:
    """A leaf, checked against what its row says: Orbax itself does not tell all damage."""
    name, _, dtype, shape, checksum = row
    try:
        array = read() if math.prod(shape) else np.zeros(shape, jnp.dtype(dtype))
    except Exception as error:
        raise ValueError(f"the leaf {name} cannot be read: {str(error)[:200]}") from error
    if (str(array.dtype), list(array.shape), _checksum(array)) != (dtype, shape, checksum):
        raise ValueError(f"the leaf {name} is not what was saved")
    return array


def _of_first_format(about: Mapping[str, Any], content: np.ndarray, checksum: int) -> dict[str, np.ndarray]:
    """Leaves by name of a checkpoint that holds all of them in one array of bytes."""
    written = content.tobytes()
    if checksum != zlib.crc32(json.dumps(about, sort_keys=True).encode(), zlib.crc32(written)):
        raise ValueError("its checksum differs")
    leaves, begin = {}, 0
    for name, _, dtype, shape in about["leaves"]:
        count, dtype = math.prod(shape), jnp.dtype(dtype)
        leaves[name] = np.frombuffer(written, dtype, count, begin).reshape(shape)
        begin += count * dtype.itemsize
    return leaves


def _kept(leaf: Any) -> Any:
    """What Orbax writes of a leaf: of several processes each its parts, or of what each has for itself, the first."""
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return array if jax.process_count() == 1 or not getattr(array, "is_fully_addressable", True) else np.asarray(array)


def _checksum(of: Any) -> int:
    """CRC-32 of an array's bytes, or of a dictionary's JSON."""
    written = json.dumps(of, sort_keys=True).encode() if isinstance(of, dict) else whole(of).tobytes()
    return zlib.crc32(written)


def _positions(run_dir: Path) -> Iterator[int]:
    """Iterations of the finished checkpoints: Orbax gives a directory its number when all in it is written."""
    return (int(path.name) for path in (run_dir / CHECKPOINTS).glob("[0-9]*") if path.name.isdigit())


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """A leaf's dtype and shape, such as `float32[3, 2]`."""
    return f"{leaf.dtype}{list(leaf.shape)}"


@contextmanager
def uninterrupted(*, patience: int | None = None) -> Iterator[list[Any]]:
    """Keeps Ctrl-C waiting until the block is done, but for one that comes after `patience` others.

    What waits is yielded, and does not come if it is cleared.
    """
    before = signal.getsignal(signal.SIGINT)
    pending: list[tuple[Any, Any]] = []
    if threading.current_thread() is not threading.main_thread() or before is None:  # not interrupted, or not by Python
        yield pending
        return

    def wait(*at: Any) -> None:
        pending.append(at)
        if patience is not None and len(pending) > patience and callable(before):
            pending.clear()
            before(*at)

    signal.signal(signal.SIGINT, wait)
    try:
        yield pending
    finally:
        signal.signal(signal.SIGINT, before)
    if pending and callable(before):
        before(*pending[0])


def load_params(run_dir: str | Path, program: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """The averaged parameters of the newest checkpoint of a run, for the program that was fitted.

    Args:
        run_dir: Directory of the run, `run_dir` of `fit`.
        program: Model or guide. It is traced, on shapes alone, for the parameters and modules that it declares.
        *args: Arguments of the program.

    Returns:
        Value of each parameter that the program declares, by name, constrained; what `Fit.params` holds of them.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        TypeError: program is no function.
        ValueError: the checkpoint is damaged, or of another program.
    """
    if not callable(program):
        raise TypeError(f"Expected `program` to be the model or guide that was fitted; got {type(program).__name__}.")
    checkpoint = newest_checkpoint(Path(run_dir), under="['average']")
    if checkpoint is None:
        raise FileNotFoundError(
            f"Expected a checkpoint of a fit in {Path(run_dir)}; there is none. fit(run_dir=...) saves them."
        )

    average = checkpoint.restore({"average": _unconstrained(program, args)})["average"]
    # Traced anew, as a constraint may be made of arrays of its trace; XLA drops all of the program but those.
    return jax.jit(
        lambda average: {name: transform(average[name]) for name, (_, transform) in _declared(program, args).items()}
    )(average)


def named(leaves: Mapping[str, np.ndarray], program: Callable[..., Any], *args: Any, where: str) -> dict[str, Any]:
    """Parameters that were kept leaf by leaf, such as in a .npz file, put together as a program declares them.

    Args:
        leaves: Unconstrained arrays of any precision, each by its name in the dictionary of parameters, such as
            `['net$params'].layers[0].weight` (`jax.tree_util.keystr`).
        program: Model or guide.
        *args: Its arguments.
        where: What holds them, for errors.

    Returns:
        The unconstrained parameters by name, each leaf in the program's precision: what `save_checkpoint` keeps as
        `average`, for `load_params` to read.

    Raises:
        ValueError: a leaf is missing, or there are others, or one has another shape.
    """
    declared, structure = jax.tree_util.tree_flatten_with_path(_unconstrained(program, args))
    shapes = {jax.tree_util.keystr(path): leaf for path, leaf in declared}
    for name in dict.fromkeys([*shapes, *leaves]):
        there, here = (f"shape {of[name].shape}" if name in of else "nothing" for of in (leaves, shapes))
        if there != here:
            raise ValueError(
                f"Expected parameters of this program in {where}; at {name} the program has {here}, the file {there}."
            )
    return jax.tree.unflatten(structure, [np.asarray(leaves[name], leaf.dtype) for name, leaf in shapes.items()])


def _unconstrained(program: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Shapes and types of the unconstrained parameters that a program declares, by name."""
    return jax.eval_shape(
        lambda: {name: transform.inv(value) for name, (value, transform) in _declared(program, args).items()}
    )


def _declared(program: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, tuple[Any, Any]]:
    """Value of each parameter that a program declares, and the bijection to its constraint."""
    _, sites = trace_quietly(program, *args)
    params = {name: site for name, site in sites.items() if site["type"] == "param"}
    if not params:
        raise ValueError("Expected a program that declares parameters; it has none.")
    return {
        name: (site["value"], biject_to(site["kwargs"].get("constraint", constraints.real)))
        for name, site in params.items()
    }
