"""The shape of the repository: what is packaged, what may import what, and what importing may do."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE_DIR = {"dpm_ppl": "dpm_ppl", "dpm_ppl.models": "models", "dpm_ppl.inference": "inference"}
FOLDERS_AT_THE_ROOT = {"dpm_ppl", "models", "inference", "tests", "notebooks", ".ci"}
FILES_AT_THE_ROOT = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".gitignore"}
COMMAND_LINE = {"dpm_ppl.__main__", "dpm_ppl.commands", "dpm_ppl.programs"}
MAY_IMPORT = {
    "language": {"language"},
    "models": {"language", "models"},
    "inference": {"language", "inference"},
    "command line": {"language", "models", "inference", "command line"},
}
# Written so that no pattern matches its own text.
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:root|home|work|farm|opt|mnt|Users|tmp|var|usr/local)/[\w.]")
PACKAGE_HOST = re.compile(rb"pypi[.]|python[h]osted|[a]naconda[.]|--(?:extra-)?index-url|--find[-]links")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, by its installed name, each file once."""
    for package, folder in PACKAGE_DIR.items():
        for directory, _, names in os.walk(ROOT / folder):  # does not follow the symlinks in dpm_ppl/
            for name in names:
                path = Path(directory, name)
                if path.suffix == ".py":
                    parts = path.relative_to(ROOT / folder).with_suffix("").parts
                    yield ".".join([package, *parts]).removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Every name a module imports, `from a import b` being a.b, wherever in the file it stands."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def layer(name: str) -> str:
    """The layer that a name belongs to; empty outside the package."""
    parts = name.split(".")
    if parts[0] != "dpm_ppl":
        return ""
    if ".".join(parts[:2]) in COMMAND_LINE:
        return "command line"
    return parts[1] if len(parts) > 1 and parts[1] in ("models", "inference") else "language"


def repository_files() -> list[str]:
    """Files that git tracks or would, by `git add .`."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in output.split("\0") if name and (ROOT / name).exists()]


def test_pyproject_lists_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in modules()}
    assert set(settings["packages"]) == folders
    assert settings["package-dir"] == PACKAGE_DIR


def test_every_folder_of_modules_is_a_package() -> None:
    assert [str(path.parent) for _, path in modules() if not path.with_name("__init__.py").exists()] == []


@pytest.mark.parametrize("name", ["models", "inference"])
def test_root_folders_are_linked_into_the_package(name) -> None:
    link = ROOT / "dpm_ppl" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


@pytest.mark.parametrize(("module", "path"), [pytest.param(*item, id=item[0]) for item in sorted(modules())])
def test_imports_point_one_way(module, path) -> None:
    allowed = MAY_IMPORT["inference" if module == "dpm_ppl" else layer(module)]  # the facade shows inference too
    assert {name for name in imports(module, path) if layer(name) not in {*allowed, ""}} == set()


def test_nobody_imports_a_second_copy() -> None:
    found = {
        f"{file}: {name}"
        for file in repository_files()
        if file.endswith(".py")
        for name in imports("", ROOT / file)
        if name.split(".")[0] in ("models", "inference")
    }
    assert found == set()


def test_importing_creates_no_arrays() -> None:
    names = sorted(module for module, _ in modules())
    program = f"""
import importlib
from jax._src import xla_bridge  # an array needs a backend; nothing public tells without starting one
for name in {names!r}:
    importlib.import_module(name)
    assert not xla_bridge.backends_are_initialized(), f"importing {{name}} creates arrays, or asks for devices"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_root_shows_only_what_it_should() -> None:
    assert {name.split("/")[0] for name in repository_files()} <= FOLDERS_AT_THE_ROOT | FILES_AT_THE_ROOT


@pytest.mark.parametrize("pattern", [MACHINE_PATH, PACKAGE_HOST], ids=["machine path", "package host"])
def test_no_file_names_this_machine_or_a_package_host(pattern) -> None:
    files = [ROOT / name for name in repository_files()]
    found = {str(path): pattern.findall(path.read_bytes()) for path in files if path.is_file()}
    assert {path: matches for path, matches in found.items() if matches} == {}
