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
FIRST = {"dpm_command": "dpm_ppl/commands/dpm_command"}  # installed beside the package too
WINGS = {"fitting", "likelihoods", "posteriors", "samples", "checks"}
MAY_IMPORT = {
    "language": {"language"},
    "models": {"language", "models"},
    "inference": {"language", "inference"},
    "reports": {"language", "inference", "reports"},
    "commands": {"language", "models", "inference", "reports", "commands"},
}
OPTIONS_OF_A_USER = {"fit"}  # functions whose many parameters are the options that a user sets
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
    if parts[1:2] == ["__main__"]:
        return "commands"
    return parts[1] if parts[1:2] and parts[1] in MAY_IMPORT else "language"


def wing(name: str) -> str:
    """The wing of inference that a name belongs to; empty elsewhere."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["dpm_ppl", "inference"] and len(parts) > 2 and parts[2] in WINGS else ""


Imports = dict[str, set[str]]  # of each module, what it imports wherever in the file it stands


def package() -> Imports:
    """The package as it is."""
    return {module: set(imports(module, path)) for module, path in modules()}


def upward(found: Imports) -> set[str]:
    """Imports of a layer from one that it may not know."""
    bad = set()
    for module, names in found.items():
        # The facade shows inference too, and a wing's face is the wing's.
        allowed = MAY_IMPORT["inference" if module == "dpm_ppl" else layer(module)]
        bad |= {f"{module} -> {name}" for name in names if layer(name) not in {*allowed, ""}}
    return bad


def between_wings(found: Imports) -> set[str]:
    """Imports of a wing of inference from another; checks may use any, and what wings share knows none of them."""
    bad = set()
    for module, names in found.items():
        here = wing(module)
        if layer(module) != "inference" or module == "dpm_ppl.inference" or here == "checks":
            continue
        bad |= {f"{module} -> {name}" for name in names if wing(name) not in {here, ""}}
        bad |= {f"{module} -> {name}" for name in names if name == "dpm_ppl.inference"}
        # By way of the facade: from dpm_ppl.inference import smc.
        bad |= {f"{module} -> {name}" for name in names - set(found) if name.rpartition(".")[0] == "dpm_ppl.inference"}
    return bad


def circles(found: Imports) -> list[list[str]]:
    """Modules that import each other, directly or by way of others, each circle as its modules."""

    def module_of(name: str) -> str | None:
        while name and name not in found:
            name = name.rpartition(".")[0]
        return name or None

    edges = {module: {module_of(name) for name in names} - {None, module} for module, names in found.items()}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(module: str) -> None:  # Tarjan 1972
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(filter(None, edges[module])):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            circle: list[str] = []
            while not circle or circle[-1] != module:
                circle.append(stack.pop())
            if len(circle) > 1:
                result.append(sorted(circle))

    for module in found:
        if module not in order:
            visit(module)
    return result


def shadowed(found: Imports) -> set[str]:
    """Names that a package shows in place of a module of its own: the module's path would be dead."""
    return {
        name
        for name, names in found.items()
        for shown in {other.rpartition(".")[2] for other in names if other not in found}
        if f"{name}.{shown}" in found
    }


def repository_files() -> list[str]:
    """Files that git tracks or would, by `git add .`."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in output.split("\0") if name and (ROOT / name).exists()]


def test_pyproject_lists_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in modules()}
    assert set(settings["packages"]) == {*folders, *FIRST}
    assert settings["package-dir"] == {**FIRST, **PACKAGE_DIR}


def test_every_folder_of_modules_is_a_package() -> None:
    assert [str(path.parent) for _, path in modules() if not path.with_name("__init__.py").exists()] == []


@pytest.mark.parametrize("name", ["models", "inference"])
def test_root_folders_are_linked_into_the_package(name) -> None:
    link = ROOT / "dpm_ppl" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


RULES = {"upward": upward, "between wings": between_wings, "circles": circles, "shadowed": shadowed}


@pytest.mark.parametrize("rule", RULES)
def test_dependencies_point_one_way(rule) -> None:
    assert not RULES[rule](package())


PLANTED = [
    ("upward", "dpm_ppl.chains", "dpm_ppl.inference.fitting.fits.fit"),
    ("upward", "dpm_ppl.chains", "dpm_ppl.models.swiss_roll"),
    ("upward", "dpm_ppl.models.swiss_roll", "dpm_ppl.inference.fit"),
    ("upward", "dpm_ppl.inference.fitting.fits", "dpm_ppl.models.swiss_roll.model"),
    ("upward", "dpm_ppl.inference.fitting.fits", "dpm_ppl.reports.panels.MODEL"),
    ("upward", "dpm_ppl.reports.panels", "dpm_ppl.models.swiss_roll"),
    ("upward", "dpm_ppl.reports.panels", "dpm_ppl.commands.run"),
    ("upward", "dpm_ppl", "dpm_ppl.reports.fit"),
    ("between wings", "dpm_ppl.inference.posteriors.particles", "dpm_ppl.inference.likelihoods.bounds.bound"),
    ("between wings", "dpm_ppl.inference.fitting.loop", "dpm_ppl.inference.checks"),
    ("between wings", "dpm_ppl.inference.samples.discriminator", "dpm_ppl.inference.log_likelihood"),
    ("between wings", "dpm_ppl.inference.psis", "dpm_ppl.inference.likelihoods.likelihood.Likelihood"),
    ("circles", "dpm_ppl.kernels.kernel", "dpm_ppl.diffusion.Diffusion"),
    ("circles", "dpm_ppl.inference.psis", "dpm_ppl.inference.likelihoods.likelihood.Likelihood"),
    ("shadowed", "dpm_ppl.inference.posteriors", "dpm_ppl.inference.posteriors.particles.twists"),
]


@pytest.mark.parametrize(("rule", "module", "name"), PLANTED)
def test_a_planted_violation_is_seen(rule, module, name) -> None:
    found = package()
    found[module] = {*found[module], name}
    assert RULES[rule](found)


def test_lazy_and_type_only_imports_count(tmp_path) -> None:
    path = tmp_path / "lazy.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dpm_ppl.a import B\n"
        "def f():\n    import dpm_ppl.c\n"
    )
    assert {"dpm_ppl.a.B", "dpm_ppl.c"} <= set(imports("dpm_ppl.lazy", path))


def test_every_wing_has_a_face() -> None:
    """Its docstring is a map of a few lines, and what a user calls is shown there."""
    for module, path in modules():
        if path.name == "__init__.py" and module not in ("dpm_ppl", "dpm_ppl.models"):
            tree = ast.parse(path.read_text())
            rooms = {name.rpartition(".")[2] for name, _ in modules() if name.rpartition(".")[0] == module}
            docstring = ast.get_docstring(tree) or ""
            assert len(docstring.splitlines()) > 2, module
            assert all(f"`{room}" in docstring for room in rooms), (module, rooms)
            shown = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
            assert all(isinstance(node, ast.ImportFrom | ast.Expr | ast.Assign) for node in tree.body), module
            names = sorted(name.rpartition(".")[2] for name in imports(module, path))
            assert [sorted(name) for name in shown] == ([names] if names else []), module


def place_of_tests(module: str, path: Path) -> Path:
    """Where the tests of a module stand."""
    name = path.stem.strip("_")  # __main__
    return ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{name}.py"


def test_every_module_has_tests_that_bear_its_name() -> None:
    of = {place_of_tests(module, path) for module, path in modules() if path.name != "__init__.py"}
    assert [str(path) for path in sorted(of) if not path.exists()] == []
    folders = {path.parent for path in of}
    stems = {folder: {path.stem for path in of if path.parent == folder} for folder in folders}
    strangers = [
        str(path)
        for folder in folders
        for path in folder.glob("test_*.py")
        if not any(path.stem == stem or path.stem.startswith(f"{stem}_") for stem in stems[folder])
        and path.name not in ("test_models.py", "test_fitted_models.py")  # laws of them all
    ]
    assert strangers == []


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of the package, by module and name."""
    for module, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}.{node.name}", node


def test_functions_are_short_and_take_few_parameters() -> None:
    long = {name: node.end_lineno - node.lineno + 1 for name, node in functions() if node.end_lineno}
    assert {name: lines for name, lines in long.items() if lines > 100} == {}
    many = {n: len([*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]) for n, f in functions()}
    assert {n: c for n, c in many.items() if c > 12 and n.rpartition(".")[2] not in OPTIONS_OF_A_USER} == {}


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
