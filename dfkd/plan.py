"""What a comparison is asked to do: its settings, what is scored, and where each run of it is kept."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.engine import Budget, Optimiser
from dfkd.fidelity.corruptions import parse_corruption
from dfkd.fidelity.recalibrate import SCORING
from dfkd.interfaces import Sampler, preset_of
from dfkd.losses import KL, Objective, combine
from dfkd.losses.features import Pairs, checked_pairs
from dfkd.naming import unknown
from dfkd.problem import PRECISIONS
from dfkd.rng import derive
from dfkd.schemes.from_teacher import FromTeacher
from dfkd.schemes.offline import Student
from dfkd.schemes.together import Together
from dfkd.types import InputSpec

if TYPE_CHECKING:
    from dfkd.data import Dataset

__all__ = [
    "COLUMNS",
    "Evaluation",
    "Settings",
    "as_published",
    "bank_file",
    "check_choices",
    "check_plan",
    "check_presets",
    "read_record",
    "reference_of",
    "run_folder",
    "some_rows",
]

COLUMNS = ("test", "corrupted", "uniform", "draws", "worst_case")


@dataclass(frozen=True)
class Evaluation:
    """On what the students are scored.

    columns: which of test, corrupted (the test set, damaged), uniform (noise), draws (of each sampler), worst_case.
    corruptions: `name@severity`, severity 1 to 5. epsilons: half width of the worst-case ball in 1/255 of the box;
    worst_case_steps and worst_case_restarts of its search; worst_case_around: `test` or a sampler's label. rows: how
    many rows of noise and of each sampler are drawn. worst_case_rows: how many rows are searched; None searches all.
    features: module paths [[student's, teacher's], ...] whose likeness is measured; None for the penultimate features
    where both models have them. feature_rows: on so many rows of each column.
    quality_rows: how many draws of a sampler are set beside as many rows of labelled data (and ten times as many
    training rows), 0 sets none. beside: BatchNorm modes in which students are scored too, of eval, batch and
    recalibrated, as `agreement_batch`; None for eval where students with BatchNorm are compared in another.
    recalibrate_on: the sampler on whose draws statistics are estimated anew, None for each student's own.
    losses: by label, measured as `loss@LABEL` on feature_rows rows of each column; see dfkd.fidelity.distances.
    """

    columns: tuple[str, ...] = COLUMNS
    corruptions: tuple[str, ...] = ("noise@3", "blur@3", "contrast@3")
    epsilons: tuple[float, ...] = (2.0, 8.0)
    worst_case_steps: int = 10
    worst_case_restarts: int = 2
    worst_case_around: str = "test"
    worst_case_rows: int | None = 1000
    rows: int = 1000
    # not written where they are not set: folders that were begun before these were settings go on
    features: Pairs | None = field(default=None, metadata={"unless": None})
    feature_rows: int = field(default=1000, metadata={"unless": 1000})
    quality_rows: int = field(default=1000, metadata={"unless": 1000})
    beside: tuple[str, ...] | None = field(default=None, metadata={"unless": None})
    recalibrate_on: str | None = field(default=None, metadata={"unless": None})
    losses: Mapping[str, Any] = field(default_factory=dict, metadata={"unless": {}})

    def __post_init__(self) -> None:
        if self.features:
            object.__setattr__(self, "features", checked_pairs(self.features, "features"))
        for column in self.columns:
            if column not in COLUMNS:
                raise unknown("columns", column, COLUMNS)
        for mode in self.beside or ():
            if mode not in SCORING:
                raise unknown("beside", mode, SCORING)
        if not self.columns:
            raise ValueError(f"columns: expected at least one of {', '.join(COLUMNS)}, found none")
        for corruption in self.corruptions:
            parse_corruption(corruption)
        for name in ("rows", "worst_case_rows", "worst_case_steps", "worst_case_restarts", "feature_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")
        if self.quality_rows < 0:
            raise ValueError(f"quality_rows: expected an integer >= 0, found {self.quality_rows!r}")
        if any(not 0.0 < epsilon < 255.0 for epsilon in self.epsilons):
            raise ValueError(f"epsilons: expected numbers between 0 and 255, found {self.epsilons!r}")


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "precision": (None, *PRECISIONS),
    "student_train": ("train", "fixed"),
    "student_score": SCORING,
}


@dataclass(frozen=True)
class Settings:
    """All that a run of a comparison needs, in another process too."""

    teacher: nn.Module
    student: Student
    samplers: Mapping[str, Sampler]
    spec: InputSpec
    data: "Dataset | None" = None
    control_teacher: nn.Module | None = None
    control_seeds: int | None = None
    objective: Objective = field(default_factory=lambda: combine({"kl": (1.0, KL(temperature=4.0))}))
    budget: Budget = field(default_factory=lambda: Budget(steps=2000))
    optimiser: Optimiser = field(default_factory=Optimiser)
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluate: Evaluation = field(default_factory=Evaluation)
    device: str = "cpu"
    precision: str | None = None
    compile: bool = False
    student_train: str = "train"
    student_score: str = "eval"
    preset: bool = False

    def __post_init__(self) -> None:
        check_plan(self)

    def training(self, label: str) -> tuple[Objective, Optimiser, Budget]:
        """How the student of this sampler is trained: as all are, or, with `preset`, as its recipe's authors did."""
        shared = self.objective, self.optimiser, self.budget
        return as_published(self.samplers[label], self.spec, *shared) if self.preset else shared

    @property
    def controlled(self) -> tuple[int, ...]:
        """The seeds at which a control student is trained too."""
        if self.control_teacher is None:
            return ()
        return self.seeds if self.control_seeds is None else self.seeds[: self.control_seeds]


def as_published(
    sampler: Sampler, spec: InputSpec, objective: Objective, optimiser: Optimiser, budget: Budget
) -> tuple[Objective, Optimiser, Budget]:
    """A recipe's own objective, optimiser and batch; how long is for the budget to say. As given where it has none."""
    preset = preset_of(sampler)
    if preset is None:
        return objective, optimiser, budget
    terms = combine(preset.terms(spec.num_classes))
    return terms, Optimiser(**preset.optimiser), replace(budget, batch=preset.batch)


def check_presets(samplers: Mapping[str, Sampler]) -> None:
    """A warning of what a recipe's own training, where it is asked for, is without, and of a batch that is not its."""
    for label, sampler in samplers.items():
        preset = preset_of(sampler)
        if preset is None:
            continue
        if preset.made not in (None, preset.batch):
            warnings.warn(
                f"{label}: batch {preset.made} of the generator and the preset's {preset.batch} of the student "
                "disagree, where the authors have one number for both; "
                f"say batch: {preset.batch}, or train without preset",
                stacklevel=2,
            )
        if preset.without:
            warnings.warn(f"{label}: its preset leaves out {preset.without}", stacklevel=2)


def check_choices(settings: Any) -> None:
    """ValueError where a setting that has few legal values has another."""
    for name, legal in _CHOICES.items():
        value = getattr(settings, name, legal[0])
        if value not in legal:
            raise ValueError(f"{name}: expected one of {', '.join(filter(None, legal))}, found {value!r}")


def check_plan(settings: Any) -> None:
    """The same of what a comparison's settings must agree on, whether they came from a file or from Python."""
    check_choices(settings)
    if not settings.samplers:
        raise ValueError("samplers: expected at least one, found none")
    if settings.preset:
        check_presets(settings.samplers)
    for label in settings.samplers:
        if len(label.encode()) > 100:
            short = label[:20]
            raise ValueError(
                f"samplers: {short + '...'!r} is longer than 100 bytes, too long for a file; give a `label`"
            )
        if not label or label.strip() != label or any(c in label for c in "/\\\0\n") or label.startswith("."):
            raise ValueError(f"samplers: expected a label that can name a folder, found {label!r}")
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"seeds: expected different integers, found {list(settings.seeds)!r}")
    if settings.control_seeds is not None and settings.control_seeds < 1:
        raise ValueError(f"control_seeds: expected an integer >= 1 or null for all, found {settings.control_seeds!r}")
    around = settings.evaluate.worst_case_around
    if around != "test" and around not in settings.samplers:
        raise unknown("worst_case_around", around, ["test", *settings.samplers])
    on, modes = settings.evaluate.recalibrate_on, (settings.student_score, *(settings.evaluate.beside or ()))
    if on is not None and on not in settings.samplers:
        raise unknown("recalibrate_on", on, settings.samplers)
    if on is not None and "recalibrated" not in modes:
        raise ValueError(
            f"recalibrate_on: expected recalibrated as student_score or in beside, found {', '.join(modes)}"
        )


def reference_of(student: Student) -> tuple[str | None, dict[str, Any]]:
    """How `dfkd.load` builds a student again, and its options; (None, {}) where it needs `model=`."""
    if isinstance(student, (FromTeacher, Together)):
        return reference_of(student.student)
    if isinstance(student, str):
        return student, {}
    if isinstance(student, partial) and student.func in (models.build, models.load_teacher):
        own = {key: value for key, value in student.keywords.items() if key not in ("weights", "normalise")}
        return str(student.args[0]), own
    return (None, {}) if isinstance(student, nn.Module) else (models.reference_of(student), {})


# -- where things are kept -------------------------------------------------------------------------------------------


def run_folder(folder: Path, label: str, seed: int) -> Path:
    return folder / "runs" / f"{label}-s{seed}"


def bank_file(folder: Path, label: str, seed: int) -> Path:
    return folder / "banks" / f"{label}-s{seed}.safetensors"


def read_record(file: Path) -> dict[str, Any]:
    """What a run wrote of itself when it was done."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); delete it to train this run again") from error


def some_rows(n: int, most: int | None) -> Tensor:
    """Which of n rows are taken where `most` are enough: any, but always the same; data may be sorted by class."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(0, "some_rows", n)))
    return order[:most].sort().values
