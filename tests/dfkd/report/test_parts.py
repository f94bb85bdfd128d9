"""Pictures, colours, scales, words and places, each against what it must be."""

import math
import struct
import zlib

import numpy as np
import pytest

from dfkd.fidelity.features import FEATURE_METRICS, pair_name
from dfkd.fidelity.metrics import METRICS as MEASURED
from dfkd.fidelity.recalibrate import SCORING
from dfkd.report.charts.place import Frame, place
from dfkd.report.colour import LEVELS, RAMPS, SERIES, contrast, ink, ramp
from dfkd.report.pictures import pictures, png
from dfkd.report.run import Bank
from dfkd.report.scales import axis_linear, axis_log, metric_scale
from dfkd.report.words import METRICS, describe, duration, large, number, plain, spread


def decoded(file: bytes) -> np.ndarray:
    """A PNG's pixels (h, w, c), read by its chunks; every checksum is checked."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(file):
        size, kind = struct.unpack(">I4s", file[place : place + 8])
        content = file[place + 8 : place + 8 + size]
        assert struct.unpack(">I", file[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        place += 12 + size
    w, h, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert depth == 8
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(h, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(h, w, {0: 1, 2: 3}[colour])


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 4, 7)])
def test_a_png_holds_the_pixels(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decoded(png(image)), image.transpose(1, 2, 0))


def test_a_png_refuses_floats() -> None:
    with pytest.raises(ValueError, match=r"image: expected \(c, h, w\) uint8"):
        png(np.zeros((1, 2, 2)))  # type: ignore[arg-type]


def test_large_images_are_averaged_down() -> None:
    x = np.full((1, 3, 224, 224), 100, np.uint8)
    (picture,) = pictures(Bank(x, np.array([2])), ["cat", "dog", "eel"])
    assert (picture.caption, picture.small) == ("eel", False)
    assert len(picture.uri) < 1000


@pytest.mark.parametrize("background", [ramp(*key, i / (LEVELS - 1)) for key in RAMPS for i in range(LEVELS)])
def test_numbers_are_readable_on_every_colour(background: str) -> None:
    assert contrast(background, ink(background)) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_more_is_always_darker_or_always_lighter(scheme: str) -> None:
    white = [contrast("#ffffff", ramp("seq", scheme, i / 24)) for i in range(25)]
    assert white == sorted(white, reverse=scheme == "dark")  # so grey paper and colour-blind eyes read it too
    assert all(contrast(colour, ink(colour)) >= 4.5 for colour in SERIES[scheme])


def test_every_measured_metric_is_described_the_same_way_round() -> None:
    for name, measured in MEASURED.items():
        direction = {True: "higher", False: "lower", None: None}[measured.higher_is_better]
        assert describe(name).better == direction, name
        assert name in METRICS or name.startswith("agreement@"), name
    for name, measured in FEATURE_METRICS.items():
        found = describe(pair_name(name, ("conv2", "layer1")))
        assert found.better == {True: "higher", False: "lower"}[bool(measured.higher_is_better)], name
        assert found.title == f"{name.upper()} conv2 = layer1"
        assert "conv2 of the student, layer1 of the teacher" in found.meaning
        assert "fc of the student, fc of the teacher" in describe(pair_name(name, ("fc", "fc"))).meaning


def test_scores_in_another_batchnorm_mode_are_called_after_it() -> None:
    for mode in SCORING:
        found = describe(f"agreement_{mode}")
        assert (found.title, found.better, found.form) == (f"agreement, BatchNorm {mode}", "higher", "percent")
        assert describe(f"kl_{mode}").better == "lower"
        assert describe(f"accuracy_{mode}").meaning != found.meaning
    assert describe("agreement_teacher_right").title == "agreement, teacher right"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_closer_to_the_teacher_is_further_up_the_scale(name: str) -> None:
    metric, values = METRICS[name], [0.01, 0.2, 0.5, 0.9]
    if metric.form == "points" or name == "excess_kl":
        values = [-0.3, -0.1, 0.2, 0.25]
    scale = metric_scale(metric, values)
    positions = [scale.position(value) for value in values]
    assert positions == sorted(positions, reverse=metric.better == "lower")
    assert len(set(positions)) == len(positions)
    assert all(0.0 <= position <= 1.0 for position in [*positions, *(at for at, _ in scale.ticks)])


@pytest.mark.parametrize("value", [-1.6e48, 0.0, 3.0, 1e300])
def test_equal_values_of_any_size_have_a_scale(value: float) -> None:
    assert metric_scale(METRICS["logit_r2"], [value, value]).position(value) == pytest.approx(0.5)


def test_no_difference_from_the_control_is_in_the_middle() -> None:
    for name in ("excess_agreement", "excess_kl"):
        assert metric_scale(METRICS[name], [-0.1, 0.4]).position(0.0) == 0.5


@pytest.mark.parametrize("values", [[1.0], [5e4, 5e4], [1.0, 1e9], [30.0, 90.0]])
def test_axes_hold_their_values(values: list[float]) -> None:
    position, ticks = axis_log(values)
    assert all(0.0 <= position(value) <= 1.0 for value in values)
    assert all(0.0 <= at <= 1.0 for at, _ in ticks)
    linear, marks = axis_linear(max(values))
    assert linear(max(values)) < 1.0
    assert 3 <= len(marks) <= 7


def test_badges_of_one_spot_do_not_cover_each_other() -> None:
    frame = Frame()
    badges = place([(str(i), 300.0, 100.0 + 0.1 * i) for i in range(8)], frame)
    gaps = [math.hypot(a.x - b.x, a.y - b.y) for a in badges for b in badges if a is not b]
    assert min(gaps) >= 18.0
    assert all(0 < badge.x < frame.width and 0 < badge.y < frame.bottom for badge in badges)


def test_numbers_as_words() -> None:
    assert [number(0.98765, "percent"), number(-0.0123, "points"), number(0.004, "points")] == ["98.8", "−1.2", "+0.4"]
    assert [number(None, "nats"), number(math.nan, "nats"), number(-1e-9, "percent")] == ["–", "–", "0.0"]
    assert [plain(0.0123), plain(2.345), plain(1e-5), plain(0.0)] == [
        "0.012",
        "2.35",
        "1.0e-5".replace("-", "−"),
        "0.000",
    ]
    assert [spread(None, "percent"), spread(0.0, "percent"), spread(7e-4, "plain", 0.7)] == ["", "±0.0", "±0.001"]
    assert [large(999), large(12_400), large(2e6), large(999_900)] == ["999", "12.4k", "2M", "1M"]
    assert [duration(1.23), duration(99.4), duration(120), duration(9000)] == [
        "1.2 s",
        "99 s",
        "2 min 00 s",
        "2 h 30 min",
    ]
