"""What `dfkd train-generator` does once its settings are read: a generator learns the images that the user named.

A step's rows are drawn at random from a stream of the seed and the step, so a run stands at its number of steps. Losses
are summed on the device and looked at at log points; where one, or anything that is saved, is not finite the run stops
and the last good checkpoint stays.
"""

import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dfkd import checkpoint as files
from dfkd.augment import flip
from dfkd.bank import made_from
from dfkd.config import GeneratorBudget, GeneratorConfig, generator
from dfkd.files import replace_file
from dfkd.pixels import to_bytes
from dfkd.report.pictures import png
from dfkd.rng import Stream, derive
from dfkd.runtime import Bar, Interruption, agree, clock
from dfkd.types import InputSpec, as_device, tensors_in

__all__ = ["CARD", "Plan", "planned", "sheet", "train"]

CARD = "card.json"
"""Written last: a folder that has it is done."""

COLUMNS = 8
"""Images beside one another on a sheet; those of one class where there are classes."""

_ROWS = 8  # of a sheet without classes
_LEAST_SIDE = 32  # smaller images are enlarged on sheets, to a multiple of their size
_CLASSES_SHOWN = 100
_GRIDS, _LOGS = 10, 100

Status = Literal["ok", "diverged", "interrupted"]


@dataclass(frozen=True)
class Plan:
    """config: with nothing left open. settings: of the generator's kind. dataset: a dfkd.data.Dataset."""

    config: GeneratorConfig
    settings: Any
    dataset: Any

    @property
    def classes(self) -> int | None:
        known: int = self.dataset.spec.num_classes
        return known if self.config.conditional else None


def planned(config: GeneratorConfig) -> Plan:
    """Reads the data, and decides what the user left open: steps, batch, how often a sheet is written."""
    from dfkd.data import load  # here, so that a data-free run never imports it

    settings = generator(config.generator)
    dataset = load(config.data, size=config.size, limit=config.limit)
    steps, batch = settings.usual(dataset.spec.shape)
    budget = GeneratorBudget(config.budget.steps or steps, config.budget.batch or batch)
    assert budget.steps is not None  # just set
    every = config.grid_every or max(1, budget.steps // _GRIDS)
    return Plan(replace(config, budget=budget, grid_every=every), settings, dataset)


def train(plan: Plan, out: Path, show_progress: bool = False) -> tuple[Status, dict[str, Any]]:
    """Trains, or goes on where the folder's checkpoint stands; how it ended, and the card of what was saved.

    Where it did not end well nothing is saved but the checkpoint, and the card says at which step that was.
    """
    if (out / CARD).exists():
        return "ok", _finished(out)
    run = _Run(plan, out)
    run.resume()
    with Interruption().watching() as interruption, closing(Bar(plan.settings.name, show_progress)) as bar:
        status = _loop(run, interruption, bar)
    if status != "ok":
        return status, {"status": status, "steps": run.steps, "saved_at": run.saved_at}
    card = run.finish()
    replace_file(out / CARD, (json.dumps(card, indent=1) + "\n").encode())
    run.checkpoint.unlink(missing_ok=True)
    return "ok", card


def _finished(out: Path) -> dict[str, Any]:
    """The card of a folder that is done; ValueError where what it speaks of is gone."""
    try:
        card: dict[str, Any] = json.loads((out / CARD).read_text(encoding="utf-8"))
        gone = not (out / card["file"]).exists()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"out: {out / CARD} cannot be read; name another folder ({error})") from error
    if gone:
        raise ValueError(f"out: {out} was done, but {card['file']} is gone; delete {out / CARD} to train it again")
    return card


SAVED_EVERY = 60.0
"""Seconds from one checkpoint to the next; each sheet has one too."""


def _loop(run: "_Run", interruption: Interruption, bar: Bar) -> Status:
    saved = time.monotonic()
    while not run.done:
        run.step()
        stopping = agree(interruption.requested)
        saving = run.at_sheet or stopping or agree(time.monotonic() - saved >= SAVED_EVERY)
        if (saving or run.at_log) and agree(not run.finite(saving)):
            return "diverged"
        if run.at_log:
            run.log()
        if run.at_sheet:
            run.draw_sheet()
        if saving:
            run.save()
            saved = time.monotonic()
        if stopping and not run.done:
            return "interrupted"
        bar.update(run.steps / run.budget.steps, run.note)
    return "ok"


class _Run:
    """What changes in a training, and the step that changes it."""

    def __init__(self, plan: Plan, out: Path) -> None:
        config, spec = plan.config, plan.dataset.spec
        self.plan, self.out, self.device = plan, out, as_device(config.device)
        self.budget: Any = config.budget  # whole numbers, since it was planned
        self.checkpoint = out / "checkpoint"
        self.spec: InputSpec = spec
        self.images = plan.dataset.train.to(self.device)
        self.trainee = _trainee(plan, self.device)
        self.stream = Stream(derive(config.seed, "steps"), self.device)
        self.saved_at: int | None = None
        self.seconds_before, self.began = 0.0, clock(self.device)
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.curve: list[dict[str, float]] = []

    # -- where it stands -----------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        return self.stream.step

    @property
    def done(self) -> bool:
        return self.steps >= int(self.budget.steps)

    @property
    def at_sheet(self) -> bool:
        assert self.plan.config.grid_every is not None  # planned
        return self.done or self.steps % self.plan.config.grid_every == 0

    @property
    def at_log(self) -> bool:
        return self.at_sheet or self.steps % max(1, self.budget.steps // _LOGS) == 0

    @property
    def note(self) -> str:
        last = self.curve[-1] if self.curve else {}
        losses = "  ".join(f"{name} {last[name]:.3f}" for name in last if name not in ("step", "seconds"))
        return f"step {self.steps}  {losses}"

    def _seconds(self) -> float:
        return self.seconds_before + clock(self.device) - self.began

    # -- one step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        rng = self.stream.advance()
        batches = [self._real(rng) for _ in range(self.trainee.batches)]
        for name, loss in self.trainee.step(batches, rng).items():
            self.sums[name] = self.sums.get(name, 0.0) + loss.double()
        self.summed += 1

    def _real(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A batch of the images, mirrored half of the time where that is wanted."""
        index = torch.randint(len(self.images), (self.budget.batch,), generator=rng, device=self.device)
        x = self.images.pixels(index, self.spec)
        if self.plan.config.flip:
            x = flip(x, rng)
        return x, self.images.y[index] if self.plan.config.conditional else None

    # -- log points ----------------------------------------------------------------------------------------------

    def finite(self, everything: bool) -> bool:
        """Whether the losses are; everything: and all that is saved."""
        parts = list(self.sums.values())
        if everything:
            parts += [leaf for leaf in tensors_in(self.trainee.state_dict()) if leaf.is_floating_point()]
        return all(bool(torch.isfinite(part).all()) for part in parts)  # sync

    def log(self) -> None:
        means = {name: float(total) / self.summed for name, total in self.sums.items()}  # sync
        self.curve.append({"step": self.steps, "seconds": self._seconds(), **means})
        self.sums, self.summed = {}, 0

    def draw_sheet(self) -> None:
        """The same latents at every such point, so that sheets show how they change; a row for each class."""
        rng = torch.Generator(self.device).manual_seed(derive(self.plan.config.seed, "sheet"))
        rows, classes = _ROWS, self.plan.classes
        y = None
        if classes is not None:
            rows = min(classes, _CLASSES_SHOWN)
            y = torch.arange(rows, device=self.device).repeat_interleave(COLUMNS)
        levels = to_bytes(self.trainee.sample(rows * COLUMNS, y, rng), self.spec)
        width = max(6, len(str(self.budget.steps)))
        replace_file(self.out / "samples" / f"{self.steps:0{width}d}.png", png(sheet(levels, COLUMNS)))
        lines = "".join(json.dumps(line) + "\n" for line in self.curve)
        replace_file(self.out / "curve.jsonl", lines.encode())

    # -- to be saved and put back --------------------------------------------------------------------------------

    @property
    def _identity(self) -> str:
        return f"generator: {self.plan.config!r} {self.plan.settings!r} on {self.plan.dataset.digest}"

    def save(self) -> None:
        state = {
            "trainee": self.trainee.state_dict(),
            "stream": self.stream.state_dict(),
            "seconds": self._seconds(),
            "sums": self.sums,
            "summed": self.summed,
            "curve": self.curve,
        }
        files.save(self.checkpoint, state, self._identity, self.device)
        self.saved_at = self.steps

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = files.load(self.checkpoint, self._identity, self.device)
        self.trainee.load_state_dict(state["trainee"])
        self.stream.load_state_dict(state["stream"])
        self.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self.summed, self.curve = state["summed"], list(state["curve"])
        self.seconds_before, self.began = state["seconds"], clock(self.device)
        self.saved_at = self.steps

    def finish(self) -> dict[str, Any]:
        """Saves the generator; what there is to say of it."""
        plan, config, spec = self.plan, self.plan.config, self.spec
        named = config.conditional and spec.class_names is not None
        description = {
            "kind": plan.settings.name,
            "shape": list(spec.shape),
            "low": spec.low,
            "high": spec.high,
            "classes": plan.classes,
            "class_names": list(spec.class_names or ()) if named else None,
            "options": asdict(plan.settings),
            "trained_on": self._trained_on(),
            "steps": self.steps,
            "seed": config.seed,
        }
        path = self.trainee.save(self.out, description)
        last = {name: value for name, value in self.curve[-1].items() if name not in ("step", "seconds")}
        return {
            "file": path.name,
            "status": "ok",
            "seconds": self._seconds(),
            "losses": last,
            "rows": len(self.images),
            **description,
        }

    def _trained_on(self) -> dict[str, Any]:
        """The data; and of a bank, which may be gone one day, what it was made from."""
        config, made = self.plan.config, made_from(self.plan.config.data)
        data = {"source": config.data, "digest": self.plan.dataset.digest, "size": config.size, "limit": config.limit}
        return data if made is None else {**data, "made_from": made}


def _trainee(plan: Plan, device: torch.device) -> Any:
    config, spec, kind = plan.config, plan.dataset.spec, plan.settings.name
    assert config.budget.steps is not None  # planned
    seed = derive(config.seed, "init")
    try:
        return plan.settings.init(spec.shape, plan.classes, (spec.low, spec.high), config.budget.steps, device, seed)
    except ValueError as error:
        if not str(error).startswith("shape: "):
            raise
        said = str(error).removeprefix("shape: ")
        raise ValueError(f"size: {kind}: {said} in {config.data!r}; name a size that it makes, as size=32") from error


def sheet(levels: Tensor, columns: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """(n, c, h, w) uint8, n a multiple of columns -> (c, rows * H, columns * W): row by row, H and W the sides enlarged
    to at least 32 pixels by a whole factor."""
    n, c, h, w = levels.shape
    if n % columns:
        raise ValueError(f"columns: expected a divisor of {n} images, found {columns}")
    factor = -(-_LEAST_SIDE // min(h, w)) if min(h, w) < _LEAST_SIDE else 1
    large = levels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    laid = large.view(n // columns, columns, c, factor * h, factor * w).permute(2, 0, 3, 1, 4)
    return laid.reshape(c, n // columns * factor * h, columns * factor * w).cpu().numpy()  # sync
