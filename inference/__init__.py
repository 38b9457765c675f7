"""Algorithms over programs; installed as `dpm_ppl.inference`.

Five wings that do not know of each other, but for `checks`, which may use any: `fitting` (SVI on the bound),
`likelihoods` (the bound term by term, importance weights), `posteriors` (sequential Monte Carlo), `samples` (against
data) and `checks` (before any of it). Below them `arguments`, `psis` and `records`, which they share.
"""

from dpm_ppl.inference.checks import Finding as Finding
from dpm_ppl.inference.checks import Report as Report
from dpm_ppl.inference.checks import check as check
from dpm_ppl.inference.fitting import Fit as Fit
from dpm_ppl.inference.fitting import NonFiniteLossError as NonFiniteLossError
from dpm_ppl.inference.fitting import fit as fit
from dpm_ppl.inference.fitting import load_params as load_params
from dpm_ppl.inference.fitting import read_run as read_run
from dpm_ppl.inference.likelihoods import Bound as Bound
from dpm_ppl.inference.likelihoods import ConsistencyBound as ConsistencyBound
from dpm_ppl.inference.likelihoods import DissipatedWork as DissipatedWork
from dpm_ppl.inference.likelihoods import EntropyBounds as EntropyBounds
from dpm_ppl.inference.likelihoods import Likelihood as Likelihood
from dpm_ppl.inference.likelihoods import Sandwich as Sandwich
from dpm_ppl.inference.likelihoods import bound as bound
from dpm_ppl.inference.likelihoods import class_log_probs as class_log_probs
from dpm_ppl.inference.likelihoods import consistency_bound as consistency_bound
from dpm_ppl.inference.likelihoods import dissipated_work as dissipated_work
from dpm_ppl.inference.likelihoods import entropy_bounds as entropy_bounds
from dpm_ppl.inference.likelihoods import importance_weights as importance_weights
from dpm_ppl.inference.likelihoods import log_likelihood as log_likelihood
from dpm_ppl.inference.likelihoods import sandwich as sandwich
from dpm_ppl.inference.posteriors import Posterior as Posterior
from dpm_ppl.inference.posteriors import constant as constant
from dpm_ppl.inference.posteriors import denoised as denoised
from dpm_ppl.inference.posteriors import perturbed_chain as perturbed_chain
from dpm_ppl.inference.posteriors import smc as smc
from dpm_ppl.inference.posteriors import tempered as tempered
from dpm_ppl.inference.posteriors import widened as widened
from dpm_ppl.inference.samples import Coverage as Coverage
from dpm_ppl.inference.samples import Discriminator as Discriminator
from dpm_ppl.inference.samples import coverage as coverage
from dpm_ppl.inference.samples import discriminate as discriminate
from dpm_ppl.programs import instantiate as instantiate
