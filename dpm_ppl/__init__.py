"""Diffusion probabilistic models as NumPyro programs."""

from dpm_ppl import divergences as divergences  # registers the KL divergences that NumPyro lacks
from dpm_ppl import inference as inference
from dpm_ppl import networks as networks
from dpm_ppl import outputs as outputs
from dpm_ppl import schedules as schedules
from dpm_ppl.chains import ForwardChain as ForwardChain
from dpm_ppl.chains import ReverseChain as ReverseChain
from dpm_ppl.datasets import Heartbeat as Heartbeat
from dpm_ppl.datasets import SwissRoll as SwissRoll
from dpm_ppl.diffusion import Diffusion as Diffusion
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
