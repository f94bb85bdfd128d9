"""Random streams: derived from (seed, path, step), never from a global generator.

A stream is two integers, so saving it is saving its state, and step s of a run draws the same numbers whether or not
the run was interrupted before it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Stream", "derive", "initialised"]


def derive(seed: int, *path: int | str) -> int:
    """A seed in [0, 2**63) for one place in a run: equal for equal (seed, path), unrelated otherwise."""
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Stream:
    """Fresh random numbers for every step. `advance()` moves one step and returns that step's generator."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.step = int(seed), 0
        self._generator = torch.Generator(device=device)

    def advance(self) -> torch.Generator:
        """The next step's generator; valid until the next call."""
        self.step += 1
        return self._generator.manual_seed(derive(self.seed, self.step))

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.step = int(state["seed"]), int(state["step"])


@contextmanager
def initialised(seed: int) -> Iterator[None]:
    """Inside, networks are built from `seed`; the global generators are put back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
