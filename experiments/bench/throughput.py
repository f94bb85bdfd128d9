"""How many images a second each sampler makes, and saved generators: of digits, and of 32x32 with a WRN-40-2.

no paper. One draw makes as many images as it gives: banks get a round at every draw, generators that learn beside the
student take their steps at every draw. What a bank or a round shows more often than once is thus not in it. Searches
whose published number of steps would take minutes have fewer here; `at published steps` is what that number makes of
the measured one, by proportion alone. Quick samplers draw so often between two looks at the clock that a wait there
does not weigh. Where a draw by hand is a few lines of plain torch, it is measured in turns with the sampler's.
"""

import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dfkd.interfaces import Sampler
from dfkd.models import build
from dfkd.naming import unknown
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.types import InputSpec, as_device

from .bare import Draw, bare_cutmix, bare_gaussian, bare_mixup, bare_pooled, bare_real, bare_spectrum, bare_uniform
from .usage import peak

__all__ = [
    "BY_HAND",
    "ENTRIES",
    "HEAD",
    "SIZES",
    "Entry",
    "Made",
    "as_json",
    "as_text",
    "block",
    "by_hand",
    "chart",
    "enough",
    "problem_of",
    "saved_generators",
    "throughput",
]

SEED = 0
BLOCK = 0.02
"""Seconds that lie between two looks at the clock, at least."""
LONG = 1.0
"""Seconds from which on a first draw is taken for no slower than the others."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Size:
    """spec, teacher, student; batch: images in a draw. steps: the most of a search, None for all that are published."""

    spec: InputSpec
    teacher: str
    student: str
    batch: int
    steps: int | None


SIZES = {
    "digits": Size(InputSpec((1, 8, 8), 10), "digits_cnn", "digits_cnn", 64, 20),
    "32x32": Size(InputSpec((3, 32, 32), 10), "wrn-40-2", "wrn-16-1", 32, 2),
}


@dataclass(frozen=True)
class Entry:
    """options: of the sampler, beside the batch. steps: what its search is told, None where it has none. base: another
    entry that it draws from. saved: which saved generator it draws from, and by which option. batched: whether it has a
    batch of its own. anew: whether it makes all of its images before the first draw, so that each begins anew."""

    sampler: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    base: str | None = None
    saved: tuple[str, str] | None = None
    batched: bool = True
    anew: bool = False


def _plain(name: str, **options: Any) -> Entry:
    return Entry(name, options, batched=False)


ROUND = {"every": 1, "warmup": 1}
ENTRIES: dict[str, Entry] = {
    "uniform": _plain("uniform"),
    "gaussian": _plain("gaussian"),
    "smoothed": _plain("smoothed"),
    "dead_leaves": _plain("dead_leaves"),
    "spectrum": _plain("spectrum"),
    "shader": _plain("shader"),
    "one_image": _plain("one_image"),
    "real": _plain("real"),
    "mixup": Entry("mixup", base="real", batched=False),
    "cutmix": Entry("cutmix", base="real", batched=False),
    "adversarial": Entry("adversarial", steps=5, base="uniform", batched=False),
    "augmented": Entry("augmented", base="uniform", batched=False),
    "balanced": Entry("balanced", base="uniform", batched=False),
    "mixture": _plain("mixture", samplers=("uniform", "gaussian")),
    "robust": _plain("robust", samplers=("uniform", "gaussian")),
    "pooled": Entry("pooled", {"every": 1}, base="uniform", batched=False),
    "prioritised": Entry("prioritised", {"every": 1}, base="uniform", batched=False),
    "energy": Entry("energy", steps=20),
    "deep_inversion": Entry("deep_inversion", steps=2000),
    "generative": Entry("generative", {"student_steps": 1}),
    "dafl": Entry("dafl"),
    "dfad": Entry("dfad", {"student_steps": 1}),
    "zskt": Entry("zskt", {"student_steps": 1}),
    "dfq": Entry("dfq", {"student_steps": 1}),
    "mad": Entry("mad", {"student_steps": 1}),
    "pre_dfkd": Entry("pre_dfkd", {"student_steps": 1}),
    "cmi": Entry("cmi", {**ROUND, "negatives": 64}, steps=200),
    "fast_dfkd": Entry("fast_dfkd", {"every": 1, "warmup": 0}, steps=5),
    "nayer": Entry("nayer", {"every": 1, "warmup": 0, "rounds": 1}, steps=40),
    "sre2l": Entry("sre2l", {"rounds": 1}, steps=1000, anew=True),
    "ssd_kd": Entry("ssd_kd", {"every": 1, "warmup": 1}, steps=5),
    "spaceshipnet": Entry("spaceshipnet", {"every": 1}, steps=200),
    "gan": Entry("gan", saved=("sn_gan", "file")),
    "gan, searched": Entry("gan", steps=10, saved=("sn_gan", "file")),
    "diffusion, 20 steps of dpm_solver": Entry(
        "diffusion", {"scheduler": "dpm_solver"}, 20, saved=("diffusion", "folder")
    ),
    "diffusion, 1000 steps of ddpm": Entry("diffusion", {"scheduler": "ddpm"}, 1000, saved=("diffusion", "folder")),
}
"""Every sampler of the table but those that read images of another domain, which nothing here has."""

BY_HAND = ("uniform", "gaussian", "spectrum", "real", "mixup", "cutmix", "pooled")
"""What has a draw in plain torch beside it, of the same images."""

ALL_STEPS = ("diffusion, 20 steps of dpm_solver", "diffusion, 1000 steps of ddpm")
"""What is compared by its number of steps has all of them, however long that takes, where images are small."""


@dataclass(frozen=True)
class Made:
    """per_second: images, median over repetitions, and its extremes. memory: the most bytes that the sampler needed
    beyond what was there before it, None where it cannot be told. steps: of the search; published: as authors have it,
    None where they have none. draws: between two looks at the clock. ratio: seconds over those of a draw by hand, the
    median and the extremes; None where there is none. why: of what could not be measured; nothing else is said then."""

    size: str
    name: str
    batch: int
    per_second: float = 0.0
    extremes: tuple[float, float] = (0.0, 0.0)
    memory: int | None = None
    steps: int | None = None
    published: int | None = None
    repetitions: int = 0
    draws: int = 1
    ratio: tuple[float, float, float] | None = None
    why: str = ""

    @property
    def at_published(self) -> float | None:
        """Images a second, were the steps as many as published and all that there is."""
        if self.steps is None or self.published is None or self.steps == self.published:
            return None
        return self.per_second * self.steps / self.published


HEAD = (
    f"{'images':8} {'sampler':36} {'batch':>5}  {'images / s':>10}  {'min to max':>21}  "
    f"{'ours / bare':>11}  {'MiB':>7}  {'steps':>11}  at published steps"
)


def throughput(
    repetitions: int = 5, clock: Clock = time.perf_counter, only: Sequence[str] | None = None, device: str = "cpu"
) -> Iterator[Made]:
    """A row for each size and sampler as it is measured. ValueError for a name or a device that is not there."""
    for name in only or ():
        if name not in ENTRIES:
            raise unknown("sampler", name, list(ENTRIES))
    torch.set_num_threads(1)  # here, as what is said of the machine before the first row says how many there are
    return _rows(repetitions, clock, only or tuple(ENTRIES), as_device(device))


def _rows(repetitions: int, clock: Clock, names: Sequence[str], device: torch.device) -> Iterator[Made]:
    with TemporaryDirectory() as folder:
        for size in SIZES:
            problem = problem_of(size, device)
            saved: dict[str, str] = {}
            for name in names:
                yield measured(size, name, problem, repetitions, clock, Path(folder) / size, saved)


def measured(
    size: str, name: str, problem: Problem, repetitions: int, clock: Clock, folder: Path, saved: dict[str, str]
) -> Made:
    """One row, whatever fails. saved: the files of saved generators by kind, made where they are first needed."""
    entry, about = ENTRIES[name], SIZES[size]
    steps = _steps(entry, name, about)
    row = Made(size, name, about.batch, steps=steps, published=entry.steps)
    gc.collect()
    if problem.device.type == "cuda":
        torch.cuda.empty_cache()  # of what may have failed before for want of memory
    try:
        if entry.saved is not None and entry.saved[0] not in saved:
            saved[entry.saved[0]] = saved_generators(entry.saved[0], problem, folder)
        return _timed(row, _sampler(entry, about, steps, saved), problem, repetitions, clock)
    except (UnsupportedProblem, ImportError, ValueError) as error:
        return dataclasses.replace(row, why=_one_line(error))
    except Exception as error:  # out of memory, say: other samplers may do with less
        return dataclasses.replace(row, why=f"{type(error).__name__}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _timed(row: Made, sampler: Sampler, problem: Problem, repetitions: int, clock: Clock) -> Made:
    """The row with its numbers: blocks of draws, in turns with as many by hand where there are such."""
    anew, seed, device = ENTRIES[row.name].anew, derive(SEED, row.name), problem.device

    def draw() -> None:
        sampler.draw(state, problem, row.batch)

    with peak(device) as held:
        state = sampler.init(problem, seed)
        draws = 1
        if block(draw, 1, device, clock) < LONG and not anew:
            draws = enough(draw, device, clock)
    bare = None
    if row.name in BY_HAND:
        require_same(row.name, sampler, problem, row.batch)
        bare = by_hand(row.name, sampler, sampler.init(problem, seed), problem)
        block(lambda: bare(row.batch), draws, device, clock)
    ours, theirs = list[float](), list[float]()
    for _ in range(repetitions):
        if anew:
            state = sampler.init(problem, seed)
        ours.append(block(draw, draws, device, clock))
        if bare is not None:
            theirs.append(block(lambda: bare(row.batch), draws, device, clock))
    rates = [row.batch * draws / seconds for seconds in ours]
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    return dataclasses.replace(
        row,
        per_second=median(rates),
        extremes=(min(rates), max(rates)),
        memory=held.bytes,
        repetitions=len(rates),
        draws=draws,
        ratio=(median(ratios), min(ratios), max(ratios)) if ratios else None,
    )


def block(step: Callable[[], object], times: int, device: torch.device, clock: Clock) -> float:
    """Seconds of so many steps, > 0, with one wait before and one after."""
    _wait(device)
    began = clock()
    for _ in range(times):
        step()
    _wait(device)
    return max(clock() - began, 1e-9)


def enough(step: Callable[[], object], device: torch.device, clock: Clock) -> int:
    """How many steps take BLOCK, found by taking more and more of them."""
    times = 1
    while (seconds := block(step, times, device, clock)) < BLOCK:
        times = min(max(math.ceil(1.2 * times * BLOCK / seconds), 2 * times), 16 * times)
    return times


def by_hand(name: str, sampler: Any, state: Any, problem: Problem) -> Draw:
    """Draws in plain torch that begin where the state does. name: of BY_HAND; the box is [0, 1]."""
    shape, device = problem.spec.shape, problem.device
    if name == "real":
        return bare_real(state.images.x, state.seed)
    if name in ("mixup", "cutmix"):
        blend = bare_mixup if name == "mixup" else bare_cutmix
        return blend(by_hand("real", sampler.base, state.base, problem), state.stream.seed, device)
    if name == "pooled":
        base = by_hand("uniform", sampler.base, state.base, problem)
        return bare_pooled(base, shape, sampler.round, sampler.capacity, state.stream.seed, device)
    plain = {"uniform": bare_uniform, "gaussian": bare_gaussian, "spectrum": bare_spectrum}
    return plain[name](shape, state.stream.seed, device)


def require_same(name: str, sampler: Sampler, problem: Problem, n: int, draws: int = 6) -> None:
    """ValueError unless the draws by hand are those of the sampler, up to rounding."""
    seed = derive(SEED, name)
    state, bare = sampler.init(problem, seed), by_hand(name, sampler, sampler.init(problem, seed), problem)
    for _ in range(draws):
        ours, theirs = sampler.draw(state, problem, n).x, bare(n)[0]
        gap = (ours - theirs).abs().max().item()  # sync
        if not gap < 1e-4:
            raise ValueError(f"{name}: expected the same images by hand, found some {gap:.2g} apart")


def _steps(entry: Entry, name: str, size: Size) -> int | None:
    if entry.steps is None or size.steps is None or (name in ALL_STEPS and size.spec.height <= 8):
        return entry.steps
    return min(entry.steps, size.steps)


def _sampler(entry: Entry, size: Size, steps: int | None, saved: Mapping[str, str]) -> Sampler:
    kind = find("sampler", entry.sampler, SAMPLERS)
    options = dict(entry.options)
    if entry.batched:
        options["batch"] = size.batch
    if steps is not None:
        options["steps"] = steps
    if entry.sampler in ("pooled", "prioritised"):
        options |= {"round": size.batch, "capacity": 4 * size.batch}  # soon full: each draw costs what the last one did
    if entry.sampler == "pre_dfkd":
        options |= {"memory_new": size.batch // 2, "memory_old": size.batch // 4}
    if entry.sampler == "real":
        options["data"] = real_data(size.spec)
    if entry.base is not None:
        options["base"] = _sampler(ENTRIES[entry.base], size, None, saved)
    if "samplers" in options:
        options["samplers"] = tuple(_sampler(ENTRIES[one], size, None, saved) for one in options["samplers"])
    if entry.saved is not None:
        options[entry.saved[1]] = saved[entry.saved[0]]
    made: Sampler = kind(**options)
    return made


def real_data(spec: InputSpec) -> str:
    """Digits, or a file of noise of their shape: what is in it costs nothing."""
    from .overhead import _noise_file

    return "digits" if spec.shape == (1, 8, 8) else _noise_file(spec)


def problem_of(size: str, device: torch.device) -> Problem:
    """Both networks with weights of their own; the teacher has seen noise, so that its statistics are not none's."""
    about = SIZES[size]
    with initialised(derive(SEED, size)):
        teacher, student = (build(net, about.spec) for net in (about.teacher, about.student))
        with torch.no_grad():
            for _ in range(3):
                teacher.train()(torch.rand(about.batch, *about.spec.shape))
    probes = Probe(teacher.eval(), about.spec, device), Probe(student, about.spec, device, name="student")
    return Problem(*probes, about.spec, device, seed=SEED)


def saved_generators(kind: str, problem: Problem, folder: Path, steps: int = 3) -> str:
    """The file (or folder) of a generator of classes that has learnt a few steps of noise: how fast is all we ask."""
    if kind == "diffusion":
        from generators.diffusion import Diffusion

        settings: Any = Diffusion()
    else:
        from generators.sn_gan_training import SNGAN

        settings = SNGAN()
    spec, device = problem.spec, problem.device
    trainee = settings.init(spec.shape, spec.num_classes, (spec.low, spec.high), steps, device, SEED)
    rng = torch.Generator(device).manual_seed(SEED)
    rows = (torch.rand(8, *spec.shape, device=device), torch.arange(8, device=device) % spec.num_classes)
    for _ in range(steps):
        trainee.step([rows] * trainee.batches, rng)
    about = {"kind": settings.name, "shape": list(spec.shape), "low": spec.low, "high": spec.high}
    about |= {"classes": spec.num_classes, "class_names": None, "options": dataclasses.asdict(settings)}
    noise = {"source": "noise", "digest": "0", "size": None, "limit": None}
    return str(trainee.save(folder / kind, {**about, "trained_on": noise, "steps": steps, "seed": SEED}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # sync


def as_json(made: Made) -> str:
    line: dict[str, Any] = {"images": made.size, "sampler": made.name, "batch": made.batch}
    if made.why:
        return json.dumps({**line, "why": made.why})
    low, high = made.extremes
    line |= {"images_per_second": made.per_second, "images_per_second_min": low, "images_per_second_max": high}
    if made.ratio is not None:
        line |= dict(zip(("ratio", "ratio_min", "ratio_max"), made.ratio, strict=True))
    line |= {
        "peak_bytes": made.memory,
        "repetitions": made.repetitions,
        "draws": made.draws,
        "steps": made.steps,
        "published_steps": made.published,
    }
    line["images_per_second_at_published_steps"] = made.at_published
    return json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()})


def as_text(made: Made) -> str:
    head = f"{made.size:8} {made.name:36} {made.batch:5}  "
    if made.why:
        return f"{head}{made.why}"
    steps = "-" if made.steps is None else f"{made.steps} of {made.published}"
    scaled = "-" if made.at_published is None else f"{made.at_published:.3g}"
    low, high = made.extremes
    ratio = "-" if made.ratio is None else f"{made.ratio[0]:.3f}"
    memory = "-" if made.memory is None else f"{made.memory / 2**20:.1f}"
    rates = f"{made.per_second:10.4g}  {f'{low:.4g} to {high:.4g}':>21}"
    return f"{head}{rates}  {ratio:>11}  {memory:>7}  {steps:>11}  {scaled}"


def chart(rows: Sequence[Made], file: Path) -> None:
    """Bars of images a second, a panel for each kind of images, on one logarithmic scale; what failed has none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(made.size for made in rows))
    most = max(sum(made.size == size for made in rows) for size in sizes)
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(5.0 * len(sizes), 0.8 + 0.2 * most), squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        own = [made for made in reversed(rows) if made.size == size and not made.why]
        panel.barh([made.name for made in own], [made.per_second for made in own], height=0.7, color="#4477aa")
        panel.set_xscale("log")
        panel.set_xlabel(f"images a second ({size})")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
