"""The paper's own sampler of p(x) r(x): every reverse step multiplied by r and renormalised. It is biased."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.inference.posteriors import guidance
from dpm_ppl.inference.posteriors.conditioning import Conditioned, Target
from dpm_ppl.inference.posteriors.proposals import Move, Unguided
from dpm_ppl.inference.posteriors.twists import constant, tempered


def perturbed_chain(
    model: Callable[..., Any],
    site: str,
    *,
    params: Mapping[str, Any],
    num_samples: int,
    twist: tempered | type[tempered] | None = None,
) -> Callable[..., Array]:
    """Samples of the chain of p(x^(t-1)|x^t) r(x^(t-1)) / Z(x^t): for comparison only, use `smc`.

    Renormalising drops the factor Z(x^t) / r(x^t) of every step, so that what it draws is another distribution: for
    p = N(0, 1) and r = N(y; x, 1) mean 0.667 y and variance 0.333, where the posterior's are 0.5 y and 0.5. There is no
    evidence, nor anything that would tell. Multiplying a step by r is exact where r is Gaussian under a linear map
    (Gaussian steps) or factorises (Bernoulli and categorical steps), and to second order or in single changes for any
    other.

    Args:
        model: The program, as for `smc`; without latent variables beside the chain.
        site: Name of the chain.
        params: Parameters by name.
        num_samples: Number of independent chains.
        twist: `constant()`, r at every step, by default; or `tempered()`, r^((T - t)/T).

    Returns:
        A function of (key, *args), args being those of the program, to samples of x^0, shape (num_samples, *event).
        When called it raises ValueError where the program cannot be conditioned, as `smc` does, has other latent
        variables, observes coordinates exactly, or has steps that are not normal, Bernoulli or categorical.

    Raises:
        TypeError: num_samples is no integer, or twist neither of the two.
        ValueError: num_samples is less than 1.

    Source: Sohl-Dickstein et al. 2015, eq. 22 and table App.1, whose perturbed rate has a wrong denominator.
    """
    num_samples = require_count("num_samples", num_samples)
    twist = constant() if twist is None else twist() if isinstance(twist, type) else twist
    if not isinstance(twist, tempered):
        raise TypeError(f"Expected `twist` to be constant() or tempered(); got {twist!r}. Others have no such sampler.")

    @jax.jit
    def compiled(key: Array, params: dict[str, Any], *args: Any) -> Array:
        target = Conditioned(lambda: model(*args), site, params).target({})
        if target.known is not None:
            raise ValueError(
                "Expected observations with noise; got coordinates that are known exactly, by an observed Delta, which "
                "this sampler has no r for. Use smc."
            )
        return _run(key, target, num_samples, twist)

    def run(key: Array, *args: Any) -> Array:
        require_key(key)
        conditioned = Conditioned(lambda: model(*args), site, params)
        conditioned.check()
        if latents := jax.eval_shape(conditioned.latents, key):
            raise ValueError(
                f"Expected a program whose only latent variable is the chain {site!r}; got {', '.join(latents)} beside "
                "it, which this sampler cannot weigh. Use smc."
            )
        return compiled(key, dict(params), *args)

    return run


def _run(key: Array, target: Target, num: int, twist: tempered) -> Array:
    def draws(move: Callable[..., Move], key: Array, *args: Array) -> Array:
        return jax.vmap(lambda key, *args: _undefended(move(*args)).draw(key)[0])(jax.random.split(key, num), *args)

    def back(x: Array, t: Array) -> tuple[Array, None]:
        return draws(lambda x: twist.at(target, x, t)[1], jax.random.fold_in(key, t), x), None

    x = draws(lambda: twist.start(target), jax.random.fold_in(key, 0))
    x, _ = jax.lax.scan(back, x, jnp.arange(2, target.diffusion.num_steps + 1), reverse=True)
    return draws(lambda x: twist.last(target, x)[1], jax.random.fold_in(key, 1), x)


def _undefended(move: Move) -> Move:
    """A move that is its proposal alone: without weights, no draw of the reverse step may stand in for it."""
    if isinstance(move, Unguided):
        raise ValueError(
            f"Expected {guidance.listed()} steps, which can be multiplied by r; got {type(move.p).__name__}, and "
            "without weights r would be ignored. Use smc."
        )
    return move.undefended()
