"""Networks of vectors: the paper's two, and a perceptron that sees the time.

Each is called as `net(x, t)`, for x of shape (*batch, in_size) and t an integer array that broadcasts against batch.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.networks.waves import waves

_perceptron = eqx.filter_jit(eqx.nn.MLP)  # a program makes its network anew each time it runs


class StepReadout(eqx.Module):
    """An affine readout with weights of its own for every step t = 1..T, zero at first.

    Args:
        in_size: Number of inputs.
        out_size: Number of outputs.
        num_steps: Number of steps T.
    """

    weight: Array
    bias: Array

    def __init__(self, in_size: int, out_size: int, *, num_steps: int) -> None:
        self.weight = jnp.zeros((num_steps, out_size, in_size))
        self.bias = jnp.zeros((num_steps, out_size))

    def __call__(self, hidden: Array, t: Array) -> Array:
        """Outputs, shape (*batch, out_size), of hidden units of shape (*batch, in_size) at steps t."""
        return jnp.einsum("...oh,...h->...o", self.weight[t - 1], hidden) + self.bias[t - 1]


class RBFNetwork(eqx.Module):
    """One hidden layer of normalised radial basis units for all steps and outputs, with a readout for each.

    Args:
        in_size: Number of inputs D.
        out_size: Number of outputs.
        num_steps: Number of steps T.
        num_units: Number of radial units.
        key: Random key; centres are standard normal, widths 1.

    Source: Sohl-Dickstein et al. 2015, app. D.1.1 (swiss roll, 16 units).
    """

    centres: Array
    log_width: Array
    readout: StepReadout

    def __init__(self, in_size: int, out_size: int, *, num_steps: int, num_units: int = 16, key: Array) -> None:
        require_key(key)
        in_size, out_size = require_count("in_size", in_size), require_count("out_size", out_size)
        num_steps, num_units = require_count("num_steps", num_steps), require_count("num_units", num_units)
        self.centres = jax.random.normal(key, (num_units, in_size))
        self.log_width = jnp.zeros((num_units,))
        self.readout = StepReadout(num_units, out_size, num_steps=num_steps)

    def __call__(self, x: Array, t: Array) -> Array:
        """Outputs, shape (*batch, out_size)."""
        square_distance = jnp.sum((x[..., None, :] - self.centres) ** 2, -1)
        hidden = jax.nn.softmax(-0.5 * square_distance * jnp.exp(-2 * self.log_width))
        return self.readout(hidden, t)


class StepMLP(eqx.Module):
    """A perceptron whose trunk is shared by all steps, with a readout per step.

    Args:
        in_size: Number of inputs.
        out_size: Number of outputs.
        num_steps: Number of steps T.
        width: Units in a hidden layer.
        depth: Number of hidden layers.
        activation: Nonlinearity of the hidden layers.
        gain: Factor on the Glorot initialisation of the trunk; 4 keeps the scale through layers of sigmoid units.
        key: Random key.

    Source: Sohl-Dickstein et al. 2015, app. D.1.2 (heartbeat, 20-50-50-50, sigmoid units); Glorot and Bengio 2010,
    eq. 16 and section 4.1 for the initialisation.
    """

    trunk: eqx.nn.MLP
    readout: StepReadout

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        num_steps: int,
        width: int = 50,
        depth: int = 3,
        activation: Callable[[Array], Array] = jax.nn.sigmoid,
        gain: float = 4.0,
        key: Array,
    ) -> None:
        require_key(key)
        in_size, out_size = require_count("in_size", in_size), require_count("out_size", out_size)
        num_steps, width = require_count("num_steps", num_steps), require_count("width", width)
        depth = require_count("depth", depth)
        layers = _perceptron(in_size, width, width, depth - 1, activation, final_activation=activation, key=key)
        draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
        weights = [
            gain * draw(layer_key, layer.weight.shape, layer.weight.dtype)
            for layer, layer_key in zip(layers.layers, jax.random.split(key, depth), strict=True)
        ]
        self.trunk = eqx.tree_at(lambda mlp: [layer.weight for layer in mlp.layers], layers, weights)
        self.readout = StepReadout(width, out_size, num_steps=num_steps)

    def __call__(self, x: Array, t: Array) -> Array:
        """Outputs, shape (*batch, out_size)."""
        return self.readout(_batched(self.trunk, x), t)


class TimeMLP(eqx.Module):
    """A perceptron that sees sines and cosines of t / T beside its input; the number of weights does not grow with T.

    Args:
        in_size: Number of inputs.
        out_size: Number of outputs.
        num_steps: Number of steps T.
        width: Units in a hidden layer.
        depth: Number of hidden layers.
        num_frequencies: Number of frequencies, doubling from a half period over the whole chain.
        activation: Nonlinearity of the hidden layers.
        key: Random key.

    Source: the embedding of Vaswani et al. 2017 as used for diffusion by Ho et al. 2020, app. B, with frequencies
        counted in chains.
    """

    layers: eqx.nn.MLP
    num_steps: int = eqx.field(static=True)
    num_frequencies: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        num_steps: int,
        width: int = 128,
        depth: int = 3,
        num_frequencies: int = 6,
        activation: Callable[[Array], Array] = jax.nn.silu,
        key: Array,
    ) -> None:
        require_key(key)
        in_size, out_size = require_count("in_size", in_size), require_count("out_size", out_size)
        num_steps, width = require_count("num_steps", num_steps), require_count("width", width)
        depth = require_count("depth", depth, at_least=0)
        num_frequencies = require_count("num_frequencies", num_frequencies, at_least=0)
        layers = _perceptron(in_size + 2 * num_frequencies, out_size, width, depth, activation, key=key)
        last = layers.layers[-1]
        zero = jax.tree.map(jnp.zeros_like, (last.weight, last.bias))
        self.layers = eqx.tree_at(lambda mlp: (mlp.layers[-1].weight, mlp.layers[-1].bias), layers, zero)
        self.num_steps = num_steps
        self.num_frequencies = num_frequencies

    def __call__(self, x: Array, t: Array) -> Array:
        """Outputs, shape (*batch, out_size)."""
        # Beside bits and whole numbers it stays real, and does not widen single precision.
        embedding = waves(t / self.num_steps, num_frequencies=self.num_frequencies)
        embedding = embedding.astype(jnp.result_type(x, float))
        embedding = jnp.broadcast_to(embedding, (*x.shape[:-1], embedding.shape[-1]))
        return _batched(self.layers, jnp.concatenate([x, embedding], -1))


@eqx.filter_jit
def _batched(layer: Callable[[Array], Array], x: Array) -> Array:
    """Applies a layer of vectors over any batch shape, as one matrix product."""
    flat = jax.vmap(layer)(x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], flat.shape[-1])
