"""Diffusion probabilistic models as NumPyro programs.

A program:

- `kernels`, the steps of the forward chain: `GaussianKernel`, `BernoulliKernel`, `CategoricalKernel`, or one of your
  own with the methods of `Kernel` (with those of `ClosedFormKernel`, analytic KLs and guided posteriors); their rates
  in `schedules`;
- `Diffusion(kernel, reverse, decode, context)`, the chains; for the reverse step `networks` and `outputs`;
- the statements `reverse_chain` (of the model) and `forward_chain` (of the guide); `single_chain` makes both, for data
  that are one chain; `subsample_steps` scores a few steps of many. `Statement` is what a handler of your own reads.

What to do with it, in `inference`:

- `check`, before a fit; `fit`, or stock SVI; `bound`, the ELBO step by step;
- `log_likelihood`, `sandwich`, `importance_weights`, with k-hat; `smc`, posteriors with their evidence; `calibrate`,
  whether posteriors are right on average.

Data: `datasets`, of which `SwissRoll` and `Heartbeat` are distributions of known density, and images. `ForwardChain`
and `ReverseChain` are the chains as distributions, `FullNormal` is a multivariate normal without LAPACK,
`DiscretisedNormal` one over the levels of an image. Programs to copy: `dpm models`.
"""

from importlib.metadata import version as _version

from dpm_ppl import datasets as datasets
from dpm_ppl import divergences as divergences  # registers the KL divergences that NumPyro lacks
from dpm_ppl import inference as inference
from dpm_ppl import kernels as kernels
from dpm_ppl import networks as networks
from dpm_ppl import outputs as outputs
from dpm_ppl import schedules as schedules
from dpm_ppl.chains import ForwardChain as ForwardChain
from dpm_ppl.chains import ReverseChain as ReverseChain
from dpm_ppl.datasets import Heartbeat as Heartbeat
from dpm_ppl.datasets import SwissRoll as SwissRoll
from dpm_ppl.diffusion import Diffusion as Diffusion
from dpm_ppl.discretised import DiscretisedNormal as DiscretisedNormal
from dpm_ppl.distributions import FullNormal as FullNormal
from dpm_ppl.handlers import subsample_steps as subsample_steps
from dpm_ppl.inference import check as check
from dpm_ppl.kernels import BernoulliKernel as BernoulliKernel
from dpm_ppl.kernels import CategoricalKernel as CategoricalKernel
from dpm_ppl.kernels import ClosedFormKernel as ClosedFormKernel
from dpm_ppl.kernels import GaussianKernel as GaussianKernel
from dpm_ppl.kernels import Kernel as Kernel
from dpm_ppl.pair import single_chain as single_chain
from dpm_ppl.statements import Statement as Statement
from dpm_ppl.statements import forward_chain as forward_chain
from dpm_ppl.statements import reverse_chain as reverse_chain

__version__ = _version("dpm_ppl")

__all__ = [
    "BernoulliKernel",
    "CategoricalKernel",
    "ClosedFormKernel",
    "Diffusion",
    "DiscretisedNormal",
    "ForwardChain",
    "FullNormal",
    "GaussianKernel",
    "Heartbeat",
    "Kernel",
    "ReverseChain",
    "Statement",
    "SwissRoll",
    "check",
    "datasets",
    "divergences",
    "forward_chain",
    "inference",
    "kernels",
    "networks",
    "outputs",
    "reverse_chain",
    "schedules",
    "single_chain",
    "subsample_steps",
]
