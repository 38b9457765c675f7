"""Samples of a fitted program against its data, without a likelihood."""

from typing import Any

from dpm_ppl.programs import Program


def comparison(
    program: Program, params: Any, data: Any, *, key: Any, num_samples: int = 20_000, num_covered: int = 4000
) -> dict[str, Any]:
    """The discriminator's estimate, the two-sample test and the coverage, on fresh samples and data.

    Args:
        program: The program.
        params: Its parameters.
        data: Its data.
        key: Random key.
        num_samples: Samples, and data, for the discriminator; fewer where they are slow to draw or data are few.
        num_covered: Of these, for the coverage, which takes all pairs.

    Returns:
        `dpm_ppl.evaluation.compared`.
    """
    import jax
    import numpyro.distributions as dist

    from dpm_ppl import evaluation, metrics
    from dpm_ppl.commands.draws import draws
    from dpm_ppl.inference import coverage, discriminate, instantiate

    if program.diffusion is not None:
        diffusion = instantiate(program.diffusion, params)
        num_samples = metrics.affordable(diffusion, seconds=60, least=1000, most=num_samples)
    keys = jax.random.split(key, 3)
    if isinstance(data, dist.Distribution):
        x0 = data.sample(keys[0], (num_samples,))
    else:
        x0 = metrics.fresh_data(data, key=keys[0], num_data=num_samples)
    samples = draws(program, params, key=keys[1], num_samples=len(x0))
    told = discriminate(x0, samples, key=keys[2])
    return evaluation.compared(told, coverage(x0[:num_covered], samples[:num_covered]))
