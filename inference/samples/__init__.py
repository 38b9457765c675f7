"""Samples against data, where there is no likelihood, or beside it.

`discriminator.discriminate` trains a classifier: a Jensen-Shannon divergence from below and a two-sample test.
`nearest_neighbours.coverage` tells how much of the data a model's samples reach. `parzen_window.parzen` scores data
under windows around samples, as older tables do. All take arrays, no program.
"""

from dpm_ppl.inference.samples.discriminator import Discriminator, discriminate
from dpm_ppl.inference.samples.nearest_neighbours import Coverage, coverage
from dpm_ppl.inference.samples.parzen_window import Parzen, parzen

__all__ = [
    "Coverage",
    "Discriminator",
    "Parzen",
    "coverage",
    "discriminate",
    "parzen",
]
