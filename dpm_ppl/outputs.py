"""Output parameterisations: small functions from what a network returns to a reverse step p(x^(t-1) | x^t).

In each, `kernel` is the forward kernel, `x` the state x^t of shape (*batch, *event), and `t` the step, broadcastable
against batch.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.nn import log_sigmoid
from jax.scipy.special import logit

from dpm_ppl.distributions import FullNormal
from dpm_ppl.kernels.bernoulli import BernoulliKernel
from dpm_ppl.kernels.categorical import CategoricalKernel
from dpm_ppl.kernels.gaussian import GaussianKernel
from dpm_ppl.kernels.kernel import is_concrete


def residual_normal(kernel: GaussianKernel, x: Array, t: Array, mean: Array, variance: Array) -> dist.Distribution:
    """The paper's diagonal normal: variance sigmoid(z_Sigma + logit beta_t), mean (x - z) sqrt(1 - Sigma) + z.

    Args:
        kernel: Gaussian kernel.
        x: State x^t.
        t: Step.
        mean: Network output z, shape (*batch, *event).
        variance: Network output z_Sigma, shape (*batch, *event).

    Returns:
        Diagonal normal, event shape (*event); at z = z_Sigma = 0 it is the forward kernel `step(x, t)`.

    Source: Sohl-Dickstein et al. 2015, eqs. 64 and 65; eq. 65 lacks the square root.
    """
    raised = variance + logit(_per_event(kernel, kernel.beta, t))
    keep = jnp.exp(0.5 * log_sigmoid(-raised))  # sqrt(1 - Sigma), also where Sigma = 1
    return _normal(kernel, (x - mean) * keep + mean, jax.nn.sigmoid(raised))


def shifted_normal(kernel: GaussianKernel, x: Array, t: Array, mean: Array, variance: Array) -> dist.Distribution:
    """Diagonal normal of the paper's reference code: mean x sqrt(1 - beta_t) + z sqrt(beta_t).

    The z that brings a state back to its datum is at most of the noise's size in units of its deviation, at every step.
    That of `residual_normal` grows as 2 / sqrt(1 - alpha_bar_t): at fine schedules no network begins near it.

    Args:
        kernel: Gaussian kernel.
        x: State x^t.
        t: Step.
        mean: Network output z, shape (*batch, *event).
        variance: Network output z_Sigma, shape (*batch, *event); the variance is sigmoid(z_Sigma + logit beta_t).

    Returns:
        Diagonal normal, event shape (*event); at z = z_Sigma = 0 it is the forward kernel `step(x, t)`.

    Source: the code that Sohl-Dickstein et al. published with their paper of 2015; the variance is eq. 64.
    """
    beta = _per_event(kernel, kernel.beta, t)
    mean = jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * mean
    return _normal(kernel, mean, jax.nn.sigmoid(variance + logit(beta)))


def noise_normal(
    kernel: GaussianKernel, x: Array, t: Array, noise: Array, *, variance: Array | None = None
) -> dist.Distribution:
    """Diagonal normal from a prediction of the noise in x^t.

    Args:
        kernel: Gaussian kernel with every beta_t < 1: where no signal is left the noise says nothing of the data.
        x: State x^t.
        t: Step.
        noise: Predicted noise, shape (*batch, *event), zero mean and unit variance.
        variance: Variance, broadcastable to (*batch, *event); by default that of the kernel's posterior.

    Returns:
        N((x - beta_t / sqrt(1 - alpha_bar_t) noise) / sqrt(1 - beta_t), variance), event shape (*event).

    Raises:
        ValueError: a beta_t is 1.

    Source: Ho et al. 2020, eq. 11.
    """
    if is_concrete(kernel.beta) and np.asarray(kernel.beta).max() == 1:
        raise ValueError(
            "Expected every beta_t < 1 under a prediction of the noise; got beta_t = 1, which leaves no signal, and so "
            "a division by zero. Predict the data (data_normal), or use a schedule that leaves some signal."
        )
    beta = _per_event(kernel, kernel.beta, t)
    noise_share = _per_event(kernel, kernel.one_minus_alpha_bar[1:], t)
    if variance is None:
        _, _, variance = kernel.posterior_coefficients(t)
    return _normal(kernel, (x - beta / jnp.sqrt(noise_share) * noise) / jnp.sqrt(1 - beta), variance)


def noise_weight(kernel: GaussianKernel, t: Array, *, variance: Array | None = None) -> Array:
    r"""What turns the KL of step t under `noise_normal` into the plain squared error of the predicted noise.

        KL(q(x^(t-1)|x^t,x^0) || p(x^(t-1)|x^t)) = beta_t^2 / (2 sigma_t^2 (1 - beta_t) (1 - alpha_bar_t))
            ||noise - prediction||^2 + constant,

    the constant 0 where sigma_t^2 is the posterior's variance. As `weight` of `dpm_ppl.subsample_steps` it makes the
    bound the paper's simple loss, summed over t = 2..T. No bound any more, it says nothing of a schedule or variance:
    learn neither by it.

    Args:
        kernel: Gaussian kernel with every beta_t < 1.
        t: Step, any shape.
        variance: sigma_t^2, of t's shape; by default that of the kernel's posterior.

    Returns:
        The inverse of that factor, of t's shape.

    Source: Ho et al. 2020, eqs. 12 and 14.
    """
    beta, noise_share, noise_before = (
        values[t - 1 + shift]
        for values, shift in ((kernel.beta, 0), (kernel.one_minus_alpha_bar, 1), (kernel.one_minus_alpha_bar, 0))
    )
    if variance is None:
        return 2 * (1 - beta) * noise_before / beta
    return 2 * variance * (1 - beta) * noise_share / beta**2


def data_normal(
    kernel: GaussianKernel, x: Array, t: Array, x0: Array, *, variance: Array | None = None
) -> dist.Distribution:
    """Diagonal normal from a prediction of the data: the kernel's posterior at the predicted x^0.

    Args:
        kernel: Gaussian kernel.
        x: State x^t.
        t: Step.
        x0: Predicted data, shape (*batch, *event).
        variance: Variance, broadcastable to (*batch, *event); by default that of the posterior, as if x0 were certain.

    Returns:
        Diagonal normal, event shape (*event).

    Source: Ho et al. 2020, eqs. 7 and 9.
    """
    from_data, from_state, certain = kernel.posterior_coefficients(t)
    return _normal(kernel, from_data * x0 + from_state * x, certain if variance is None else variance)


def full_normal(kernel: GaussianKernel, x: Array, t: Array, x0: Array, scale: Array) -> dist.Distribution:
    """Normal with full covariance from a prediction of the data, for event shape (D,).

    Args:
        kernel: Gaussian kernel of event shape (D,).
        x: State x^t, shape (*batch, D).
        t: Step.
        x0: Predicted data, shape (*batch, D).
        scale: Network output, shape (*batch, D (D + 1) / 2): first the logs of the diagonal, then the strict lower
            triangle, row by row, of the Cholesky factor in units of sqrt(beta_t); zeros give the covariance beta_t I.

    Returns:
        Multivariate normal, event shape (D,).
    """
    from_data, from_state, _ = kernel.posterior_coefficients(t)
    unit = jnp.sqrt(_per_event(kernel, kernel.beta, t))[..., None]
    factor = unit * _lower_triangle(scale, size=kernel.event_shape[-1])
    return FullNormal(from_data * x0 + from_state * x, scale_tril=factor)


@partial(jax.jit, static_argnames="size")
def _lower_triangle(entries: Array, *, size: int) -> Array:
    """Matrices with a positive diagonal, from the logs of that and the rows below it."""
    rows, columns = np.tril_indices(size, -1)
    matrix = jnp.zeros((*entries.shape[:-1], size, size), entries.dtype)
    matrix = matrix.at[..., np.arange(size), np.arange(size)].set(jnp.exp(entries[..., :size]))
    return matrix.at[..., rows, columns].set(entries[..., size:])


def data_from_velocity(kernel: GaussianKernel, x: Array, t: Array, velocity: Array) -> Array:
    """The data that a network predicts by its velocity: x^0 = sqrt(alpha_bar_t) x - sqrt(1 - alpha_bar_t) v.

    At v = 0 it is the best linear guess for data of unit variance, and v has a scale of one at every step.

    Source: Salimans and Ho 2022, section 4.
    """
    signal, noise = (_per_event(kernel, a[1:], t) for a in (kernel.alpha_bar, kernel.one_minus_alpha_bar))
    return jnp.sqrt(signal) * x - jnp.sqrt(noise) * velocity


def mixture_moments(
    kernel: GaussianKernel, x: Array, t: Array, mixture: Sequence[tuple[float, float, float]]
) -> tuple[Array, Array]:
    """Mean and variance of x^0 given x^t, of coordinates by themselves whose law is a mixture of normals.

    So are the pixels of drawings: most are black, many white, and the rest in between.

    Args:
        kernel: Gaussian kernel.
        x: State x^t.
        t: Step.
        mixture: Weight, mean and standard deviation of each normal; a deviation of 0 is a single value.

    Returns:
        Mean and variance, shape (*batch, *event): of one standard normal sqrt(alpha_bar_t) x and 1 - alpha_bar_t.

    Raises:
        ValueError: weights are not positive or do not add up to 1, or a deviation is negative.

    Source: Bayes' rule, within each normal and between them.
    """
    weight, centre, deviation = np.asarray(mixture, float).T
    if not ((weight > 0).all() and abs(weight.sum() - 1) < 1e-6 and (deviation >= 0).all()):
        raise ValueError(
            f"Expected `mixture` to hold positive weights that add up to 1, means and deviations; got {mixture}."
        )
    signal, noise = (_per_event(kernel, a[1:], t) for a in (kernel.alpha_bar, kernel.one_minus_alpha_bar))
    root, each = jnp.sqrt(signal), []
    for w, m, s in zip(weight, centre, deviation, strict=True):
        spread, off = signal * s**2 + noise, x - root * m
        log_joint = np.log(w) - 0.5 * (jnp.log(spread) + off**2 / spread)
        each.append((log_joint, m + root * s**2 / spread * off, s**2 * noise / spread + 0 * off))
    log_joint, means, variances = map(jnp.stack, zip(*each, strict=True))
    share = jax.nn.softmax(log_joint, 0)
    mean = jnp.sum(share * means, 0)
    return mean, jnp.sum(share * (variances + (means - mean) ** 2), 0)


def residual_bernoulli(kernel: BernoulliKernel, x: Array, t: Array, logits: Array) -> dist.Distribution:
    """Factorised Bernoulli with the logits of the forward kernel's step plus the network's; zero gives back the kernel.

    Source: Sohl-Dickstein et al. 2015, app. D.1.2 (a sigmoid output), started at the kernel.
    """
    return dist.Bernoulli(logits=_logits(kernel.step(x, t)) + logits).to_event(len(kernel.event_shape))


def data_bernoulli(kernel: BernoulliKernel, x: Array, t: Array, logits: Array) -> dist.Distribution:
    """Factorised Bernoulli from a prediction of the data: the kernel's posterior, averaged over the predicted x^0.

    Args:
        kernel: Bernoulli kernel.
        x: State x^t, 0 or 1.
        t: Step.
        logits: Predicted logits of P(x^0 = 1 | x^t), shape (*batch, *event).

    Returns:
        Factorised Bernoulli, event shape (*event): with the true P(x^0 | x^t) the best factorised reverse step there
        is.

    Source: Austin et al. 2021, eq. 4, for two states.
    """
    ones, zeros = (_logits(kernel.posterior(jnp.full_like(x, bit), x, t)) for bit in (1, 0))
    log_rate = [
        jnp.logaddexp(log_sigmoid(logits) + log_sigmoid(sign * ones), log_sigmoid(-logits) + log_sigmoid(sign * zeros))
        for sign in (1, -1)
    ]
    return dist.Bernoulli(logits=log_rate[0] - log_rate[1]).to_event(len(kernel.event_shape))


def data_categorical(kernel: CategoricalKernel, x: Array, t: Array, logits: Array) -> dist.Distribution:
    """Factorised categorical from a prediction of the data: the kernel's posterior, averaged over the predicted x^0.

    Args:
        kernel: Categorical kernel.
        x: State x^t, integers 0..K-1.
        t: Step; at t = 1 this is the prediction of the data itself, for `decode`.
        logits: Predicted logits of P(x^0 = k | x^t), shape (*batch, *event, K). An x^0 that cannot have led to x^t
            gets none of the probability: under an absorbing kernel, a state that is not the mask is kept.

    Returns:
        Factorised categorical, event shape (*event): with the true P(x^0 | x^t) the best factorised reverse step there
        is.

    Source: Austin et al. 2021, eq. 4, with P(x^0 | x^t) as it stands: the network need not divide by q(x^t | x^0).
    """
    return kernel.averaged_posterior(logits, x, t)


def _per_event(kernel: GaussianKernel, values: Array | np.ndarray, t: Array) -> Array:
    """The entry of t in an array over steps 1..T, with a trailing 1 for every event dimension."""
    t = jnp.asarray(t)
    return jnp.asarray(values)[t - 1].reshape(t.shape + (1,) * len(kernel.event_shape))


def _logits(discrete: dist.Distribution) -> Array:
    return getattr(discrete, "base_dist", discrete).logits


def _normal(kernel: GaussianKernel, mean: Array, variance: Array) -> dist.Distribution:
    return dist.Normal(mean, jnp.sqrt(variance)).to_event(len(kernel.event_shape))
