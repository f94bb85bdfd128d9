"""What samplers ask of their settings and arguments, said in one way."""

from dfkd.interfaces import Sampler
from dfkd.types import BATCHNORM_MODES, Batch, BatchNormMode

__all__ = ["a_labelling", "a_sampler", "at_least", "one_mode", "some_rows"]


def some_rows(n: int) -> None:
    """n: how many rows a draw is asked for."""
    if n < 1:
        raise ValueError(f"n: expected an integer >= 1, found {n!r}")


def at_least(name: str, value: int, least: int) -> None:
    """An integer setting."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, found {value!r}")


def a_sampler(name: str, value: object) -> None:
    """A part of a composite; a class where its settings are meant is the likely slip."""
    if isinstance(value, type) or not isinstance(value, Sampler):
        raise ValueError(f"{name}: expected a sampler, such as Uniform(), found {value!r}")


def a_labelling(value: str) -> None:
    """The BatchNorm mode the teacher labels in."""
    if value not in BATCHNORM_MODES:
        raise ValueError(f"labelling: expected one of {', '.join(BATCHNORM_MODES)}, found {value!r}")


def one_mode(batch: Batch, who: str) -> BatchNormMode:
    """The one mode of all rows: rows that change places or are blended cannot be labelled part by part."""
    modes = {mode for _, mode in batch.labelling}
    if len(modes) != 1:
        raise ValueError(f"{who}: expected a base labelled in one BatchNorm mode, found {' and '.join(sorted(modes))}")
    return batch.mode
