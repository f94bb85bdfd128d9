"""Settings judged in one line each: the error names the setting, what was expected and what was found."""

from typing import Any

__all__ = ["at_least", "between", "one_of", "positive", "weight_or_auto", "whole_at_least"]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole_at_least(settings: object, least: int, *names: str) -> None:
    """Integers >= least."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, found {value!r}")


def at_least(settings: object, least: float, *names: str) -> None:
    """Numbers >= least, finite."""
    for name in names:
        value = getattr(settings, name)
        if not _number(value) or not least <= value < float("inf"):
            raise ValueError(f"{name}: expected a number >= {least:g}, found {value!r}")


def positive(settings: object, *names: str) -> None:
    """Numbers > 0, finite."""
    for name in names:
        value = getattr(settings, name)
        if not _number(value) or not 0.0 < value < float("inf"):
            raise ValueError(f"{name}: expected a number > 0, found {value!r}")


def between(settings: object, low: float, high: float, *names: str) -> None:
    """Numbers in [low, high]."""
    for name in names:
        value = getattr(settings, name)
        if not _number(value) or not low <= value <= high:
            raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], found {value!r}")


def one_of(settings: object, known: tuple[str, ...], *names: str) -> None:
    """One of the known words."""
    for name in names:
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def weight_or_auto(settings: object, *names: str) -> None:
    """Numbers >= 0, finite, or the word `auto`."""
    for name in names:
        value = getattr(settings, name)
        if value != "auto" and not (_number(value) and 0.0 <= value < float("inf")):
            raise ValueError(f"{name}: expected a number >= 0 or 'auto', found {value!r}")
