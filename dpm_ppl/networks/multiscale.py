"""The paper's network of images: convolutions at several scales, a dense path beside them, bumps in place of time."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.arguments import require_count
from dpm_ppl.networks.convolutions import Convolution, over_batch, upsampled


def bumps(t: Array, *, num_steps: int, num_bumps: int) -> Array:
    """exp(-(t - tau_j)^2 / 2 w^2), normalised over j: centres tau_j spread evenly over (0, T), w their spacing.

    Args:
        t: Step, of any shape.
        num_steps: Number of steps T.
        num_bumps: Number of bumps J.

    Returns:
        Shares of each bump, shape (*t.shape, J).

    Source: Sohl-Dickstein et al. 2015, app. D.2.2.
    """
    spacing = num_steps / num_bumps
    distance = jnp.asarray(t)[..., None] / spacing - (jnp.arange(num_bumps) + 0.5)
    return jax.nn.softmax(-0.5 * distance**2)


class MultiScaleConvolution(eqx.Module):
    """An image mean-pooled by powers of two, convolved at each scale, brought back to its size, and added up.

    Args:
        in_channels: Number of channels that go in.
        out_channels: Number that come out.
        num_scales: Number of scales: pools of 1, 2, 4, ... pixels a side.
        key: Random key.

    Source: Sohl-Dickstein et al. 2015, app. D.2.1.
    """

    layers: list[Convolution]

    def __init__(self, in_channels: int, out_channels: int, *, num_scales: int, key: Array) -> None:
        gain = 1 / math.sqrt(num_scales)
        keys = jax.random.split(key, num_scales)
        self.layers = [Convolution(in_channels, out_channels, gain=gain, key=each) for each in keys]

    def __call__(self, x: Array) -> Array:
        """Softplus of the sum, shape (height, width, out_channels), of an image of sides that every pool divides."""
        height, width, channels = x.shape
        found = []
        for scale, layer in enumerate(self.layers):
            side = 2**scale
            pooled = jnp.mean(x.reshape(height // side, side, width // side, side, channels), (1, 3))
            found.append(upsampled(layer(pooled), side))
        return jax.nn.softplus(sum(found[1:], start=found[0]))


class MultiScaleNetwork(eqx.Module):
    """The paper's network of images, called as `net(x, t)`, for x of shape (*batch, *event).

    It sees x^t alone: for each number that comes out it finds J, of which the bumps of t make one. Two paths, layers of
    `MultiScaleConvolution` and dense ones, meet in layers of 1 x 1 pixel. Outputs are zero at first.

    Args:
        event_shape: Shape of an image, (height, width) or (height, width, channels); every pool divides its sides.
        num_outputs: Numbers for each coordinate of an event, the paper's mean and variance.
        num_steps: Number of steps T.
        num_scales: Number of scales.
        num_bumps: Number of bumps J.
        width: Channels of a layer of convolutions, and of 1 x 1 pixel.
        depth: Number of layers of convolutions.
        dense_width: Units of a dense layer, of which there are two.
        dense_channels: Channels that the dense path adds; 0 leaves it out.
        key: Random key.

    Raises:
        TypeError: a number is no integer.
        ValueError: an event is no image, or a pool does not divide its sides.

    Source: Sohl-Dickstein et al. 2015, app. D.2; sizes are ours.
    """

    convolutions: list[MultiScaleConvolution]
    dense: eqx.nn.MLP | None
    meet: list[Convolution]
    leave: Convolution
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    num_bumps: int = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        num_outputs: int = 2,
        num_steps: int,
        num_scales: int = 3,
        num_bumps: int = 10,
        width: int = 32,
        depth: int = 3,
        dense_width: int = 128,
        dense_channels: int = 2,
        key: Array,
    ) -> None:
        counts = {"num_outputs": num_outputs, "num_steps": num_steps, "num_scales": num_scales, "num_bumps": num_bumps}
        for name, number in counts.items():
            require_count(name, number)
        side = 2 ** (num_scales - 1)
        if len(event_shape) not in (2, 3) or any(length % side for length in event_shape[:2]):
            raise ValueError(
                f"Expected `event_shape` (height, width) or (height, width, channels), both sides divisible by the "
                f"largest pool, {side}; got {event_shape}. Fewer `num_scales` have smaller pools."
            )
        pixels, channels = math.prod(event_shape[:2]), math.prod(event_shape[2:])
        of_layers, of_dense, *of_meet, of_leave = jax.random.split(key, 5)
        self.convolutions = [
            MultiScaleConvolution(size, width, num_scales=num_scales, key=each)
            for size, each in zip([channels, *[width] * (depth - 1)], jax.random.split(of_layers, depth), strict=True)
        ]
        self.dense = None
        if dense_channels:
            dense = eqx.nn.MLP(
                pixels * channels, pixels * dense_channels, dense_width, 2, jax.nn.softplus, key=of_dense
            )
            self.dense = dense
        sizes = (width + dense_channels, width)
        self.meet = [Convolution(size, width, size=1, key=each) for size, each in zip(sizes, of_meet, strict=True)]
        self.leave = Convolution(width, channels * num_outputs * num_bumps, size=1, gain=0.0, key=of_leave)
        self.event_shape, self.num_outputs = tuple(event_shape), num_outputs
        self.num_steps, self.num_bumps = num_steps, num_bumps

    def __call__(self, x: Array, t: Array) -> Array:
        """Outputs, shape (*batch, *event, num_outputs)."""
        return over_batch(self._of_image, x, t, event_dim=len(self.event_shape))

    def _of_image(self, x: Array, t: Array) -> Array:
        hidden = image = x.reshape(*self.event_shape[:2], -1)
        for layer in self.convolutions:
            hidden = layer(hidden)
        if self.dense is not None:
            beside = self.dense(image.ravel()).reshape(*self.event_shape[:2], -1)
            hidden = jnp.concatenate([hidden, beside], -1)
        for of_pixel in self.meet:
            hidden = jax.nn.softplus(of_pixel(hidden))
        coefficients = self.leave(hidden).reshape(*self.event_shape, self.num_outputs, self.num_bumps)
        return coefficients @ bumps(t, num_steps=self.num_steps, num_bumps=self.num_bumps).astype(x.dtype)
