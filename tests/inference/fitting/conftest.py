"""Chunks of a fit, seen and cut."""

import pytest

from dpm_ppl.inference.fitting import loop


@pytest.fixture
def chunks(monkeypatch):
    """Sets the length of all chunks."""

    def choose(length):
        monkeypatch.setattr(loop, "_FIRST_CHUNK", length)
        monkeypatch.setattr(loop, "_next_length", lambda *_: length)

    choose(10)
    return choose


@pytest.fixture
def after_chunk(monkeypatch):
    """Calls a function with the number of iterations done, after every chunk."""
    original = loop.averaged_bits

    def watch(act):
        def averaged_bits(losses):
            act(len(losses))
            return original(losses)

        monkeypatch.setattr(loop, "averaged_bits", averaged_bits)

    return watch
