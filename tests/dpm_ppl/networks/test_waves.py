"""Time as networks see it, against the formula."""

import numpy as np

from dpm_ppl.networks.waves import waves


def test_waves_are_their_formula():
    time = np.array([[0.0, 0.13, 0.5], [0.77, 0.999, 1.0]])
    found = np.asarray(waves(time, num_frequencies=4))
    for at in np.ndindex(*time.shape):
        for k in range(4):
            angle = np.pi * 2**k * time[at]
            np.testing.assert_allclose(found[at][[k, 4 + k]], [np.sin(angle), np.cos(angle)], atol=1e-12)
