"""Programs in files, and fits of programs that are no single chain, made once."""

import pytest

from tests.command_line import GAN, LATENT, dpm


@pytest.fixture
def written(tmp_path):
    """Writes a program's file and gives its path."""

    def write(text, *, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """A directory of a fit by the command line, and what it printed."""

    def make(text):
        folder = tmp_path_factory.mktemp("run")
        (folder / "mine.py").write_text(text)
        done = dpm("fit", folder / "mine.py", "--run-dir", folder / "run", "--seed", 2)
        assert done.exit_code == 0, done.output
        return folder / "run", done.stdout

    return make


@pytest.fixture(scope="session")
def latent(make_run):
    return make_run(LATENT)


@pytest.fixture(scope="session")
def gan(make_run):
    return make_run(GAN)
