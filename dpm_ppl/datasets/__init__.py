"""Data: toys and generated images that are distributions, and real images, downloaded (but bark) or in DPM_DATA.

- `toy`: `SwissRoll` and `Heartbeat`, of known density; `dead_leaves`: `DeadLeaves`, discs that hide each other.
- `idx`: `mnist`, `mnist_binary`; `cifar`: `cifar10`; `photographs`: `bark`. Each returns `images`, a record of three
  parts, integer levels; `files` says where they come from.
- `pixels`: what a chain is fitted to, an image of a set with fresh noise: `Dequantised` on a `Scale` (or
  `Centred`, without noise), or `Binarised`.

The folder that DPM_DATA names has a folder for each data set, as the cache of downloads has: mnist/ with the idx files,
plain or gzip; cifar-10-batches-bin/; bark/ with photographs.
"""

from dpm_ppl.datasets.cifar import cifar10
from dpm_ppl.datasets.dead_leaves import DeadLeaves
from dpm_ppl.datasets.idx import mnist, mnist_binary
from dpm_ppl.datasets.images import Images, Scale
from dpm_ppl.datasets.photographs import bark
from dpm_ppl.datasets.pixels import Binarised, Centred, Dequantised
from dpm_ppl.datasets.toy import Heartbeat, SwissRoll

__all__ = [
    "Binarised",
    "Centred",
    "DeadLeaves",
    "Dequantised",
    "Heartbeat",
    "Images",
    "Scale",
    "SwissRoll",
    "bark",
    "cifar10",
    "mnist",
    "mnist_binary",
]
