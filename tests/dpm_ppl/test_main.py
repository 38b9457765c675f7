"""The command line as a whole: its commands, and how it refuses another."""

import re

from typer.main import get_command

from dpm_ppl.__main__ import app
from tests.command_line import dpm

COMMANDS = ["models", "fit", "sample", "evaluate", "posterior", "check"]  # in the order of their use


def test_help_lists_the_commands_in_the_order_of_their_use():
    assert list(get_command(app).commands) == COMMANDS
    done = dpm("--help")
    assert done.exit_code == 0
    assert [word for word in re.findall(r"^\W*(\w+)  ", done.stdout, re.MULTILINE) if word in COMMANDS] == COMMANDS
    assert dpm().stdout.strip() == done.stdout.strip()


def test_a_command_that_it_does_not_know():
    done = dpm("fti", "swiss_roll")
    assert done.exit_code == 2
    assert "No such command 'fti'" in done.stderr
