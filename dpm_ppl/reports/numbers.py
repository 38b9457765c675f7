"""Numbers as reports show them: means with their errors, in bits; what is not known."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from dpm_ppl.inference.units import mean_and_error

WORDS = {  # what a row of a table means, where the name does not say
    "elbo_bits": "ELBO: a lower bound on the log likelihood.",
    "K_bits": (
        "K: the bound in the form of Sohl-Dickstein et al. 2015, eq. 14; of real numbers it is above the ELBO where "
        "their second moment exceeds 1, and below where that is less."
    ),
    "L_null_bits": "L_null: the log likelihood under the chain's last law, of a model that has learned nothing.",
    "independent_bits": (
        "Independent floor: the best that a law of independent coordinates does on these data, normal ones of real "
        "numbers; a fit near it has found no structure."
    ),
    "elbo_bits_per_pixel": "A pixel is all its channels, on the scale that the chain sees.",
    "bits_per_dimension": (
        "Bits per dimension: what the ELBO says it takes to store a level of a pixel and channel; fewer is better."
    ),
    "entropy_limit_bits": "Entropy limit: the data's own expected log density, which no model exceeds.",
    "paired_gap_bits": (
        "Gap, datum by datum: each datum's own log density less its estimate, so that which data were drawn cancels; "
        "it need not be the difference of the two means above."
    ),
    "parzen_bits": (
        "Parzen: biased, and ranks models wrongly (Theis et al. 2016); for comparison with old tables only."
    ),
}


def of_pixels(figures: Mapping[str, Any], source: Any) -> dict[str, float]:
    """What bits per datum are of an image: per pixel, all its channels, and per dimension of its levels.

    Args:
        figures: Numbers in bits per datum, of which `elbo_bits`, `K_bits`, `K_minus_L_null_bits` and `estimate_bits`
            count, and their errors.
        source: The program's data. What has `bits_per_dimension`, such as `dpm_ppl.datasets.Dequantised`, is images.

    Returns:
        Those per pixel under `{name}_per_pixel`, higher is better; and `bits_per_dimension` of the levels by the ELBO,
        with its error, fewer is better. Nothing where the data are no images of levels.
    """
    if not hasattr(source, "bits_per_dimension"):
        return {}
    shape, found = source.event_shape, {}
    for name in ("elbo_bits", "K_bits", "K_minus_L_null_bits", "estimate_bits"):
        for suffix in ("", "_se"):
            if (value := figures.get(f"{name}{suffix}")) is not None:
                found[f"{name}_per_pixel{suffix}"] = value / math.prod(shape[:2])
    if figures.get("elbo_bits") is not None:
        found["bits_per_dimension"] = source.bits_per_dimension(figures["elbo_bits"] * math.log(2))
        if (error := figures.get("elbo_bits_se")) is not None:  # of a single datum it is not known
            found["bits_per_dimension_se"] = error / math.prod(shape)
    return found


def explained(names: Iterable[str]) -> list[str]:
    """What rows of a table mean, lines to print under it."""
    return textwrap.wrap(
        " ".join(WORDS[name] for name in names if name in WORDS), 110, initial_indent="  ", subsequent_indent="  "
    )


def in_bits(name: str, nats: Any) -> dict[str, float]:
    """Mean over the data in bits, and its standard error under `{name}_se`, of nats of shape (num_data,)."""
    mean, error = mean_and_error(nats)
    return {name: mean / math.log(2), f"{name}_se": error / math.log(2)}


def counted(num: int, one: str, many: str) -> str:
    """A number and what it counts: "1 datum", "2,000 data"."""
    return f"{num:,} {one if num == 1 else many}"


def data_counted(num: int, called: str) -> str:
    """How many data, by what they are called, such as "held-out data": one of them is a datum."""
    return counted(num, called.replace("data", "datum", 1), called)


def with_error(figures: Mapping[str, Any], name: str) -> str:
    """A number with its standard error, where it has one."""
    value, error = figures.get(name), figures.get(f"{name}_se")
    text = "      none" if value is None else f"{value:>10.4f}"
    return text + ("" if error is None else f" ± {error:.4f}")


def known_or_none(value: Any) -> Any:
    """A value for JSON, which has no NaN or infinity: None in their place."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
