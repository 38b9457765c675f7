"""The devices that a command computes on."""

from contextlib import AbstractContextManager
from typing import Annotated

import typer

from dpm_ppl.inference.devices import make_mesh, using

Devices = Annotated[
    int | None, typer.Option(min=1, help="Devices to split data or particles over; by default all.", metavar="N")
]


def on(num_devices: int | None) -> AbstractContextManager[None]:
    """Within, all that takes a mesh has the first so many devices; ValueError where JAX sees fewer."""
    return using(None if num_devices is None else make_mesh(num_devices))
