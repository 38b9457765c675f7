"""What `dpm` says of itself, and the package."""

import dpm_ppl
from tests.command_line import dpm


def test_version_and_short_help():
    assert dpm("--version").stdout == f"dpm_ppl {dpm_ppl.__version__}\n"
    done = dpm("-h")
    assert done.exit_code == 0
    for command in ("models", "fit", "sample", "evaluate", "posterior", "check"):
        assert f" {command} " in done.stdout
    assert dpm("fit", "-h").exit_code == 0


def test_the_package_names_all_that_it_has():
    assert all(hasattr(dpm_ppl, name) for name in dpm_ppl.__all__)
    for name in dpm_ppl.__all__:
        if name not in ("divergences", "inference"):
            assert f"`{name}" in dpm_ppl.__doc__, name
