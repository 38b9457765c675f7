"""Options of a fit: checked before any work, and described for `run.json`, which tells one run from another."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.infer import RenyiELBO
from numpyro.infer.elbo import ELBO
from numpyro.util import is_prng_key

from dpm_ppl.inference.minibatches import Batches


def check_kinds(*, model: Any, guide: Any, key: Any, args: Any, loss: Any, optimizer: Any) -> None:
    """Checks that programs are functions, the key is a key, and so on; TypeError or ValueError if not."""
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise TypeError(f"Expected `{name}` to be a function of (x0, *args); got {type(program).__name__}.")
    if not is_prng_key(key):
        raise TypeError(f"Expected `key` to be one random key, such as jax.random.key(0); got {type(key).__name__}.")
    if not isinstance(args, tuple):
        raise TypeError(
            f"Expected `args`, further arguments of model and guide, to be a tuple; got {type(args).__name__}."
        )
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"Expected `optimizer` to be one of Optax, such as optax.adam(1e-3); got {type(optimizer).__name__}."
        )
    if loss is not None and not isinstance(loss, ELBO):
        raise TypeError(
            f"Expected `loss` to be an ELBO of NumPyro, such as TraceMeanField_ELBO(); got {type(loss).__name__}."
        )
    if isinstance(loss, RenyiELBO):
        raise ValueError(
            "Expected `loss` to be a sum over terms; got RenyiELBO, which needs the weights of whole trajectories. "
            "Fit it with numpyro.infer.SVI on the plain programs."
        )


def check_counts(**counts: Any) -> None:
    """Checks that each is an integer of at least 1, by its name."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"Expected `{name}` to be an integer; got {value!r}.")
        if value < 1:
            raise ValueError(f"Expected `{name}` to be at least 1; got {value}.")


def check_numbers(*, learning_rate: Any, clip_norm: Any, ema_decay: Any, checkpoint_every: Any) -> None:
    """Checks the range of the real-valued options."""
    numbers = {"learning_rate": learning_rate, "ema_decay": ema_decay, "checkpoint_every": checkpoint_every}
    if clip_norm is not None:
        numbers["clip_norm"] = clip_norm
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"Expected `{name}` to be a number; got {value!r}.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"Expected `learning_rate` to be positive and finite; got {learning_rate}.")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"Expected `ema_decay` in [0, 1); got {ema_decay}. 0 leaves the parameters as they are.")
    if not checkpoint_every >= 0:
        raise ValueError(f"Expected `checkpoint_every`, in seconds, to be at least 0; got {checkpoint_every}.")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"Expected `clip_norm` to be positive and finite, or None; got {clip_norm}.")


def check_flags(**flags: Any) -> None:
    """Checks that each is a bool, by its name."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"Expected `{name}` to be True or False; got {value!r}.")


def check_fingerprint(fingerprint: Any) -> dict[str, Any]:
    """A caller's fingerprint as a dictionary; TypeError if it is none, or is no JSON."""
    if not isinstance(fingerprint, Mapping | None):
        raise TypeError(f"Expected `fingerprint` to be a dictionary; got {type(fingerprint).__name__}.")
    try:
        checked: dict[str, Any] = json.loads(json.dumps(dict(fingerprint or {})))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected `fingerprint` to hold strings, numbers, lists and dictionaries, as JSON does; {error}."
        ) from error
    return checked


def describe_key(key: Array) -> list[int]:
    """The numbers of a random key, of either kind."""
    data: list[int] = np.asarray(jax.random.key_data(key)).tolist()
    return data


def describe_data(data: Any, batches: Batches) -> str:
    """Data in a line: a distribution's type and event shape; an array's dtype, shape and hash."""
    if isinstance(data, dist.Distribution):
        return f"{type(data).__name__} of event shape {list(data.event_shape)}"
    array = np.ascontiguousarray(batches.source)
    return f"{array.dtype}{list(array.shape)} sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
