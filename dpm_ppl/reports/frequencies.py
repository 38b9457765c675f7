"""The frequencies panel: how often samples are each of a few sequences of states, against the data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from dpm_ppl.data import MOST_SEQUENCES, valid_sequences
from dpm_ppl.reports.panels import FAULT, MODEL


@dataclass(frozen=True)
class Sequences:
    """A few sequences and how probable they are.

    Args:
        states: Shape (num_sequences, length).
        probability: Shape (num_sequences,).
        listed: Whether these are all that there are, listed by the data's law, and not those that were seen.
    """

    states: np.ndarray
    probability: np.ndarray
    listed: bool


def sequences_of(data: Any, x0: ArrayLike | None) -> Sequences | None:
    """The sequences that the data's law can list, or those seen in data where they are few and came often.

    Args:
        data: A distribution or an array.
        x0: Data, whole numbers of shape (num_data, *event); None for none.

    Returns:
        At most 64 sequences, those seen by how often they came; None where there would be more, or no data.
    """
    listed = valid_sequences(data)
    if listed is not None:
        return Sequences(*listed, listed=True)
    if x0 is None:
        return None
    flat = np.asarray(x0).reshape(len(np.asarray(x0)), -1)
    states, counts = np.unique(flat, axis=0, return_counts=True)
    if len(states) > min(MOST_SEQUENCES, len(flat) / 10):
        return None
    order = np.argsort(-counts, kind="stable")
    return Sequences(states[order], counts[order] / len(flat), listed=False)


def sequence_counts(x: ArrayLike, sequences: ArrayLike) -> tuple[np.ndarray, int]:
    """How often each sequence occurs among samples, shape (num_sequences,), and how many samples are none of them."""
    x, sequences = np.asarray(x), np.asarray(sequences)
    same = (x[:, None] == sequences[None]).all(-1)
    return same.sum(0), int((~same.any(-1)).sum())


def draw_frequencies(axes: Axes, x: ArrayLike, sequences: Sequences) -> None:
    """Draws how often each sequence is sampled, against its probability, and the share of samples that are none.

    Args:
        axes: Where to draw.
        x: Samples, shape (num_samples, *event).
        sequences: The sequences.
    """
    flat = np.asarray(x).reshape(len(np.asarray(x)), -1)
    counts, num_other = sequence_counts(flat, sequences.states)
    share = np.append(counts, num_other) / len(flat)
    error = np.sqrt(share * (1 - share) / len(flat))
    place = np.arange(len(share))
    colors = [MODEL] * len(counts) + [FAULT]
    axes.bar(place, share, yerr=error, color=colors, width=0.7, capsize=3, label="samples, with standard error")
    ends: Any = (place[:-1] - 0.45, place[:-1] + 0.45)
    axes.hlines(sequences.probability, *ends, color="black", linestyle="--", label="data")
    above = (place[-1], share[-1] + error[-1])
    axes.annotate(f"{share[-1]:.1%}", above, (0, 3), textcoords="offset points", ha="center")
    names, other = _names(sequences.states), "invalid" if sequences.listed else "others"
    size = "small" if max(map(len, names)) * len(names) < 60 else "xx-small"
    axes.set_xticks(place, [*names, other], fontsize=size, family="monospace")
    name = "sequence" if sequences.states.shape[1] > 1 else "state"
    which = f"valid {name}" if sequences.listed else f"{name} of the data"
    axes.set(xlabel=name, ylabel="share of samples", title=f"How often each {which} is sampled")
    axes.legend(fontsize="small", frameon=False, loc="upper right", ncols=2)
    axes.set_ylim(0, 1.3 * max((share + error).max(), float(np.max(sequences.probability))))


def _names(sequences: np.ndarray) -> list[str]:
    """A label for each sequence: itself, cut to the room there is, or its number where there are many."""
    room = 120 // len(sequences)
    if room < min(10, sequences.shape[1]):
        return [str(i) for i in range(len(sequences))]
    between = "" if sequences.max() < 10 else " "
    text = [between.join(str(int(state)) for state in sequence) for sequence in sequences]
    return [name if len(name) <= room else f"{name[: room - 1]}…" for name in text]
