"""Colours that survive colour blindness, grey printing and a dark screen, with text that stays readable on them.

One hue from pale to deep for a quantity, two hues around a middle for a difference. On a dark screen deep and pale
change places, so that in both the end that stands out is the one close to the teacher.
"""

from typing import Final

__all__ = ["LEVELS", "contrast", "stylesheet"]

LEVELS: Final = 25

RAMPS: Final = {
    ("seq", "light"): ("#f4f5ef", "#d3e5e1", "#9cc9cf", "#5a9fbd", "#2b6a9e", "#143468"),
    ("seq", "dark"): ("#20262f", "#25405a", "#2c6285", "#3f8cab", "#7dbfc4", "#d8efdf"),
    ("div", "light"): ("#a04c05", "#dd9a55", "#f4f3ee", "#6fa5cb", "#1d4b88"),
    ("div", "dark"): ("#f0a35c", "#8a5a2e", "#252b33", "#2f668f", "#86c1ee"),
}
# white text on the first, black text on the second; neighbours differ in lightness as well as in hue
SERIES: Final = {
    "light": ("#2161a8", "#b23c0a", "#17703c", "#86358b", "#0b6b7d", "#7d5200", "#505a67", "#ad1f5c"),
    "dark": ("#7db4f0", "#f29a6b", "#6fcf97", "#d39ae0", "#5cc4d6", "#e0b040", "#aab4c0", "#f28ab5"),
}

RGB = tuple[float, float, float]


def _rgb(text: str) -> RGB:
    r, g, b = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b


def _hex(colour: RGB) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def ramp(kind: str, scheme: str, position: float) -> str:
    """The colour at 0 <= position <= 1."""
    stops = [_rgb(stop) for stop in RAMPS[kind, scheme]]
    place = min(max(position, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    part = place - left
    mixed = [a + part * (b - a) for a, b in zip(stops[left], stops[left + 1], strict=True)]
    return _hex((mixed[0], mixed[1], mixed[2]))


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The ratio of the Web Content Accessibility Guidelines, from 1 to 21; text needs 4.5."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ink(background: str) -> str:
    """Black or white: one of them always reaches 4.5 on a colour, a softer black would not."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, background))


def _rules(scheme: str) -> str:
    rules = []
    for kind in ("seq", "div"):
        for level in range(LEVELS):
            paint = ramp(kind, scheme, level / (LEVELS - 1))
            rules.append(f".{kind}{level}{{background-color:{paint};color:{ink(paint)}}}")
    for position, paint in enumerate(SERIES[scheme]):
        rules.append(f".s{position}{{--c:{paint};--on:{ink(paint)}}}")
    return "\n".join(rules)


def stylesheet() -> str:
    """Rules for .seq0 to .seq24, .div0 to .div24 and .s0 to .s7 on a light and on a dark screen."""
    return f"{_rules('light')}\n@media screen and (prefers-color-scheme: dark){{\n{_rules('dark')}\n}}\n"
