"""Whether two computations differ."""

import numpy as np
import pytest
from scipy import stats

from dpm_ppl.inference.checks.statistics import Estimate


@pytest.mark.parametrize("num", [4, 8, 30])
def test_standard_errors_of_few_draws_are_students(num):
    """A distance of the same probability under Student's t, for a mean of few draws, as the normal score says."""
    for score in (1.0, 3.0, 5.5):
        t = stats.t.isf(stats.norm.sf(score), num - 1)
        few, exact = Estimate(2.0 - t * 0.1, 0.1, 0.3, num), Estimate(2.0)
        np.testing.assert_allclose(few.excess(exact), -score, rtol=0.05)
        np.testing.assert_allclose(few.score(exact), score, rtol=0.05)
