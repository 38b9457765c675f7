"""Programs by name or by file: what the command line calls MODEL.

A program is a Python file with the names `model`, `guide` and `data`; `diffusion`, where it is one chain of its data;
and, if it likes, a training `recipe`. Every file of models/ is known by its own name; there is no list to keep.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jax import Array

from dpm_ppl.diffusion import Diffusion

NAMES = ("model", "guide", "data")
_MODELS = "dpm_ppl.models"


@dataclass(frozen=True)
class Program:
    """What a program's file holds.

    Args:
        name: Its name in models/, or the absolute path of a user's own file: either loads it again.
        path: The file.
        summary: First line of the file's docstring.
        model: `model(x0=None, size=1)`, the reverse chain; returns x0 of shape (size, *event).
        guide: `guide(x0)`, the forward chain.
        data: Returns the data: a NumPyro distribution, or an array of shape (num_data, *event).
        diffusion: Declares parameters and returns a `Diffusion`; None where the program is more than one chain of its
            data, or none: its file has no `diffusion` that is called without arguments.
        recipe: Keyword arguments for `dpm_ppl.inference.fit`; empty where the file has none.
    """

    name: str
    path: Path
    summary: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Callable[[], dist.Distribution | Array | np.ndarray]
    diffusion: Callable[[], Diffusion] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def known() -> dict[str, str]:
    """The programs of models/: their names, sorted, each with its summary; none is imported."""
    return {name: _summary(path) for name, path in _files().items()}


def load(name_or_path: str | Path) -> Program:
    """Loads a program.

    Args:
        name_or_path: A name in models/, or a path to a file of one's own, told apart by its `.py`.

    Returns:
        The program. Its data are not made yet: `program.data()` makes them.

    Raises:
        FileNotFoundError: the path leads to no file.
        ImportError: the file fails when it is run.
        TypeError: a name in the file is of the wrong kind.
        ValueError: no such name in models/, or the file lacks some of the names.
    """
    files = _files()
    if str(name_or_path) in files:
        name, path = str(name_or_path), files[str(name_or_path)]
        module = _run(path, lambda: importlib.import_module(f"{_MODELS}.{name}"))
    else:
        path = _user_file(Path(name_or_path), files)
        name, module = str(path), _run(path, lambda: _import_file(path))
    return _program(name, path, module)


def _files() -> dict[str, Path]:
    spec = importlib.util.find_spec(_MODELS)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"}


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no docstring)"
    return docstring.splitlines()[0]


def _user_file(path: Path, files: Mapping[str, Path]) -> Path:
    if path.suffix != ".py":
        close = get_close_matches(str(path), files, n=1)
        if not close and path.with_name(f"{path.name}.py").is_file():
            close = [f"{path}.py"]
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"Expected the name of a model or a path to a .py file; got {str(path)!r}.{hint} "
            f"Known models: {', '.join(files)}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file with a program; there is none at {path.absolute()}.")
    return path.resolve()


def _import_file(path: Path) -> ModuleType:
    """Runs a file as a module, with the files beside it importable, as `python file.py` would have them."""
    name = f"dpm_ppl_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a file beside a program must not hide a library
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _run(path: Path, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except (Exception, SystemExit) as error:
        steps, at = error.__traceback__, ""
        while steps is not None:
            if steps.tb_frame.f_code.co_filename == str(path):
                at = f", line {steps.tb_lineno}"
            steps = steps.tb_next
        raise ImportError(f"Expected {path} to import; it fails{at}: {type(error).__name__}: {error}") from error


def _program(name: str, path: Path, module: ModuleType) -> Program:
    missing = [part for part in NAMES if not hasattr(module, part)]
    if missing:
        raise ValueError(
            f"Expected {path} to have the names {', '.join(NAMES)}; it lacks {', '.join(missing)}. "
            "dpm_ppl/models/swiss_roll.py is a page to copy."
        )
    for part in ("model", "guide", "diffusion"):
        if hasattr(module, part) and not callable(getattr(module, part)):
            kind = type(getattr(module, part)).__name__
            raise TypeError(f"Expected `{part}` in {path} to be a function; got {kind}.")
    recipe = getattr(module, "recipe", {})
    if not isinstance(recipe, Mapping):
        raise TypeError(f"Expected `recipe` in {path} to be a dict of options of fit; got {type(recipe).__name__}.")
    return Program(
        name=name,
        path=path,
        summary=(module.__doc__ or "").strip().split("\n")[0],
        model=module.model,
        guide=module.guide,
        data=lambda: _data(module.data, path),
        diffusion=_chain(getattr(module, "diffusion", None)),
        recipe=recipe,
    )


def _chain(diffusion: Callable[..., Any] | None) -> Callable[[], Diffusion] | None:
    """A program's `diffusion`; None where it takes arguments, a label for instance, and so is one of several chains."""
    if diffusion is None:
        return None
    try:
        inspect.signature(diffusion).bind()
    except TypeError:
        return None
    return diffusion


def _data(data: Any, path: Path) -> dist.Distribution | Array | np.ndarray:
    if callable(data) and not isinstance(data, dist.Distribution):  # a distribution is callable too: it would draw
        data = data()
    if not isinstance(data, dist.Distribution | Array | np.ndarray):
        raise TypeError(
            f"Expected `data` in {path} to be a NumPyro distribution or an array of shape (num_data, *event), or a "
            f"function that returns one; got {type(data).__name__}."
        )
    return data
