"""`dpm check`."""

from typer.testing import CliRunner

from dpm_ppl.__main__ import app


def test_exit_status_of_the_command(tmp_path):
    result = CliRunner().invoke(app, ["check", "gan"])
    assert result.exit_code == 0, result.output
    assert "gan: no mistake found" in result.output
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpyro, numpyro.distributions as dist, dpm_ppl as dpm\n"
        "def diffusion():\n"
        "    kernel = dpm.GaussianKernel([0.1, 0.2], (2,))\n"
        "    return dpm.Diffusion(kernel, lambda x, t: dist.Normal(numpyro.param('a', 0.9) * x, 1).to_event(1))\n"
        "def model(x0=None, size=1):\n"
        "    dpm.reverse_chain('x', diffusion(), obs=x0)\n"
        "def guide(x0):\n"
        "    dpm.forward_chain('x', diffusion(), x0)\n"
        "def data():\n"
        "    return dpm.SwissRoll()\n"
    )
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 1
    assert "FAILED  parameters in a loop body" in result.output
    assert "mine: 1 mistake found" in result.output
