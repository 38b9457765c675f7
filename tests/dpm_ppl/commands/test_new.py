"""`dpm new`."""

from dpm_ppl.commands import find
from tests.command_line import dpm
from tests.dpm_ppl.commands.test_fit import assert_error


def test_a_new_program_is_one_that_loads_and_replaces_nothing(tmp_path):
    file = tmp_path / "new" / "mine.py"
    done = dpm("new", file, "--like", "torus")
    assert done.exit_code == 0, done.output
    assert f"dpm check {file}" in done.stdout
    assert find.load(file).summary == find.known()["torus"]
    before = file.read_bytes()
    assert_error(dpm("new", file), f"not there yet; {file} is")
    assert file.read_bytes() == before
    assert dpm("new", tmp_path / "roll.py").exit_code == 0
    assert find.load(tmp_path / "roll.py").summary == find.known()["swiss_roll"]


def test_what_is_no_program_is_told(tmp_path):
    assert_error(dpm("new", tmp_path / "mine"), "a file that ends in .py")
    assert_error(dpm("new", tmp_path / "mine.py", "--like", "rolls"), "Known models: ")
    assert list(tmp_path.iterdir()) == []
