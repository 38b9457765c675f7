"""What a program file declares."""

import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.commands import find
from tests.dpm_ppl.commands.test_find import WHOLE


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data = dist.Normal(0.0, 1.0)", dist.Normal),
        ("def data():\n    return dist.Normal(0.0, 1.0)", dist.Normal),
        ("import numpy as np\ndata = np.ones((4, 2))", np.ndarray),
        ("data = __import__('jax').numpy.ones", None),
    ],
)
def test_data_are_one_thing_however_they_are_given(written, text, kind):
    program = find.load(written(WHOLE + text))
    if kind is None:  # a function that cannot be called without arguments fails when the data are asked for, not before
        with pytest.raises(TypeError):
            program.data()
    else:
        assert isinstance(program.data(), kind)


def test_data_are_not_made_by_loading(written):
    program = find.load(written(WHOLE + "def data():\n    raise RuntimeError('a long download')"))
    with pytest.raises(RuntimeError, match="a long download"):
        program.data()


def test_a_file_without_the_names_says_which(written):
    path = written("def model():\n    pass\n")
    with pytest.raises(ValueError, match=r"model, guide, data; it lacks guide, data\."):
        find.load(path)


@pytest.mark.parametrize(
    ("text", "is_chain"),
    [
        ("", True),
        ("def diffusion(width=3): ...", True),
        ("def diffusion(label): ...", False),
        ("def diffusion(*, label, width=3): ...", False),
        ("del diffusion", False),
    ],
)
def test_diffusion_is_that_of_a_single_chain(written, text, is_chain):
    """One that needs a label makes several chains, and there is none without a label."""
    program = find.load(written(WHOLE + text))
    assert (program.diffusion is not None) == is_chain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("diffusion = 3", "Expected `diffusion` in .* to be a function; got int"),
        ("model = 3", "Expected `model` in .* to be a function; got int"),
        ("recipe = 3", "Expected `recipe` in .* to be a dict .*; got int"),
    ],
)
def test_names_of_the_wrong_kind(written, text, message):
    with pytest.raises(TypeError, match=message):
        find.load(written(WHOLE + text))


def test_data_of_the_wrong_kind(written):
    program = find.load(written(WHOLE + "data = 'files/*.png'"))
    with pytest.raises(TypeError, match="Expected `data` in .* NumPyro distribution or an array .*; got str"):
        program.data()
