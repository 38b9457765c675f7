"""Posteriors p(x) r(x) by sequential Monte Carlo along a reverse chain, r being the rest of the program.

`particles.smc` is where to start. `conditioning` takes the program apart into the chain and r; a twist (`twists`) tells
each particle what r will say of it, and proposes its step back (`proposals`), as `guidance` has it for each kind of
state: `gaussian_guidance` and `gaussian_averaging`, `bernoulli_guidance`, `categorical_guidance`. `pilots` choose the
twist; a `cloud` of particles is weighed and moved, `resampling` picks the survivors, `islands` keep some apart,
`rejuvenation` moves latent variables beside the chain, and what is left is a
`posterior.Posterior`, with a `verdict` on it, which `Posterior.to_arviz` makes draws for ArviZ, several runs as several
chains.
`perturbation` is the paper's own sampler.
"""

from dpm_ppl.inference.posteriors.particles import smc
from dpm_ppl.inference.posteriors.perturbation import perturbed_chain
from dpm_ppl.inference.posteriors.posterior import Posterior
from dpm_ppl.inference.posteriors.rejuvenation import Moves
from dpm_ppl.inference.posteriors.twists import averaged, constant, defended, denoised, tempered, unguided, widened

__all__ = [
    "Moves",
    "Posterior",
    "averaged",
    "constant",
    "defended",
    "denoised",
    "perturbed_chain",
    "smc",
    "tempered",
    "unguided",
    "widened",
]
