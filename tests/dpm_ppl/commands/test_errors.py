"""Which errors of a command are shown as one line."""

import pytest

from tests.command_line import GAUSSIAN, dpm


@pytest.mark.parametrize(
    "args", [["fit"], ["fit", "swiss_roll", "--iterations", "0"], ["sample", ".", "-n", "0"], ["nod"]]
)
def test_wrong_usage_exits_with_2(args):
    assert dpm(*args).exit_code == 2


def test_an_error_inside_a_users_program_keeps_its_traceback(tmp_path):
    (tmp_path / "some.py").write_text(
        GAUSSIAN.replace("offset = numpyro", "raise ZeroDivisionError\n    offset = numpyro")
    )
    done = dpm("fit", tmp_path / "some.py", "--run-dir", tmp_path / "run")
    assert isinstance(done.exception, ZeroDivisionError)
