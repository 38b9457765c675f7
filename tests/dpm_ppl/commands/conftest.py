"""A fit by the command line, made once."""

import pytest

from tests.command_line import GAUSSIAN, dpm


@pytest.fixture(scope="session")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "mine.py"
    path.write_text(GAUSSIAN)
    return path


@pytest.fixture(scope="session")
def run(mine, tmp_path_factory):
    """A finished fit: its directory and what was printed."""
    run_dir = tmp_path_factory.mktemp("fit") / "run"
    done = dpm("fit", mine, "--run-dir", run_dir, "--seed", 4)
    assert done.exit_code == 0, done.output
    return run_dir, done.stdout
