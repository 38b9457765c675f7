"""What the README shows, runs."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import nbformat
import pytest

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[\w-]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def fences(language: str) -> list[re.Match[str]]:
    return [fence for fence in FENCE.finditer(README.read_text()) if fence["language"] == language]


@pytest.mark.slow
def test_python_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    namespace: dict[str, Any] = {"__name__": "readme"}
    for fence in fences("python"):
        blank = "\n" * text[: fence.start("code")].count("\n")  # so that a traceback has the README's line numbers
        exec(compile(blank + fence["code"], str(README), "exec"), namespace)
    assert jnp.isfinite(namespace["posterior"].log_evidence)
    samples = jnp.asarray(namespace["samples"])
    assert samples.shape == (1, 1000, 2)
    assert jnp.all(jnp.isfinite(samples))
    assert namespace["given_red"].shape == (1, 100, 2)
    assert jnp.all(jnp.isfinite(namespace["given_red"]))


def test_its_figures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", README.read_text())
    assert [Path(path).name for _, path in pictures] == ["swiss_roll_figure.png", "swiss_roll_posterior.png"]
    for words, path in pictures:
        assert len(words) > 20  # for who does not see them
        content = (README.parent / path).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 200_000


def test_main_example_is_the_program_of_the_notebook() -> None:
    cells = nbformat.read(README.parent / "notebooks" / "04_write_a_variant.ipynb", as_version=4).cells
    [written] = [cell.source for cell in cells if cell.source.startswith("%%writefile my_roll.py\n")]
    assert fences("python")[0]["code"].strip() == written.partition("\n")[2].strip()


@pytest.mark.parametrize(
    ("mark", "install", "program"),
    [("fit-command", "install .", "dpm fit swiss_roll"), ("test-command", "install -e '.[test]'", "pytest")],
)
def test_each_command_is_one_line_that_makes_its_own_environment(mark, install, program) -> None:
    [command] = [fence["code"].strip() for fence in fences("sh") if fence["mark"] == mark]
    make, pip, run = command.split(" && ")
    environment = make.removeprefix("python3 -m venv ")
    assert make != environment
    assert pip == f"{environment}/bin/pip {install}"
    assert run.startswith(f"{environment}/bin/{program}")
