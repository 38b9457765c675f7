"""`--devices`: told before any work, and in use while a command runs."""

import pytest

from dpm_ppl.commands import devices
from dpm_ppl.inference.devices import ALONE, spread_over
from tests.command_line import dpm


@pytest.mark.parametrize("command", ["fit", "sample", "evaluate", "posterior"])
def test_more_devices_than_there_are(command, tmp_path):
    more = ["--observe", "y.npy"] if command == "posterior" else []
    done = dpm(command, tmp_path, *more, "--devices", 9)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("Error: Expected `num_devices` to be at most 1")
    assert len(done.stderr.strip().splitlines()) == 1


def test_none_is_as_ever_and_some_are_in_use():
    with devices.on(None):
        assert spread_over(None) is ALONE
    with devices.on(1):
        assert spread_over(None).num == 1
        assert spread_over(None).mesh is not None
