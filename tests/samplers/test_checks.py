"""Settings that are refused, each with its name, what was expected and what was found."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from samplers.checks import at_least, between, one_of, positive, whole_at_least

Check = Callable[..., None]


@pytest.mark.parametrize(
    ("check", "rule", "good", "bad"),
    [
        (whole_at_least, (2,), [2, 100], [1, 2.0, True, "2", None]),
        (at_least, (0.0,), [0, 0.0, 5.5], [-0.1, float("nan"), float("inf"), "1", True, None]),
        (positive, (), [1, 1e-9], [0, -1.0, float("nan"), float("inf"), "1", True]),
        (between, (0.0, 0.5), [0, 0.5], [-0.1, 0.6, float("nan"), "0", False]),
        (one_of, (("a", "b"),), ["a", "b"], ["c", None, 1]),
    ],
)
def test_takes_what_fits_and_names_what_does_not(check: Check, rule: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(SimpleNamespace(other=value, setting=value), *rule, "other", "setting")
    for value in bad:
        with pytest.raises(ValueError, match=f"^setting: expected .*, found {value!r}$"):
            check(SimpleNamespace(other=good[0], setting=value), *rule, "other", "setting")
