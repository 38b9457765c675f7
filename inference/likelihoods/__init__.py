"""Likelihoods of a fitted diffusion: the bound term by term, and importance weights with what tells to trust them.

`bounds.bound` takes the bound apart (`consistency` in its other form, `entropy` by what is known before learning).
`likelihood.log_likelihood` sums the `weights` of whole trajectories; `importance` does it for any model and guide; and
`bidirectional` bounds the likelihood of simulated data from both sides. Start at `likelihood`.
"""

from dpm_ppl.inference.likelihoods.bidirectional import DissipatedWork as DissipatedWork
from dpm_ppl.inference.likelihoods.bidirectional import Sandwich as Sandwich
from dpm_ppl.inference.likelihoods.bidirectional import dissipated_work as dissipated_work
from dpm_ppl.inference.likelihoods.bidirectional import sandwich as sandwich
from dpm_ppl.inference.likelihoods.bounds import Bound as Bound
from dpm_ppl.inference.likelihoods.bounds import bound as bound
from dpm_ppl.inference.likelihoods.consistency import ConsistencyBound as ConsistencyBound
from dpm_ppl.inference.likelihoods.consistency import consistency_bound as consistency_bound
from dpm_ppl.inference.likelihoods.entropy import EntropyBounds as EntropyBounds
from dpm_ppl.inference.likelihoods.entropy import entropy_bounds as entropy_bounds
from dpm_ppl.inference.likelihoods.importance import importance_weights as importance_weights
from dpm_ppl.inference.likelihoods.likelihood import Likelihood as Likelihood
from dpm_ppl.inference.likelihoods.likelihood import class_log_probs as class_log_probs
from dpm_ppl.inference.likelihoods.likelihood import log_likelihood as log_likelihood
