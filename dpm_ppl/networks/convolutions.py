"""What networks of images are made of: convolutions of one image, its channels last, and how batches go through."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax


class Convolution(eqx.Module):
    """An affine convolution of an image of shape (height, width, in_channels), which it continues by zeros.

    Channels are last: XLA for CPUs is many times slower with them first inside a compiled loop.

    Args:
        in_channels: Number of channels that go in.
        out_channels: Number that come out.
        size: Height and width of the filters, pixels.
        stride: Pixels from one output to the next.
        gain: Factor on the deviation sqrt(1 / inputs of a unit) of the weights; 0 makes an output of zero.
        key: Random key.
    """

    weight: Array
    bias: Array
    stride: int = eqx.field(static=True)

    def __init__(
        self, in_channels: int, out_channels: int, *, size: int = 3, stride: int = 1, gain: float = 1.0, key: Array
    ) -> None:
        scale = gain / math.sqrt(size * size * in_channels)
        self.weight = scale * jax.random.normal(key, (size, size, in_channels, out_channels))
        self.bias = jnp.zeros(out_channels)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        """Shape (height / stride, width / stride, out_channels), in the type of x."""
        weight, strides = self.weight.astype(x.dtype), (self.stride, self.stride)
        layout = ("NHWC", "HWIO", "NHWC")
        found = lax.conv_general_dilated(x[None], weight, strides, "SAME", dimension_numbers=layout)
        return found[0] + self.bias.astype(x.dtype)


def upsampled(x: Array, factor: int) -> Array:
    """An image of shape (height, width, channels) with every pixel repeated in a square."""
    return jnp.repeat(jnp.repeat(x, factor, 0), factor, 1)


def over_batch(core: Callable[[Array, Array], Array], x: Array, t: Array, *, event_dim: int) -> Array:
    """Applies a function of one image and its step to a batch of any shape.

    Args:
        core: Function of an image of shape `event` and a step of shape ().
        x: Images, shape (*batch, *event).
        t: Steps, broadcastable against batch.
        event_dim: Number of dimensions of an image.

    Returns:
        What `core` returns of each, with batch in front.
    """
    batch, event = x.shape[: x.ndim - event_dim], x.shape[x.ndim - event_dim :]
    t = jnp.broadcast_to(t, batch)
    found = jax.vmap(core)(x.reshape(-1, *event), t.reshape(-1))
    return found.reshape(*batch, *found.shape[1:])
