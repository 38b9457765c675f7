"""Samples against data, where there is no likelihood, or beside it.

`discriminator.discriminate` trains a classifier: a Jensen-Shannon divergence from below and a two-sample test.
`nearest_neighbours.coverage` tells how much of the data a model's samples reach. Both take two arrays, no program.
"""

from dpm_ppl.inference.samples.discriminator import Discriminator, discriminate
from dpm_ppl.inference.samples.nearest_neighbours import Coverage, coverage

__all__ = [
    "Coverage",
    "Discriminator",
    "coverage",
    "discriminate",
]
