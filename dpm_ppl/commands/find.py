"""Finds a program by name or by file: what the command line calls MODEL."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from dpm_ppl.programs import Program, program_of

_MODELS = "dpm_ppl.models"


def known() -> dict[str, str]:
    """The programs of models/: their names, sorted, each with its summary; none is imported."""
    return {name: _summary(path) for name, path in _files().items()}


def path_of(name: str) -> Path:
    """The file of a program of models/.

    Raises:
        ValueError: there is none of that name.
    """
    files = _files()
    if name not in files:
        raise ValueError(f"Expected the name of a model; got {name!r}. Known models: {', '.join(files)}.")
    return files[name]


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
    return program_of(name, path, module)


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
