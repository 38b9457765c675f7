"""Networks as Equinox modules, each called as `net(x, t)`: x of shape (*batch, *event), t broadcastable against batch.

Declare one in a program with `numpyro.contrib.module.eqx_module(name, net)`. Each starts with an output of zero, from
which every function in `dpm_ppl.outputs` makes a sensible reverse step.

Of vectors: `perceptrons`, the paper's two and `TimeMLP`, which sees time as `waves`. Of images, made of
`convolutions`: `multiscale`, the paper's, which has bumps in place of time; `unet`, a small U-Net that sees it.
"""

from dpm_ppl.networks.multiscale import MultiScaleConvolution, MultiScaleNetwork
from dpm_ppl.networks.perceptrons import RBFNetwork, StepMLP, StepReadout, TimeMLP
from dpm_ppl.networks.unet import UNet

__all__ = ["MultiScaleConvolution", "MultiScaleNetwork", "RBFNetwork", "StepMLP", "StepReadout", "TimeMLP", "UNet"]
