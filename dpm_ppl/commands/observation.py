"""What `dpm posterior` observes: read from files, checked, and made the rest of a program."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Observation:
    """Data of which something is known.

    Args:
        y: What is observed, shape (num_data, *event); 0 where nothing is.
        known: Which coordinates are observed, boolean, shape (*event).
        noise: Standard deviation of normal noise, or of bits the probability that one is flipped; None for none.
        binary: Whether coordinates are bits.
    """

    y: np.ndarray
    known: np.ndarray
    noise: float | None
    binary: bool

    def program(self, diffusion: Callable[[], Any]) -> Callable[[Any], None]:
        """The program of one datum, with y of shape (*event) as its argument: the chain, and this observed of it."""
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist

        from dpm_ppl.statements import reverse_chain

        def conditioned(y: Any) -> None:
            x0 = reverse_chain("x", diffusion())
            if self.noise is None:
                law: Any = dist.Delta(x0)
            elif self.binary:
                law = dist.Bernoulli(probs=jnp.where(x0 == 1, 1 - self.noise, self.noise))
            else:
                law = dist.Normal(x0, self.noise)
            numpyro.sample("y", law.mask(self.known).to_event(self.known.ndim), obs=y)

        return conditioned

    @property
    def text(self) -> str:
        """What is observed, in words."""
        which = "all coordinates" if self.known.all() else f"{self.known.sum()} of {self.known.size} coordinates"
        if self.noise is None:
            return f"{which} known exactly"
        return f"{which} with {'bits flipped with probability' if self.binary else 'noise'} {self.noise:g}"


def read_observation(
    observe: Path, *, mask: Path | None, noise: float | None, event_shape: tuple[int, ...], support: Any
) -> Observation:
    """Reads an observation and checks all of it.

    Args:
        observe: File of an array, one datum (*event) or several (num_data, *event).
        mask: File of a boolean array of shape (*event), the coordinates that are observed; None for all.
        noise: Noise; None where coordinates are known exactly, which takes a mask.
        event_shape: Shape of a datum.
        support: Where the coordinates of a datum lie.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither mask nor noise is given; a file is no array, or of another shape; noise is out of range;
            the mask is not boolean, or has nothing; observed values are not finite, or outside the support.
    """
    if mask is None and noise is None:
        raise ValueError(
            "Expected --noise S (all coordinates are observed with noise), --mask FILE.npy (the coordinates that are "
            "known exactly), or both (these coordinates are observed with noise); got neither."
        )
    binary = _is_binary(support)
    if noise is not None and not 0 < noise < (0.5 if binary else np.inf):
        kind = "the probability that a bit is flipped, in (0, 0.5)" if binary else "a standard deviation, above 0"
        exactly = " For coordinates that are known exactly leave --noise out, and give a --mask." if noise == 0 else ""
        raise ValueError(f"Expected --noise to be {kind}; got {noise:g}.{exactly}")
    y, known = _read(observe, "--observe"), np.ones(event_shape, bool)
    if mask is not None:
        known = _mask(_read(mask, "--mask"), event_shape)
    if y.shape != event_shape and y.shape[1:] != event_shape or y.size == 0:
        raise ValueError(
            f"Expected --observe to hold one datum, of shape {event_shape}, or several, of shape (num_data, "
            f"{', '.join(map(str, event_shape))}); got {y.shape} in {observe}."
        )
    if y.dtype.kind not in "biuf":
        raise ValueError(f"Expected --observe to hold numbers; got {y.dtype} in {observe}.")
    y = y.reshape(-1, *event_shape).astype(float)
    seen = y[:, known]
    if not np.isfinite(seen).all():
        raise ValueError(
            f"Expected finite values where {observe} is observed; got {(~np.isfinite(seen)).sum()} others."
        )
    if binary and (outside := ~np.isin(seen, (0, 1))).any():
        raise ValueError(f"Expected 0 or 1 where {observe} is observed; got {seen[outside][0]:g}.")
    return Observation(np.where(known, y, 0).astype(int if binary else float), known, noise, binary)


def _is_binary(support: Any) -> bool:
    """Whether coordinates are bits, or else real numbers."""
    from numpyro.distributions import constraints

    base = getattr(support, "base_constraint", support)
    if base not in (constraints.boolean, constraints.real):
        raise ValueError(
            f"Expected a program of real numbers or bits; its data are {type(base).__name__.strip('_').lower()}. "
            "Observe them in a program of your own, and give it to dpm_ppl.inference.smc."
        )
    return bool(base == constraints.boolean)


def _read(path: Path, option: str) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"Expected {option} to be a file with an array; there is none at {path}.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"Expected {option} to be a .npy file, as numpy.save writes; {path} is none: {error}"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"Expected {option} to be a .npy file with one array; {path} is an archive of several.")
    return array


def _mask(mask: np.ndarray, event_shape: tuple[int, ...]) -> np.ndarray:
    if mask.shape != event_shape:
        raise ValueError(f"Expected --mask of shape {event_shape}, that of a datum; got {mask.shape}.")
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"Expected --mask to be boolean, or 0 and 1; got other values, of {mask.dtype}.")
    if not mask.any():
        raise ValueError("Expected --mask to be true where something is observed; it is false everywhere.")
    return mask.astype(bool)
