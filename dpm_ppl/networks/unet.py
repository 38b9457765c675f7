"""A small U-Net that sees the time: two resolutions of residual blocks, on images folded into channels."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.arguments import require_count
from dpm_ppl.networks.convolutions import Convolution, over_batch, upsampled
from dpm_ppl.networks.waves import waves


def normalised(x: Array) -> Array:
    """Groups of channels, 8 where that divides them, at mean 0 and variance 1 over the image; no weights.

    Args:
        x: One image, shape (height, width, channels).

    Returns:
        The same shape and type; moments are taken in single precision at least.

    Source: Wu and He 2018, "Group Normalization", eqs. 1, 2 and 7.
    """
    groups = x.reshape(*x.shape[:2], math.gcd(8, x.shape[-1]), -1)
    groups = groups.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = groups - jnp.mean(groups, (0, 1, 3), keepdims=True)
    variance = jnp.mean(centred**2, (0, 1, 3), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape).astype(x.dtype)


class Block(eqx.Module):
    """A residual block: two convolutions, the second on what time has scaled and shifted, its output zero at first.

    Args:
        in_channels: Number of channels that go in.
        out_channels: Number that come out.
        time_size: Size of the vector of time.
        key: Random key.

    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks"; time as in Dhariwal and Nichol 2021, section
        3.1.
    """

    first: Convolution
    second: Convolution
    of_time: eqx.nn.Linear
    shortcut: Convolution | None

    def __init__(self, in_channels: int, out_channels: int, *, time_size: int, key: Array) -> None:
        keys = jax.random.split(key, 4)
        self.first = Convolution(in_channels, out_channels, key=keys[0])
        self.second = Convolution(out_channels, out_channels, gain=0.0, key=keys[1])
        self.of_time = eqx.nn.Linear(time_size, 2 * out_channels, key=keys[2])
        same = in_channels == out_channels
        self.shortcut = None if same else Convolution(in_channels, out_channels, size=1, key=keys[3])

    def __call__(self, x: Array, time: Array) -> Array:
        """An image of shape (height, width, out_channels), from one and a vector of time."""
        scale, shift = jnp.split(_linear(self.of_time, time), 2)
        hidden = self.first(jax.nn.silu(normalised(x)))
        hidden = self.second(jax.nn.silu(normalised(hidden) * (1 + scale) + shift))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class UNet(eqx.Module):
    """A network of images, called as `net(x, t)`, for x of shape (*batch, *event) and t broadcastable against batch.

    An image is folded, squares of `fold` x `fold` pixels into channels; residual blocks of the first width, then at
    half the resolution of the second, then, beside what the first ones found, of the first again. Outputs are zero at
    first.

    Args:
        event_shape: Shape of an image, (height, width) or (height, width, channels); height and width divisible by 2
            `fold`.
        num_outputs: Numbers for each coordinate of an event; by default one, without a dimension of its own.
        num_steps: Number of steps T.
        widths: Channels at full and at half resolution.
        num_blocks: Residual blocks: going down, in the middle, and going up.
        fold: Side of the squares that are folded.
        num_frequencies: Frequencies of time (see `dpm_ppl.networks.waves`).
        dtype: Type to compute in, such as `jnp.bfloat16`; by default that of x. Weights, the last layer and so outputs
            keep their own.
        key: Random key.

    Raises:
        TypeError: a number is no integer.
        ValueError: an event is no image, or its sides are not divisible.

    Source: Ronneberger, Fischer and Brox 2015, as in Ho et al. 2020, app. B; folding as in Shi et al. 2016.
    """

    enter: Convolution
    down: list[Block]
    halve: Convolution
    middle: list[Block]
    double: Convolution
    up: list[Block]
    leave: Convolution
    time: list[eqx.nn.Linear]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_outputs: int | None = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    fold: int = eqx.field(static=True)
    num_frequencies: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        num_outputs: int | None = None,
        num_steps: int,
        widths: tuple[int, int] = (48, 96),
        num_blocks: tuple[int, int, int] = (2, 3, 2),
        fold: int = 2,
        num_frequencies: int = 8,
        dtype: Any = None,
        key: Array,
    ) -> None:
        for name, number in (("num_steps", num_steps), ("fold", fold), ("num_frequencies", num_frequencies)):
            require_count(name, number)
        if len(event_shape) not in (2, 3) or any(side % (2 * fold) for side in event_shape[:2]):
            raise ValueError(
                f"Expected `event_shape` (height, width) or (height, width, channels), both sides divisible by 2 fold "
                f"= {2 * fold}; got {event_shape}."
            )
        full, half = widths
        channels = fold * fold * math.prod(event_shape[2:])
        keys = iter(jax.random.split(key, 6 + sum(num_blocks)))

        def blocks(number: int, in_channels: int, out_channels: int) -> list[Block]:
            ins = [in_channels, *[out_channels] * (number - 1)]
            return [Block(size, out_channels, time_size=half, key=next(keys)) for size in ins[:number]]

        self.enter = Convolution(channels, full, key=next(keys))
        self.down = blocks(num_blocks[0], full, full)
        self.halve = Convolution(full, half, stride=2, key=next(keys))
        self.middle = blocks(num_blocks[1], half, half)
        self.double = Convolution(half, full, key=next(keys))
        self.up = blocks(num_blocks[2], 2 * full, full)
        self.leave = Convolution(full, channels * (num_outputs or 1), gain=0.0, key=next(keys))
        self.time = [eqx.nn.Linear(size, half, key=next(keys)) for size in (2 * num_frequencies, half)]
        self.event_shape, self.num_outputs = tuple(event_shape), num_outputs
        self.num_steps, self.fold, self.num_frequencies, self.dtype = num_steps, fold, num_frequencies, dtype

    def __call__(self, x: Array, t: Array) -> Array:
        """Outputs, shape (*batch, *event) or (*batch, *event, num_outputs), of x's type."""
        return over_batch(self._of_image, x, t, event_dim=len(self.event_shape))

    def _of_image(self, x: Array, t: Array) -> Array:
        dtype = x.dtype if self.dtype is None else self.dtype
        time = waves(t / self.num_steps, num_frequencies=self.num_frequencies).astype(dtype)
        for layer in self.time:
            time = jax.nn.silu(_linear(layer, time))
        hidden = self.enter(self._folded(x).astype(dtype))
        for block in self.down:
            hidden = block(hidden, time)
        beside, hidden = hidden, self.halve(hidden)
        for block in self.middle:
            hidden = block(hidden, time)
        hidden = jnp.concatenate([self.double(upsampled(hidden, 2)), beside], -1)
        for block in self.up:
            hidden = block(hidden, time)
        return self._unfolded(self.leave(jax.nn.silu(normalised(hidden.astype(x.dtype)))))

    def _folded(self, x: Array) -> Array:
        """Squares of pixels as channels, shape (height / fold, width / fold, fold fold channels)."""
        height, width = self.event_shape[:2]
        squares = x.reshape(height // self.fold, self.fold, width // self.fold, self.fold, -1)
        return squares.transpose(0, 2, 1, 3, 4).reshape(height // self.fold, width // self.fold, -1)

    def _unfolded(self, channels: Array) -> Array:
        """The reverse of it, of as many numbers as each coordinate has."""
        rows, columns = channels.shape[:2]
        squares = channels.reshape(rows, columns, self.fold, self.fold, -1).transpose(0, 2, 1, 3, 4)
        return squares.reshape(self.event_shape if self.num_outputs is None else (*self.event_shape, self.num_outputs))


def _linear(layer: eqx.nn.Linear, x: Array) -> Array:
    """An affine layer in the type of x."""
    bias: Any = layer.bias
    return layer.weight.astype(x.dtype) @ x + bias.astype(x.dtype)
