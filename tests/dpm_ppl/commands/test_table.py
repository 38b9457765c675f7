"""`dpm table`."""

import json

import pytest

from tests.command_line import dpm


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "heartbeat_2015"
    run.mkdir(parents=True)
    figures = {"model": "heartbeat_2015", "data": "fresh data", "num_data": 5, "iterations": 20, "K_bits": -2.5}
    (run / "metrics.json").write_text(json.dumps(figures))
    return run


@pytest.mark.parametrize("given", [(), ("runs",), ("runs/heartbeat_2015",)])
def test_runs_beside_what_was_published(folder, given):
    done = dpm("table", *given)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if "  heartbeat_2015  " in line]
    assert line.split()[:5] == ["binary", "heartbeat", "heartbeat_2015", "bits", "-2.500"]
    assert "-2.414" in line
    (row,) = [row for row in json.loads(dpm("table", "--json").stdout)["table 1"] if row["program"] == "heartbeat_2015"]
    assert row["K"] == -2.5
    assert "| binary heartbeat | heartbeat_2015 | bits | -2.500 |" in dpm("table", "--markdown").stdout


def test_what_it_refuses(folder):
    done = dpm("table", "nowhere")
    assert "Expected a directory of fits at nowhere; there is none" in done.stderr
    done = dpm("table", "--json", "--markdown")
    assert "Expected --markdown or --json" in done.stderr
    assert done.exit_code == 1
