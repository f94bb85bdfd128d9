"""The loops that the engine is measured against: the same arithmetic in plain torch, written out.

no paper. Of dfkd they use the networks and the way seeds are derived, so that both sides draw the same numbers and must
end with the same student. No settings, no states, no counting, no clock, no checks.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from dfkd.rng import derive

__all__ = [
    "ChannelsLast",
    "Draw",
    "bare_cutmix",
    "bare_gaussian",
    "bare_generative",
    "bare_inversion",
    "bare_mixup",
    "bare_pooled",
    "bare_real",
    "bare_spectrum",
    "bare_step",
    "bare_synthesis",
    "bare_uniform",
]

Draw = Callable[[int], tuple[Tensor, Tensor | None]]
"""n -> images, and the teacher's logits where they are known."""

Shape = tuple[int, int, int]


class ChannelsLast(nn.Module):
    """A network that lays its images (n, c, h, w) out channels last, which its convolutions then keep."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits


def bare_step(
    teacher: nn.Module, student: nn.Module, draw: Draw, n: int, steps: int, learning_rate: float, temperature: float
) -> Callable[[], None]:
    """One step of distillation by SGD with Nesterov momentum down a cosine of `steps`."""
    optimiser = torch.optim.SGD(
        student.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    done = 0

    def step() -> None:
        nonlocal done
        optimiser.param_groups[0]["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * done / steps))
        x, logits = draw(n)
        if logits is None:
            with torch.no_grad():
                logits = teacher(x)
        target = log_softmax(logits / temperature, dim=1)
        answer = log_softmax(student(x) / temperature, dim=1)
        loss = temperature**2 * kl_div(answer, target, reduction="batchmean", log_target=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        done += 1

    return step


def bare_real(images: Tensor, seed: int) -> Draw:
    """images (m, c, h, w) uint8, each once per epoch."""
    device = images.device
    generator, order, drawn = torch.Generator(device), torch.empty(0, dtype=torch.int64), 0

    def draw(n: int) -> tuple[Tensor, None]:
        nonlocal order, drawn
        pieces = []
        while n > 0:
            epoch, first = divmod(drawn, len(images))
            if first == 0:
                generator.manual_seed(derive(seed, "epoch", epoch))
                order = torch.randperm(len(images), generator=generator, device=device)
            piece = order[first : first + n]
            pieces.append(piece)
            drawn += len(piece)
            n -= len(piece)
        index = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return images[index] / 255.0, None

    return draw


def _numbers(seed: int, device: torch.device) -> Callable[[], torch.Generator]:
    """Each call gives the generator of the next draw."""
    generator, draws = torch.Generator(device), 0

    def following() -> torch.Generator:
        nonlocal draws
        draws += 1
        return generator.manual_seed(derive(seed, draws))

    return following


def bare_uniform(shape: Shape, seed: int, device: torch.device) -> Draw:
    following = _numbers(seed, device)

    def draw(n: int) -> tuple[Tensor, None]:
        return torch.rand(n, *shape, generator=following(), device=device), None

    return draw


def bare_gaussian(shape: Shape, seed: int, device: torch.device) -> Draw:
    """Mean 0.5, standard deviation 0.25, clipped to [0, 1]."""
    following = _numbers(seed, device)

    def draw(n: int) -> tuple[Tensor, None]:
        return torch.empty(n, *shape, device=device).normal_(0.5, 0.25, generator=following()).clamp_(0, 1), None

    return draw


def bare_spectrum(shape: Shape, seed: int, device: torch.device) -> Draw:
    """Random phases under 1 / (|fx|^a + |fy|^b), slopes about one number in [0.5, 3.5] for each image."""
    following, (c, h, w) = _numbers(seed, device), shape

    def draw(n: int) -> tuple[Tensor, None]:
        rng = following()
        s = 0.5 + 3.0 * torch.rand(n, 1, generator=rng, device=device)
        tilt = 0.05 * torch.randn(n, 1, generator=rng, device=device)
        along_x = torch.fft.rfftfreq(w, device=device) ** (s + tilt).clamp_min(0)
        along_y = torch.fft.fftfreq(h, device=device).abs() ** (s - tilt).clamp_min(0)
        fall = along_x[:, None, :] + along_y[:, :, None]
        fall[:, 0, 0] = torch.inf  # no mean
        noise = torch.fft.rfft2(torch.randn(n, c, h, w, generator=rng, device=device))
        x = torch.fft.irfft2(noise / noise.abs() / fall[:, None], s=(h, w))
        if c > 1:
            x = (torch.randn(n, c, c, generator=rng, device=device) @ x.flatten(2)).view(n, c, h, w)
        x = x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return (0.5 + 0.25 * x).clamp_(0, 1), None

    return draw


def _shares(n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """(n,) of Beta(1, 1), by the samplers' formula for any Beta, so that the numbers are theirs."""
    height = torch.empty(n, dtype=torch.float64, device=device).exponential_(generator=rng)
    turn = torch.empty(n, dtype=torch.float64, device=device).uniform_(0.0, 2.0 * math.pi, generator=rng).cos_()
    return (0.5 + 0.5 * turn / (1.0 / torch.expm1(height) + turn**2).sqrt()).float()


def bare_mixup(base: Draw, seed: int, device: torch.device) -> Draw:
    """The images alone: their labels are the teacher's to give."""
    following = _numbers(seed, device)

    def draw(n: int) -> tuple[Tensor, None]:
        x, rng = base(n)[0], following()
        share = _shares(n, rng, device)[:, None, None, None]
        return share * x + (1.0 - share) * x[torch.randperm(n, generator=rng, device=device)], None

    return draw


def bare_cutmix(base: Draw, seed: int, device: torch.device) -> Draw:
    """The images alone: their labels are the teacher's to give."""
    following = _numbers(seed, device)

    def draw(n: int) -> tuple[Tensor, None]:
        x, rng = base(n)[0], following()
        side, inside = (1.0 - _shares(n, rng, device)).sqrt(), []
        for length in x.shape[2:]:
            size = (side * length).round()[:, None]
            room = length - size + 1.0
            start = (torch.rand(n, 1, generator=rng, device=device) * room).floor().minimum(room - 1.0)
            at = torch.arange(length, device=device)
            inside.append((at >= start) & (at < start + size))
        box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(box, x[torch.randperm(n, generator=rng, device=device)], x), None

    return draw


def bare_pooled(base: Draw, shape: Shape, rows: int, capacity: int, seed: int, device: torch.device) -> Draw:
    """A bank of bytes that gets `rows` images before each draw."""
    following, bank = _numbers(seed, device), torch.empty(0, *shape, dtype=torch.uint8, device=device)

    def draw(n: int) -> tuple[Tensor, None]:
        nonlocal bank
        new = (base(rows)[0] * 255.0).round().to(torch.uint8)
        bank = torch.cat([bank[-(capacity - rows) :], new])
        return bank[torch.randperm(len(bank), generator=following(), device=device)[:n]] / 255.0, None

    return draw


class _Statistics:
    """Distance of a batch's BatchNorm inputs from what the layers have stored, by hooks while it is wanted."""

    def __init__(self, teacher: nn.Module) -> None:
        self.layers = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)]
        self.seen: list[Tensor] = []
        self.handles: list[Any] = []

    def hook(self, part: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(part, nn.BatchNorm2d)
        assert part.running_mean is not None
        assert part.running_var is not None
        var, mean = torch.var_mean(args[0], dim=(0, 2, 3), correction=0)
        self.seen.append(
            torch.linalg.vector_norm(mean - part.running_mean) + torch.linalg.vector_norm(var - part.running_var)
        )

    def __enter__(self) -> "_Statistics":
        self.handles = [part.register_forward_pre_hook(self.hook) for part in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def take(self) -> Tensor:
        total = sum(self.seen[1:], self.seen[0])
        self.seen = []
        return total


def bare_inversion(
    teacher: nn.Module,
    shape: Shape,
    k: int,
    seeds: tuple[int, int],
    scale: Tensor,
    options: dict[str, int],
) -> Draw:
    """A bank of inverted images that grows every so many draws. seeds: of the bank and of its rounds."""
    rows, every, capacity, steps = (options[key] for key in ("round", "every", "capacity", "steps"))
    bank, known = torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0, k)
    generator, maker, draws, rounds = torch.Generator(), torch.Generator(), 0, 0

    def invert() -> Tensor:
        maker.manual_seed(derive(seeds[1], rounds + 1))
        x = torch.empty(rows, *shape).normal_(0.5, 0.25, generator=maker).clamp_(0, 1).requires_grad_(True)
        y = torch.randperm(rows, generator=maker) % k
        adam = torch.optim.Adam([x], lr=0.05, betas=(0.5, 0.9))
        best, least = x.detach().clone(), torch.full((), torch.inf)
        with _Statistics(teacher) as statistics:
            for step in range(steps):
                adam.param_groups[0]["lr"] = 0.05 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
                logits = teacher(x)
                loss = cross_entropy(logits, y) + 10.0 * (statistics.take() / scale)
                better = loss.detach() < least
                best = torch.where(better, x.detach(), best)
                least = torch.where(better, loss.detach(), least)
                adam.zero_grad()
                loss.backward()
                adam.step()
                with torch.no_grad():
                    x.clamp_(0, 1)
        return best

    def draw(n: int) -> tuple[Tensor, Tensor]:
        nonlocal bank, known, draws, rounds
        if rounds <= draws // every:
            new = (invert() * 255.0).round().clamp(0, 255).to(torch.uint8)
            with torch.no_grad():
                labels = teacher(new / 255.0)
            room = capacity - rows
            bank, known, rounds = torch.cat([bank[-room:], new]), torch.cat([known[-room:], labels]), rounds + 1
        draws += 1
        generator.manual_seed(derive(seeds[0], draws))
        index = torch.randperm(len(bank), generator=generator)[:n]
        return bank[index] / 255.0, known[index]

    return draw


def bare_synthesis(teacher: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    """One step of n images, shape (n, c, h, w), towards classes and BatchNorm's statistics, by Adam: no more than that.

    Whether the teacher is frozen is the caller's; what gradients it gathers, where it is not, are thrown away.
    """
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    y = torch.arange(shape[0]) % 10
    adam = torch.optim.Adam([x], lr=0.05, betas=(0.5, 0.9))

    def step() -> None:
        with _Statistics(teacher) as statistics:
            loss = cross_entropy(teacher(x), y) + statistics.take()
        adam.zero_grad()
        teacher.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            x.clamp_(0, 1)

    return step


def bare_generative(
    teacher: nn.Module, student: nn.Module, network: nn.Module, seed: int, scale: Tensor, options: dict[str, int]
) -> Draw:
    """A generator that learns every so many draws to disagree, look real to BatchNorm, be sure and be balanced."""
    latent, batch, every = (options[key] for key in ("latent", "batch", "student_steps"))
    adam = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999))
    generator, draws = torch.Generator(), 0

    def learn() -> None:
        network.train()
        student.eval().requires_grad_(False)
        with _Statistics(teacher) as statistics:
            x = network(torch.randn(batch, latent, generator=generator))
            logits = teacher(x)
            log_p = log_softmax(logits, dim=1)
            gap = kl_div(log_softmax(student(x), dim=1), log_p, reduction="batchmean", log_target=True)
            mean = torch.logsumexp(log_p, dim=0) - math.log(batch)
            loss = 10.0 * (statistics.take() / scale) - gap
            loss = loss + cross_entropy(logits, logits.argmax(dim=1)) + 20.0 * (mean.exp() * mean).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        network.eval()
        student.train().requires_grad_(True)

    def draw(n: int) -> tuple[Tensor, None]:
        nonlocal draws
        draws += 1
        generator.manual_seed(derive(seed, draws))
        if (draws - 1) % every == 0:
            learn()
        with torch.no_grad():
            return network(torch.randn(n, latent, generator=generator)), None

    return draw
