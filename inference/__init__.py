"""Algorithms over programs; installed as `dpm_ppl.inference`.

Five wings that do not know of each other, but for `checks`, which may use any: `fitting` (SVI on the bound),
`likelihoods` (the bound term by term, importance weights), `posteriors` (sequential Monte Carlo), `samples` (against
data) and `checks` (before any of it). Beside them `calibration`, which tries any posterior on a program's own
simulations. Below them `arguments`, `devices`, `given`, `pathwise`, `progress`, `psis`,
`records`, `sources` and `units`, which they share.
"""

from dpm_ppl.inference import checks, fitting, likelihoods, posteriors, samples
from dpm_ppl.inference.calibration import Calibration, calibrate
from dpm_ppl.inference.checks import Finding, Report, check
from dpm_ppl.inference.devices import make_mesh
from dpm_ppl.inference.fitting import Fit, NonFiniteLossError, fit, load_params, read_run
from dpm_ppl.inference.likelihoods import (
    Bound,
    ConsistencyBound,
    DissipatedWork,
    EntropyBounds,
    Likelihood,
    Sandwich,
    bound,
    class_log_probs,
    consistency_bound,
    dissipated_work,
    entropy_bounds,
    importance_weights,
    log_likelihood,
    sandwich,
)
from dpm_ppl.inference.posteriors import (
    Moves,
    Posterior,
    averaged,
    constant,
    defended,
    denoised,
    perturbed_chain,
    smc,
    tempered,
    unguided,
    widened,
)
from dpm_ppl.inference.samples import Coverage, Discriminator, Parzen, coverage, discriminate, parzen
from dpm_ppl.programs import instantiate

__all__ = [
    "Bound",
    "Calibration",
    "ConsistencyBound",
    "Coverage",
    "Discriminator",
    "DissipatedWork",
    "EntropyBounds",
    "Finding",
    "Fit",
    "Likelihood",
    "Moves",
    "NonFiniteLossError",
    "Parzen",
    "Posterior",
    "Report",
    "Sandwich",
    "averaged",
    "bound",
    "calibrate",
    "check",
    "checks",
    "class_log_probs",
    "consistency_bound",
    "constant",
    "coverage",
    "defended",
    "denoised",
    "discriminate",
    "dissipated_work",
    "entropy_bounds",
    "fit",
    "fitting",
    "importance_weights",
    "instantiate",
    "likelihoods",
    "load_params",
    "log_likelihood",
    "make_mesh",
    "parzen",
    "perturbed_chain",
    "posteriors",
    "read_run",
    "samples",
    "sandwich",
    "smc",
    "tempered",
    "unguided",
    "widened",
]
