"""Diffusions of which everything is known: Gaussian data with affine reverse steps, and three enumerated bits.

Units are nats per datum. Closed forms take traced parameters, so that `jax.grad` of one is the exact gradient.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import dpm_ppl as dpm

MEAN = np.array([0.7, -0.4])
COV = np.array([[1.9, 0.8], [0.8, 0.6]])


@dataclass(frozen=True, eq=False)
class GaussianOracle:
    """Data N(MEAN, COV) in two dimensions, and reverse steps N(A_t x + b_t, L_t L_t'), t = 2..T at index t - 2.

    The schedule is `schedules.learned`, so that its parameter has a gradient too.
    """

    num_steps: int
    params: dict
    beta_1: float = 0.08
    alpha_bar_T: float = 0.05

    @classmethod
    def exact(cls, num_steps: int, *, share: jax.Array | None = None, **ends: float) -> "GaussianOracle":
        """The reverse of the forward process itself: p(x^(t-1)|x^t) = q(x^(t-1)|x^t)."""
        share = jnp.log(jnp.arange(1.0, num_steps) + 2) if share is None else share
        beta = np.asarray(cls(num_steps, {"beta": share}, **ends).schedule()[0])
        signal = np.append(1, np.cumprod(1 - beta))
        maps, shifts, factors = [], [], []
        for t in range(2, num_steps + 1):
            keep, before = np.sqrt(1 - beta[t - 1]), signal[t - 1] * COV + (1 - signal[t - 1]) * np.eye(2)
            gain = keep * before @ np.linalg.inv(keep**2 * before + beta[t - 1] * np.eye(2))
            maps.append(gain)
            shifts.append(np.sqrt(signal[t - 1]) * (np.eye(2) - keep * gain) @ MEAN)
            factors.append(np.linalg.cholesky(before - keep * gain @ before))
        params = {"beta": share, "map": np.stack(maps), "shift": np.stack(shifts), "factor": np.stack(factors)}
        return cls(num_steps, jax.tree.map(jnp.asarray, params), **ends)

    def spoiled(self) -> "GaussianOracle":
        """The same with wrong maps, shifted means and wrong covariances, different in every step and direction."""
        rng = np.random.default_rng(3)
        params = dict(self.params)
        params["map"] = params["map"] + 0.05 * rng.normal(size=params["map"].shape)
        params["shift"] = params["shift"] + 0.1 + 0.05 * rng.normal(size=params["shift"].shape)
        params["factor"] = params["factor"] * 1.2 + jnp.array([[0.0, 0.0], [0.06, 0.0]])
        return replace(self, params=params)

    # The program.

    def diffusion(self) -> dpm.Diffusion:
        beta = dpm.schedules.learned("beta", self.num_steps, beta_1=self.beta_1, alpha_bar_T=self.alpha_bar_T)
        return self.with_kernel(dpm.GaussianKernel(beta, (2,)))

    def with_kernel(self, kernel: dpm.Kernel) -> dpm.Diffusion:
        """The same reverse steps over another kernel object."""
        maps, shifts, factors = (numpyro.param(name, self.params[name]) for name in ("map", "shift", "factor"))

        def reverse(x, t):
            mean = jnp.einsum("...ij,...j->...i", maps[t - 2], x) + shifts[t - 2]
            return dist.MultivariateNormal(
                mean, scale_tril=jnp.broadcast_to(jnp.tril(factors)[t - 2], (*mean.shape, 2))
            )

        return dpm.Diffusion(kernel, reverse)

    # Closed forms. Data are normal; a datum is a normal of no covariance.

    def schedule(self, params=None):
        """beta, shape (T,), and alpha_bar, shape (T + 1,): what `schedules.learned` says it does."""
        share = (self.params if params is None else params)["beta"]
        fall = jnp.log((1 - self.beta_1) / self.alpha_bar_T) * jnp.exp(share) / jnp.exp(share).sum()
        beta = jnp.concatenate([jnp.full(1, self.beta_1), 1 - jnp.exp(-fall)])
        return beta, jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - beta)])

    def kl(self, mean=MEAN, cov=COV, params=None):
        """E KL(q(x^(t-1)|x^t,x^0) || p(x^(t-1)|x^t)) for t = 2..T, data of this mean and covariance, (T - 1,)."""
        params = self.params if params is None else params
        beta, signal = self.schedule(params)
        b, before, after = beta[1:], signal[1:-1], signal[2:]
        from_data, from_state = jnp.sqrt(before) * b / (1 - after), jnp.sqrt(1 - b) * (1 - before) / (1 - after)
        variance = b * (1 - before) / (1 - after)
        identity = jnp.eye(2)
        # The means differ by D x^0 + E (x^t - sqrt(alpha_bar_t) x^0) - shift, the two random parts independent.
        noise_map = from_state[:, None, None] * identity - params["map"]
        data_map = from_data[:, None, None] * identity + jnp.sqrt(after)[:, None, None] * noise_map
        off = data_map @ mean - params["shift"]
        spread = data_map @ cov @ data_map.mT + (1 - after)[:, None, None] * noise_map @ noise_map.mT
        second = off[:, :, None] * off[:, None, :] + spread + variance[:, None, None] * identity
        factor = jnp.tril(params["factor"])
        precision, log_det = jnp.linalg.inv(factor @ factor.mT), jnp.linalg.slogdet(factor)[1]
        return 0.5 * (jnp.trace(precision @ second, axis1=1, axis2=2) - 2 - 2 * jnp.log(variance)) + log_det

    def prior_matching(self, mean=MEAN, cov=COV, params=None):
        """E KL(q(x^T|x^0) || pi)."""
        _, signal = self.schedule(params)
        square = mean @ mean + jnp.trace(cov)
        return 0.5 * (signal[-1] * (square - 2) - 2 * jnp.log1p(-signal[-1]))

    def reconstruction(self, mean=MEAN, cov=COV):
        """E log p(x^0|x^1), x^0 given x^1 being one more step of noise."""
        b = self.beta_1
        square = b**2 * (mean @ mean + jnp.trace(cov)) + 2 * b * (1 - b)
        return -jnp.log(2 * jnp.pi * b) - square / (2 * b)

    def elbo(self, mean=MEAN, cov=COV, params=None):
        """E ELBO(x^0)."""
        kl, prior = self.kl(mean, cov, params), self.prior_matching(mean, cov, params)
        return self.reconstruction(mean, cov) - kl.sum() - prior

    def elbos(self, x0, params=None):
        """ELBO of each datum, shape (num_data,)."""
        return jax.vmap(lambda x: self.elbo(x, jnp.zeros((2, 2)), params))(jnp.asarray(x0))

    def generated(self) -> dist.MultivariateNormal:
        """The model's own p(x^0)."""
        mean, cov = np.zeros(2), np.eye(2)
        steps = zip(*(np.asarray(self.params[name]) for name in ("map", "shift", "factor")), strict=True)
        for gain, shift, factor in list(steps)[::-1]:
            mean, cov = gain @ mean + shift, gain @ cov @ gain.T + factor @ factor.T
        keep = 1 - self.beta_1
        return dist.MultivariateNormal(np.sqrt(keep) * mean, keep * cov + self.beta_1 * np.eye(2))

    def expected_log_prob(self) -> float:
        """E log p(x^0) of the model over the data."""
        p = self.generated()
        precision = jnp.linalg.inv(p.covariance_matrix)
        off = MEAN - p.loc
        return p.log_prob(p.loc) - 0.5 * (jnp.trace(precision @ COV) + off @ precision @ off)


@dataclass(frozen=True, eq=False)
class BernoulliOracle:
    """Three bits, T = 4, base rate 0.3, and reverse steps by a table of logits: all trajectories are enumerated."""

    num_steps: int = 4
    rate: float = 0.3

    @cached_property
    def params(self) -> dict:
        """Logits of x^(t-1) given x^t, by step, state and site: no symmetry between sites, bits or steps."""
        bits = np.asarray(STATES)
        noise = np.random.default_rng(5).normal(size=(self.num_steps - 1, 8, 3))
        return {"table": jnp.asarray(0.8 * noise + 1.5 * (2 * bits - 1) - 0.3)}

    def diffusion(self) -> dpm.Diffusion:
        kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(self.num_steps), (3,), rate=self.rate)
        return self.with_kernel(kernel)

    def with_kernel(self, kernel: dpm.Kernel) -> dpm.Diffusion:
        """The same reverse steps over another kernel object."""
        table = numpyro.param("table", self.params["table"])
        place = np.array([4, 2, 1])
        return dpm.Diffusion(kernel, lambda x, t: dist.Bernoulli(logits=table[t - 2, x @ place]).to_event(1))

    @cached_property
    def forward(self) -> np.ndarray:
        """q(x^t | x^(t-1)) for t = 1..T, shape (T, 8, 8), from and to."""
        beta = 1 / np.arange(self.num_steps, 0, -1)
        one = (1 - beta)[:, None, None] * STATES + beta[:, None, None] * self.rate  # (T, from, site)
        return _to_states(one)

    @cached_property
    def log_joint(self) -> np.ndarray:
        """log q(x^1..x^T | x^0), shape (8,) * (T + 1), axis t being x^t."""
        return sum(_axes(np.log(step), t, t + 1, self.num_steps) for t, step in enumerate(self.forward))

    def log_model(self, table=None):
        """log p(x^0..x^T), shape (8,) * (T + 1)."""
        if table is None:
            return self._log_model
        one = jax.nn.sigmoid(table)
        start = np.prod(np.where(STATES == 1, self.rate, 1 - self.rate), -1)
        total = jnp.log(start).reshape(*(1,) * self.num_steps, 8)
        total = total + _axes(np.log(self.forward[0]), 1, 0, self.num_steps)  # p(x^0|x^1) is the kernel's first step
        for t in range(2, self.num_steps + 1):
            total = total + _axes(jnp.log(_to_states(one[t - 2][None])[0]), t, t - 1, self.num_steps)
        return total

    @cached_property
    def _log_model(self) -> np.ndarray:
        return jax.device_get(jax.jit(self.log_model)(self.params["table"]))

    def elbos(self, table=None):
        """ELBO of each of the 8 data, by the sum over all trajectories."""
        weighted = np.exp(self.log_joint) * (self.log_model(table) - self.log_joint)
        return weighted.sum(tuple(range(1, self.num_steps + 1)))

    def log_prob(self):
        """The model's own log p(x^0) of each of the 8 data."""
        return jax.scipy.special.logsumexp(self.log_model(), tuple(range(1, self.num_steps + 1)))

    def kl(self):
        """E KL(q(x^(t-1)|x^t,x^0) || p(x^(t-1)|x^t)) of each datum and step, shape (8, T - 1), from the joint."""
        joint = np.exp(self.log_joint)
        log_model, terms = self.log_model(), []
        for t in range(2, self.num_steps + 1):
            others = tuple(s for s in range(1, self.num_steps + 1) if s not in (t - 1, t))
            pair = joint.sum(others)  # (x0, x^(t-1), x^t)
            with np.errstate(divide="ignore", invalid="ignore"):
                q = pair / pair.sum(1, keepdims=True)
            model_pair = np.exp(log_model).sum((0, *others))  # p(x^(t-1), x^t), of which p(x^t) is divided out
            p = model_pair / model_pair.sum(0)
            terms.append((pair * (np.log(q) - np.log(p))).sum((1, 2)))
        return np.stack(terms, -1)


STATES = np.array(list(product((0, 1), repeat=3)))


def _to_states(one):
    """Transition probabilities between the 8 states from P(bit = 1), shape (..., from, site) to (..., from, to)."""
    xp = jnp if isinstance(one, jax.Array) else np
    return xp.prod(xp.where(STATES == 1, one[..., None, :], 1 - one[..., None, :]), -1)


def _axes(matrix, given: int, drawn: int, num_steps: int):
    """A (given, drawn) matrix as a factor over the axes x^0..x^T."""
    shape = [1] * (num_steps + 1)
    shape[given] = shape[drawn] = 8
    return (matrix if given < drawn else matrix.T).reshape(shape)


def heartbeat_diffusion(num_steps: int) -> dpm.Diffusion:
    """The heartbeat's best factorised reverse: P(x^0_i | x^t) over the 5 sequences, through the posterior."""
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(num_steps), (20,), rate=0.2)

    def reverse(x, t):
        weight = kernel.marginal(SEQUENCES, t[..., None]).log_prob(x[..., None, :])[..., None]
        one, zero = (jax.nn.logsumexp(jnp.where(SEQUENCES == bit, weight, -jnp.inf), -2) for bit in (1, 0))
        return dpm.outputs.data_bernoulli(kernel, x, t, one - zero)

    return dpm.Diffusion(kernel, reverse)


def heartbeat_elbo(num_steps: int) -> float:
    """ELBO of that reverse in bits, for each sequence: a state enters only by its count of ones at each phase."""
    rate, signal, beta = 0.2, 1 - np.arange(num_steps + 1) / num_steps, 1 / np.arange(num_steps, 0, -1)
    ones = np.array(list(product(range(5), repeat=5)))  # of 4 each
    same = np.eye(5, dtype=bool)
    total = 0.0
    for t in range(2, num_steps + 1):
        on = signal[t] * same + rate * (1 - signal[t])  # P(x^t = 1) by sequence and phase
        ways = np.prod(np.array([1, 4, 6, 4, 1])[ones], -1)[:, None]
        weight = ways * np.prod(on ** ones[:, None] * (1 - on) ** (4 - ones[:, None]), -1)  # state by sequence
        true = (weight / weight.sum(-1, keepdims=True))[:, :, None]  # P(phase is the beat | x^t)
        for xt, count in ((1, ones), (0, 4 - ones)):
            prior = signal[t - 1] * np.array([0, 1]) + rate * (1 - signal[t - 1])
            keep, redrawn = 1 - beta[t - 1], beta[t - 1] * (rate if xt else 1 - rate)
            joint = np.stack([(1 - prior) * (redrawn + keep * (1 - xt)), prior * (redrawn + keep * xt)])
            zero_or_one = joint / joint.sum(0)  # q(x^(t-1) | x^t, x^0), by x^(t-1) and x^0
            p = true * zero_or_one[:, 1] + (1 - true) * zero_or_one[:, 0]
            q = zero_or_one[:, same[0].astype(int)].T  # the data being sequence 0
            total += weight[:, 0] @ (count * (q * np.log(q / p)).sum(-1)).sum(-1)
    first = beta[0] * np.array([1 - rate, rate]) + (1 - beta[0]) * np.eye(2)  # q(x^1|x^0), and p(x^0|x^1)
    reconstruction = np.array([16, 4]) @ (first * np.log(first.T)).sum(-1)
    return (reconstruction - total) / np.log(2)


SEQUENCES = (np.arange(20) % 5 == np.arange(5)[:, None]).astype(int)


@dataclass(frozen=True)
class WithoutClosedForms:
    """A kernel of which only `stationary` and `step` are known."""

    kernel: dpm.Kernel

    @property
    def num_steps(self):
        return self.kernel.num_steps

    @property
    def event_shape(self):
        return self.kernel.event_shape

    def stationary(self):
        return self.kernel.stationary()

    def step(self, x, t):
        return self.kernel.step(x, t)


def data(num_data: int, *, seed: int = 0) -> jax.Array:
    """Draws from the Gaussian oracle's data."""
    return jnp.asarray(np.random.default_rng(seed).multivariate_normal(MEAN, COV, size=num_data))


def estimates(elbo, model, guide, params, *args, num: int, seed: int = 0):
    """`num` single estimates of a loss and of its gradient in the parameters, as SVI would draw them."""
    one = jax.value_and_grad(lambda params, key: elbo.loss(key, params, model, guide, *args))
    # In blocks: on two cores XLA hangs over several large batches of triangular solves at once (jaxlib 0.10.2).
    every = jax.jit(lambda params, keys: jax.lax.map(lambda key: one(params, key), keys, batch_size=500))
    return jax.device_get(every(params, jax.random.split(jax.random.key(seed), num)))


def worst(samples, expected) -> float:
    """Largest distance of a mean over axis 0 from what is expected, in standard errors, anywhere in a pytree.

    Of many it is the score that a single one would exceed as rarely, so "within 3" means the same for one as for many.
    """

    def score(samples, expected):
        error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
        off = np.abs(np.mean(samples, axis=0) - expected)
        return np.where(off < 1e-9, 0.0, off / np.maximum(error, 1e-300)).ravel()

    scores = np.concatenate(jax.tree.leaves(jax.tree.map(score, samples, expected)))
    tail = math.erfc(scores.max() / math.sqrt(2))
    if tail < 1e-12 or np.isnan(scores).any():
        return float(np.nan if np.isnan(scores).any() else scores.max())
    return NormalDist().inv_cdf(1 + 0.5 * math.expm1(len(scores) * math.log1p(-min(tail, 1 - 1e-12))))
