"""Draws of a sampler kept as a bank: what `dfkd synthesize` does once its settings are read.

One draw is one shard. After each the state of the sampler is saved, so that a run that was interrupted goes on with the
next draw and leaves the same bank as one that was not, bit for bit on a CPU. Nothing is learnt from the draws that are
kept: a sampler that follows the student learns from others first, as for `dfkd scout`, with a student that stays as it
is. What such a sampler becomes beside a student that learns is not what is drawn here.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dfkd import checkpoint
from dfkd.bank import FORMAT, INDEX, digest, read_index, shard_name, shards
from dfkd.files import replace_file
from dfkd.interfaces import Sampler
from dfkd.pixels import to_bytes, to_pixels
from dfkd.problem import PHASES, Problem
from dfkd.rng import derive
from dfkd.runtime import Bar, Interruption, agree, arithmetic
from dfkd.scouting import learn
from dfkd.types import Batch

__all__ = ["Settings", "synthesize"]

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Settings:
    """n: images in all, >= 1. rows: of one draw and one shard, >= 1. learn: draws that a sampler which follows the
    student learns from first, >= 0. seed: of all random streams.
    """

    n: int
    rows: int = 256
    learn: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("rows", 1), ("learn", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer >= {least}, found {value!r}")


def synthesize(
    sampler: Sampler,
    problem: Problem,
    settings: Settings,
    folder: Path,
    about: Mapping[str, Any],
    show_progress: bool = False,
) -> dict[str, Any]:
    """Draws what is missing of the bank in the folder; its index. A bank that is whole is checked and left alone.

    about: what the index is to say of the sampler, its sources and the teacher. ValueError where a shard is damaged or
    cannot be written, and where the draws are not finite; KeyboardInterrupt where SIGTERM came.
    """
    bank = _Bank(sampler, problem, settings, folder, about)
    if bank.complete():
        return bank.index
    bar = Bar("synthesize", show_progress)
    before = [(part, part.training) for probe in (problem.teacher, problem.student) for part in probe.module.modules()]
    with ExitStack() as stack:
        stack.callback(bar.close)
        stack.callback(lambda: _put_back(before))
        interruption = stack.enter_context(Interruption().watching())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(problem.device.type, enabled=False))
        stack.enter_context(arithmetic(problem.teacher.precision))
        stack.enter_context(problem.teacher.frozen())
        stack.enter_context(problem.teacher.counting("synthesise"))
        for part, _ in before:
            part.training = False
        bank.begin()
        while not bank.done:
            if agree(interruption.requested):
                raise KeyboardInterrupt
            bar.update(bank.index["rows"] / settings.n, f"{bank.index['rows']} of {settings.n}")
            bank.draw()
    return bank.index


def _put_back(modes: list[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        part.training = training


def write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes it whole or not at all; its entry for the index. ValueError where it cannot be written."""
    content = save({name: value.contiguous() for name, value in tensors.items()})
    replace_file(folder / shard_name(number), content)
    counts = torch.bincount(tensors["label"], minlength=tensors["logits"].shape[1]).tolist()
    entry = {"file": shard_name(number), "rows": len(tensors["x"]), "digest": digest(content), "counts": counts}
    if "target" in tensors:
        entry["as_aimed"] = int((tensors["target"] == tensors["label"]).sum())
    return entry


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    replace_file(folder / INDEX, (json.dumps({"format": FORMAT, **index}, indent=1) + "\n").encode())


class _Bank:
    """A bank that is being drawn: its index as it stands on disk, and the state of the sampler after its last shard."""

    def __init__(
        self, sampler: Sampler, problem: Problem, settings: Settings, folder: Path, about: Mapping[str, Any]
    ) -> None:
        self._sampler, self._problem, self._settings, self._folder = sampler, problem, settings, folder
        self._state: Any = None
        spec = problem.spec
        self.index: dict[str, Any] = {
            "rows": 0,
            "wanted": settings.n,
            "shape": list(spec.shape),
            "num_classes": spec.num_classes,
            "class_names": None if spec.class_names is None else list(spec.class_names),
            "box": [spec.low, spec.high],
            **about,
            "seed": settings.seed,
            "rows_per_draw": settings.rows,
            "learned_from": 0,
            "labelling": None,
            "teacher_images": 0,
            "counts": [0] * spec.num_classes,
            "as_aimed": None,
            "shards": [],
        }

    @property
    def done(self) -> bool:
        return bool(self.index["rows"] == self._settings.n)

    def complete(self) -> bool:
        """Whether the bank on disk is whole; ValueError where a shard of it is damaged."""
        if not (self._folder / INDEX).exists():
            return False
        there = read_index(self._folder)
        if there["rows"] != self._settings.n:
            return False
        for _ in shards(self._folder, there):
            pass  # each is checked as it is read
        self.index = there
        (self._folder / CHECKPOINT).unlink(missing_ok=True)  # of a process that ended just before it did this
        return True

    def begin(self) -> None:
        """The state to draw with: new, or as it was after the last shard of an interrupted run."""
        problem, settings, file = self._problem, self._settings, self._folder / CHECKPOINT
        self._state = self._sampler.init(problem, derive(settings.seed, "sampler"))
        if file.exists() and (self._folder / INDEX).exists():
            there = read_index(self._folder)
            saved = checkpoint.load(file, self._identity, problem.device)
            self._state.load_state_dict(saved["state"])
            for phase in PHASES:
                problem.teacher.counts[phase] = dict(saved["counts"][phase])
            for shard in there["shards"][: saved["shards"]]:
                self._count(shard)
            for _ in shards(self._folder, self.index):
                pass  # each is checked as it is read
            for name in ("learned_from", "labelling"):
                self.index[name] = saved[name]
            write_index(self._folder, self.index)  # the draw after the checkpoint's is made again
            return
        file.unlink(missing_ok=True)  # of a bank whose index was deleted: it is not of the shards that come now
        self.index["learned_from"] = learn(self._sampler, self._state, problem, settings.learn)

    @property
    def _identity(self) -> str:
        return f"synthesize {self._settings!r} {self._sampler!r}"

    def draw(self) -> None:
        """The next shard, the index with it, and the state after it, in this order."""
        rows = min(self._settings.rows, self._settings.n - self.index["rows"])
        tensors, mode = self._drawn(rows)
        self._count(write_shard(self._folder, len(self.index["shards"]), tensors))
        self.index["labelling"] = mode if self.index["labelling"] in (None, mode) else "mixed"
        self.index["teacher_images"] = self._problem.teacher.images
        write_index(self._folder, self.index)
        file = self._folder / CHECKPOINT
        if self.done:
            file.unlink(missing_ok=True)
            return
        saved = {
            "state": self._state.state_dict(),
            "counts": {phase: dict(self._problem.teacher.counts[phase]) for phase in PHASES},
            "shards": len(self.index["shards"]),
            **{name: self.index[name] for name in ("learned_from", "labelling")},
        }
        checkpoint.save(file, saved, self._identity, self._problem.device)

    def _drawn(self, rows: int) -> tuple[dict[str, Tensor], str]:
        """One draw as it is kept, rounded to bytes and then labelled, and the BatchNorm mode of its labels."""
        problem = self._problem
        batch = self._sampler.draw(self._state, problem, rows, learn=False)
        if not bool(batch.x.isfinite().all()):  # sync
            raise ValueError(
                f"sampler: expected finite images, found others in draw {len(self.index['shards'])}; "
                "a lower learning rate of what makes them may help"
            )
        x = to_bytes(batch.x, problem.spec)
        logits = problem.label(Batch(to_pixels(x, problem.spec), labelling=batch.labelling)).logits
        if not bool(logits.isfinite().all()):  # sync
            raise ValueError(f"teacher: expected finite logits of draw {len(self.index['shards'])}, found others")
        tensors = {"x": x, "logits": logits, "label": logits.argmax(dim=1)}
        if batch.target is not None and batch.target.dtype == torch.int64:
            tensors["target"] = batch.target
        modes = {mode for _, mode in batch.labelling}
        return {name: value.cpu() for name, value in tensors.items()}, modes.pop() if len(modes) == 1 else "mixed"

    def _count(self, shard: dict[str, Any]) -> None:
        """Lists a shard that is there."""
        index = self.index
        index["shards"].append(shard)
        index["rows"] += shard["rows"]
        index["counts"] = [a + b for a, b in zip(index["counts"], shard["counts"], strict=True)]
        if "as_aimed" in shard:
            index["as_aimed"] = (index["as_aimed"] or 0) + shard["as_aimed"]
