"""Likelihoods of a fitted diffusion: the bound term by term, and importance weights with what tells to trust them.

`bounds.bound` takes the bound apart (`consistency` in its other form, `entropy` by what is known before learning).
`likelihood.log_likelihood` sums the `weights` of whole trajectories; `importance` does it for any model and guide; and
`bidirectional` bounds the likelihood of simulated data from both sides. ArviZ takes a `Likelihood` by `to_elpd` (for
`plot_khat` and `compare`) and by `to_arviz` (all that is known, and draws of trajectories). Start at `likelihood`.
"""

from dpm_ppl.inference.likelihoods.bidirectional import DissipatedWork, Sandwich, dissipated_work, sandwich
from dpm_ppl.inference.likelihoods.bounds import Bound, bound
from dpm_ppl.inference.likelihoods.consistency import ConsistencyBound, consistency_bound
from dpm_ppl.inference.likelihoods.entropy import EntropyBounds, entropy_bounds
from dpm_ppl.inference.likelihoods.importance import importance_weights
from dpm_ppl.inference.likelihoods.likelihood import Likelihood, class_log_probs, log_likelihood

__all__ = [
    "Bound",
    "ConsistencyBound",
    "DissipatedWork",
    "EntropyBounds",
    "Likelihood",
    "Sandwich",
    "bound",
    "class_log_probs",
    "consistency_bound",
    "dissipated_work",
    "entropy_bounds",
    "importance_weights",
    "log_likelihood",
    "sandwich",
]
