"""What the loops written by hand in recipes' tests are made of: views by indexing, statistics by hooks, plain sums.

Numbers are drawn from the streams that the recipes draw from, in their order; nothing else here is the library's.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dfkd.problem import Probe, Problem
from dfkd.types import Batch

Moments = list[tuple[Tensor, Tensor]]
"""The mean and the variance, (c,) each, of what each BatchNorm layer was given."""


def near(make_problem: Callable[..., Problem], size: float = 0.01) -> Problem:
    """A problem whose student gives the teacher's class often, but not always."""
    problem = make_problem()
    student = copy.deepcopy(problem.teacher.module)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    problem.student = Probe(student, problem.spec, name="student")
    return problem


class Watched:
    """What an evaluated net's BatchNorm layers are given, by hooks of its own."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.given = net.eval(), list[Tensor]()
        self.layers = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
        for part in self.layers:
            part.register_forward_pre_hook(lambda _, args: self.given.append(args[0]))

    def __call__(self, x: Tensor) -> tuple[Tensor, Moments]:
        """The answers to x (n, c, h, w), and the moments."""
        self.given.clear()
        out: Tensor = self.net(x)
        moments = []
        for g in self.given:
            mean = g.mean(dim=(0, 2, 3))
            moments.append((mean, ((g - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))))
        return out, moments

    def features(self, x: Tensor) -> Tensor:
        """(n, channels of all layers): the spatial means of what they are given."""
        self(x)
        return torch.cat([g.mean(dim=(2, 3)) for g in self.given], dim=1)

    def distance(self, moments: Moments, first: float = 1.0) -> Tensor:
        """Sum over layers of the two Euclidean distances from the stored statistics; the first counts so much."""
        total = torch.zeros(())
        for (mean, var), layer, weight in zip(moments, self.layers, [first] + [1.0] * len(moments), strict=False):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            total = total + weight * ((mean - layer.running_mean) ** 2).sum().sqrt()
            total = total + weight * ((var - layer.running_var) ** 2).sum().sqrt()
        return total


def mixed(now: Moments, past: Moments | None) -> Moments:
    """A tenth of the batch's and nine of earlier rounds'; the batch's where there are none. Kept detached, the same
    mixture is the average for the next round."""
    if past is None:
        return now
    return [(0.1 * m + 0.9 * a, 0.1 * v + 0.9 * b) for (m, v), (a, b) in zip(now, past, strict=True)]


def detached(moments: Moments) -> Moments:
    return [(mean.detach(), var.detach()) for mean, var in moments]


def masked_kl(t: Tensor, s: Tensor) -> Tensor:
    """Mean over all rows of KL(teacher || student) where both give the same class; there must be some."""
    p, same = t.softmax(1), t.argmax(1) == s.argmax(1)
    assert same.any()
    rows = (p * (p.log() - s.log_softmax(1))).sum(1)
    return torch.where(same, rows, 0.0).sum() / len(rows)


def fast_loss(watched: Watched, t: Tensor, s: Tensor | None, y: Tensor, moments: Moments, past: Any) -> Tensor:
    """10 BN-ema + 0.5 CE - 1.33 KL on the rows where both give the same class: METHODS 3.8 and 3.9."""
    total = 10.0 * watched.distance(mixed(moments, past)) + 0.5 * cross_entropy(t, y)
    return total if s is None else total - 1.33 * masked_kl(t, s)


# -- views ---------------------------------------------------------------------------------------------------------


def window(x: Tensor, rng: torch.Generator, pad: int) -> Tensor:
    """x (n, c, h, w) in a black border, of each image a window cut by its own two numbers."""
    n, c, h, w = x.shape
    down, right = torch.randint(2 * pad + 1, (2, n), generator=rng).tolist()
    rows = []
    for image, i, j in zip(x, down, right, strict=True):
        bordered = torch.zeros(c, h + 2 * pad, w + 2 * pad)
        bordered[:, pad : pad + h, pad : pad + w] = image
        rows.append(bordered[:, i : i + h, j : j + w])
    return torch.stack(rows)


def mirrored(x: Tensor, rng: torch.Generator) -> Tensor:
    """x (n, c, h, w), images whose coin falls below a half read from right to left."""
    coins = torch.rand(len(x), generator=rng).tolist()
    backwards = list(range(x.shape[3] - 1, -1, -1))
    return torch.stack([image[..., backwards] if coin < 0.5 else image for image, coin in zip(x, coins, strict=True)])


def shifted(x: Tensor, rng: torch.Generator, most: int) -> Tensor:
    """x (n, c, h, w), each image moved around its edges by two numbers of its own, from -most to most."""
    h, w = x.shape[2:]
    down, right = torch.randint(2 * most + 1, (2, len(x)), generator=rng).tolist()
    rows = []
    for image, i, j in zip(x, down, right, strict=True):
        rows.append(image[:, [(k + i - most) % h for k in range(h)]][:, :, [(k + j - most) % w for k in range(w)]])
    return torch.stack(rows)


def enlarged(x: Tensor, rng: torch.Generator, least: float) -> Tensor:
    """x (n, c, h, w), of each image a rectangle of at least this share at full size, by bilinear interpolation."""
    h, w = x.shape[2:]
    share, shape, across, along = torch.rand(4, len(x), generator=rng).tolist()
    rows = []
    for image, a, b, i, j in zip(x, share, shape, across, along, strict=True):
        area, ratio = least + (1.0 - least) * a, 0.75 * (16.0 / 9.0) ** b  # from 3 : 4 to 4 : 3
        width, height = min(1.0, (area * ratio) ** 0.5), min(1.0, (area / ratio) ** 0.5)
        left, top = (1.0 - width) * i, (1.0 - height) * j
        rows.append(_between(h, top, height) @ image @ _between(w, left, width).T)
    return torch.stack(rows)


def _between(side: int, start: float, length: float) -> Tensor:
    """(side, side): what each pixel of a stretch, scaled up to the whole side, has of each pixel of the side."""
    weights = torch.zeros(side, side)
    for pixel in range(side):
        place = (start + length * (pixel + 0.5) / side) * side - 0.5
        place = min(max(place, 0.0), side - 1.0)
        first = int(place)
        weights[pixel, first] += 1.0 - (place - first)
        weights[pixel, min(first + 1, side - 1)] += place - first
    return weights


def drawn(state: Any, n: int, pad: int) -> Tensor:
    """(n, c, h, w): what the next draw of an augmented pool gives, of which no round is due: cropped, then mirrored.

    state: of the whole before that draw.
    """
    pool, views = copy.deepcopy(state.base.stream).advance(), copy.deepcopy(state.stream).advance()
    places = torch.randperm(len(state.base.images), generator=pool)[:n]
    return mirrored(window(state.base.images[places].float() / 255.0, views, pad), views)


# -- what is compared ----------------------------------------------------------------------------------------------


def crops_of_its_bank(sampler: Any, problem: Problem) -> None:
    """The draw that follows one of no other work is of the bank's rows, in windows of a border of 2, mirrored."""
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4)
    expected = drawn(state, 7, pad=2)
    torch.testing.assert_close(sampler.draw(state, problem, 7).x, expected)


CLOSE = 1e-9
"""What loops in float64 may differ by, of values about 1: what is found is below 1e-12, of a fault over 1e-4."""


def same_rounds(found: list[Batch], expected: list[Any]) -> None:
    """expected: images, classes and loss of each, of a loop in float64."""
    for batch, (x, y, least) in zip(found, expected, strict=True):
        assert batch.target is not None
        assert torch.equal(batch.target, y)
        assert batch.info["loss"].item() == pytest.approx(least, rel=CLOSE)
        torch.testing.assert_close(batch.x, x, rtol=0.0, atol=CLOSE)


def moved_alike(found: Iterable[Tensor], expected: Iterable[Tensor], origin: Iterable[Tensor]) -> None:
    """Parameters, in float64, have moved from the origin, and are no part of that way apart."""
    for a, b, c in zip(found, expected, origin, strict=True):
        assert (a - b).abs().mean() < CLOSE * (b - c).abs().mean()
