"""Class posteriors p(y|x) of a conditional diffusion, by Bayes' rule from the likelihoods of its classes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from scipy.special import log_softmax

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.likelihood import log_likelihood


def class_log_probs(
    diffusions: Sequence[Callable[[], Diffusion]], x0: ArrayLike, *, log_prior: ArrayLike, **options: Any
) -> np.ndarray:
    """Log posterior probabilities of the classes of data, log p(y|x), from importance-weighted likelihoods.

    Args:
        diffusions: Definition of each class's diffusion, as `log_likelihood` takes them.
        x0: Data, shape (num_data, *event).
        log_prior: log p(y), shape (num_classes,); need not be normalised.
        **options: Of `log_likelihood`: `params`, `key`, `num_particles` and others.

    Returns:
        Nats, shape (num_data, num_classes); as good as the likelihoods, whose k-hat `log_likelihood` tells.

    Raises:
        ValueError: log_prior is of another shape, or what `log_likelihood` says.

    Source: Li, Prabhudesai, Duggal, Brown and Pathak 2023, with likelihoods in place of bounds.
    """
    if np.shape(log_prior) != (len(diffusions),):
        raise ValueError(
            f"Expected `log_prior` of shape ({len(diffusions)},), one for each diffusion; got {np.shape(log_prior)}."
        )
    log_prob = [log_likelihood(diffusion, x0, **options).estimate for diffusion in diffusions]
    return np.asarray(log_softmax(np.stack(log_prob, -1) + np.asarray(log_prior, np.float64), -1))
