r"""Markov diffusion kernels T_pi: how one step of noise is added, and what is known of many steps in closed form.

A kernel is any object with `num_steps`, `event_shape`, `stationary()` and `step(x, t)`, the protocol `Kernel`. One
that also has `marginal(x0, t)` and `posterior(x0, xt, t)`, `ClosedFormKernel`, gets analytic KL terms; one without
gets the same bound by Monte Carlo over trajectories. Steps are numbered t = 1..T as in the paper; `t` is an integer
or an integer array that broadcasts against the batch shape.

Start at `kernel` (the protocols); `scheduled` is what the three of this package share: `gaussian`, `bernoulli` and
`categorical`.
"""

from dpm_ppl.kernels.bernoulli import BernoulliKernel
from dpm_ppl.kernels.categorical import CategoricalKernel
from dpm_ppl.kernels.gaussian import GaussianKernel
from dpm_ppl.kernels.kernel import ClosedFormKernel, Kernel, MarginalKernel, has_closed_forms, has_marginal
from dpm_ppl.kernels.scheduled import ScheduledKernel

__all__ = [
    "BernoulliKernel",
    "CategoricalKernel",
    "ClosedFormKernel",
    "GaussianKernel",
    "Kernel",
    "MarginalKernel",
    "ScheduledKernel",
    "has_closed_forms",
    "has_marginal",
]
