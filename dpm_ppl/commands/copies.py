"""The copy of a program that its run keeps, so that the run can be read elsewhere, whatever becomes of the file."""

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpm_ppl.programs import Program

FOLDER = "program"

ABOUT = "program.json"


def files_of(program: Program, run_dir: Path) -> dict[str, bytes]:
    """What a run is to keep of a program, as it is now: its file, those beside it that it imports, and their hashes.

    Args:
        program: The program.
        run_dir: Directory of the run.

    Returns:
        Contents by path in the run.
    """
    root = program.path.parent
    contents = {str(path.relative_to(root)): path.read_bytes() for path in _files(program.path)}
    about = {
        "file": program.path.name,
        "came_from": os.path.relpath(program.path, run_dir.resolve()),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    kept = {f"{FOLDER}/{name}": content for name, content in contents.items()}
    return {**kept, f"{FOLDER}/{ABOUT}": json.dumps(about, indent=1).encode()}


def kept_program(run_dir: Path, *, force: bool = False) -> Path | None:
    """The file of the program that a run keeps; None where it keeps none, as it was not made by `dpm fit`.

    Args:
        run_dir: Directory of the run.
        force: Whether a copy that was edited will do.

    Raises:
        ValueError: the copy was edited, or is damaged.
    """
    folder = run_dir / FOLDER
    if not (folder / ABOUT).exists():
        return None
    about = _about(folder)
    edited = [name for name, kept in about["sha256"].items() if _hash(folder / name) != kept]
    if edited and not force:
        raise ValueError(
            f"Expected {', '.join(edited)} in {folder} as the fit left it, of whose program the parameters are; it was "
            "edited. --force goes on with it as it is; --model FILE takes another."
        )
    return folder / about["file"]


def edited_since(run_dir: Path, path: Path | None = None) -> list[str]:
    """What differs between the program that a run keeps and a file; comments and docstrings do not count.

    Args:
        run_dir: Directory of the run.
        path: The file; by default where the copy came from, and nothing differs where that is gone.

    Returns:
        Names of the top level, those of a file beside the program's as `file: name`.
    """
    folder = run_dir / FOLDER
    if not (folder / ABOUT).exists():
        return []
    about = _about(folder)
    path = run_dir.resolve() / about["came_from"] if path is None else path
    if not path.is_file():
        return []
    changed = []
    for name in about["sha256"]:
        mine = name == about["file"]
        other = path if mine else path.parent / name
        changed += [found if mine else f"{name}: {found}" for found in _differences(folder / name, other)]
    return changed


def original(run_dir: Path) -> Path | None:
    """The file that a run's program came from, where it is still there and all is as it was; else None."""
    folder = run_dir / FOLDER
    about = _about(folder)
    path = run_dir.resolve() / about["came_from"]
    same = all(_hash(path.parent / name) == kept for name, kept in about["sha256"].items() if name != about["file"])
    return path.resolve() if same and _hash(path) == about["sha256"][about["file"]] else None


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        about["file"], about["came_from"], about["sha256"].items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a readable {folder / ABOUT}; it is damaged ({error}).") from error
    return about


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _files(path: Path) -> Iterator[Path]:
    """A program's file, and the files beside it that it imports, they too; not those of this package."""
    seen, waiting, root = {path}, [path], path.parent
    while waiting:
        file = waiting.pop()
        yield file
        for name in _imported(file, root):
            parts = name.split(".")
            if parts[0] == __name__.partition(".")[0]:
                continue
            for depth in range(1, len(parts) + 1):
                place = root.joinpath(*parts[:depth])
                for found in (place.with_suffix(".py"), place / "__init__.py"):
                    if found.is_file() and found not in seen:
                        seen.add(found)
                        waiting.append(found)


def _imported(file: Path, root: Path) -> Iterator[str]:
    """Whole names of the modules that a file may import, as seen from a folder."""
    package = file.parent.relative_to(root).parts
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ([module] if module else [])
            yield from (f"{module}.{alias.name}" if module else alias.name for alias in node.names)


def _differences(one: Path, other: Path) -> list[str]:
    """Names of the top level whose meaning differs between two files."""
    mine, theirs = (_meaning(path) if path.is_file() else {} for path in (one, other))
    return [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]


def _meaning(path: Path) -> dict[str, list[str]]:
    """What a file states of each of its names, as syntax trees, without docstrings."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return {"(it is no Python)": []}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    meaning: dict[str, list[str]] = {}
    for statement in tree.body:
        for name in _bound(statement):
            meaning.setdefault(name, []).append(ast.dump(statement))
    return meaning


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement of the top level gives a meaning to."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return names or ["(statements)"]
