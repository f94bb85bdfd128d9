"""From settings to models: a teacher with its weights or trained here, and what a student is built from."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from dfkd import config as configuration
from dfkd import models
from dfkd.config import DistillConfig, EvaluateConfig, StudentConfig, TeacherConfig
from dfkd.models.weights import nearby, read_metadata
from dfkd.problem import Probe
from dfkd.registry import SAMPLERS, find
from dfkd.types import InputSpec

__all__ = [
    "another",
    "assistants_of",
    "check_source",
    "load_model",
    "named_in",
    "say",
    "student_of",
    "teacher_of",
    "teacher_spec",
    "trained_here",
    "untrained",
]

_console = Console(stderr=True, highlight=False)

# what the weights that are around for these networks expect, where a file does not say it itself
_CONVENTIONS = dict.fromkeys(("torchvision", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), "imagenet")


def say(text: str) -> None:
    """To the person, beside the output proper."""
    _console.print(text, markup=False, soft_wrap=True)


def teacher_spec(teacher: TeacherConfig, where: str) -> InputSpec:
    """The input: of the data where some is named, else as shape and classes say, else of the weights file."""
    if teacher.members:
        return _one_spec(teacher, where)
    if teacher.weights is not None and teacher.model is None:
        with _at(where):
            known = read_metadata(teacher.weights) is not None
        if not known:
            raise ValueError(
                f"{where}: {teacher.weights} does not say what network it is of; name it by {where}.model=, and what "
                f"it takes by {where}.shape= and {where}.classes=, or by {where}.data="
            )
    if teacher.data is not None:
        from dfkd.data import load  # here, so that a data-free run never imports it

        return load(teacher.data, size=teacher.size).spec
    if teacher.shape is not None and teacher.classes is not None:
        with _at(where):
            return InputSpec(teacher.shape, teacher.classes)
    if teacher.weights is not None:
        with _at(where):
            if read_metadata(teacher.weights) is not None:
                return models.read_spec(teacher.weights)
    model = teacher.model or ""
    if model and ":" not in model and model not in models.MODELS and not model.startswith("wrn-"):
        named = f"a file; say {where}.weights={model}"
        found = named if os.path.isfile(model) else nearby(Path(model), models.MODELS)
        raise ValueError(f"{where}: expected a weights file, or a model with its data, found {found}")
    raise ValueError(f"{where}: expected data, or shape and classes, or weights that dfkd saved, found none of them")


def load_model(model: TeacherConfig | StudentConfig | EvaluateConfig, spec: InputSpec, where: str) -> nn.Module:
    """A model with weights from a file; what normalises its input is printed."""
    normalise, said = _normalise(model.normalise, model.model, model.weights, where)
    with _at(where):
        module = models.load_teacher(model.model, spec, weights=model.weights, normalise=normalise, **model.options)
    say(f"{where}: normalise={said}")
    return module


def teacher_of(teacher: TeacherConfig, file: Path | None, where: str, device: str | None = None) -> nn.Module:
    """The model with its weights, or trained on its data and kept in `file`; several of them as one."""
    spec = teacher_spec(teacher, where)
    if teacher.members:
        return _ensemble_of(teacher, spec, file, where, device)
    if teacher.weights is not None:
        return load_model(teacher, spec, where)
    check_source(teacher, where)
    if file is not None and file.exists():
        return models.load(file)
    checkpoint = None if file is None else _checkpoint(file)
    module, steps = _train(teacher, spec, checkpoint, where, device)
    if file is not None:
        card = {"data": teacher.data, "seed": teacher.seed, "steps": steps}
        models.save(file, module, reference=teacher.model, spec=spec, options=teacher.options, card=card)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return module


def untrained(teacher: TeacherConfig, spec: InputSpec, where: str) -> nn.Module | None:
    """The teacher with fresh weights, on which settings are tried before its own are trained; None where none are."""
    from dfkd.schemes.ensemble import Ensemble

    if not trained_here(teacher):
        return None
    check_source(teacher, where)
    made = []
    for member, place in members_of(teacher, where) if teacher.members else [(teacher, where)]:
        model, options = _built_as(member)
        normalise, _ = _normalise(member.normalise, member.model, member.weights, place)
        with _at(place):
            made.append(models.load_teacher(model, spec, normalise=normalise, **options))
    return Ensemble(made, teacher.rule, teacher.temperature).eval() if teacher.members else made[0]


def check_source(teacher: TeacherConfig, where: str) -> None:
    """ValueError where neither weights are named nor what to train them with."""
    for one, place in members_of(teacher, where) if teacher.members else [(teacher, where)]:
        if one.weights is None and (one.data is None or one.model is None):
            raise ValueError(f"{place}: expected weights, or a model and data to train it on, found neither")


def _checkpoint(file: Path, member: str = "") -> Path:
    """Of the training of what is kept in this file: hidden, as it is no part of the result."""
    return file.with_name(f".{file.stem}{member}.checkpoint")


def _train(
    teacher: TeacherConfig, spec: InputSpec, checkpoint: Path | None, where: str, device: str | None
) -> tuple[nn.Module, int]:
    """A model trained on its data, and in how many steps; the checkpoint stays, for the caller to remove."""
    from dfkd.data import load
    from dfkd.schemes.supervised import teach

    model, data = teacher.model, teacher.data
    assert model is not None  # checked
    assert data is not None  # likewise
    digest = load(data, size=teacher.size, limit=teacher.limit).digest
    normalise, said = _normalise(teacher.normalise, model, None, where)
    fresh = partial(models.load_teacher, model, spec, normalise=normalise, **teacher.options)
    with _at(where):
        fresh()  # a misspelt name or option is found before anything is said
        sampler = find("sampler", "real", SAMPLERS)(data=data, size=teacher.size, limit=teacher.limit)
        if teacher.crop or teacher.flip:
            sampler = find("sampler", "augmented", SAMPLERS)(base=sampler, crop=teacher.crop, flip=teacher.flip)
    say(f"{where}: training {model} on {data} ({teacher.budget.steps} steps)")
    say(f"{where}: normalise={said}")
    module, training = teach(
        fresh,
        sampler,
        spec=spec,
        budget=teacher.budget,
        optimiser=teacher.optimiser,
        seed=teacher.seed,
        device=device,
        checkpoint=checkpoint,
        identity=f"{where}: {teacher!r} on {digest}",
        show_progress=True,
    )
    if training.status == "interrupted":
        raise KeyboardInterrupt
    if checkpoint is not None and training.status != "ok":
        checkpoint.unlink(missing_ok=True)  # the corrected settings must find the place free
    if training.status != "ok":
        raise ValueError(f"{where}: training {training.status} at step {training.steps}; try a smaller learning rate")
    return module.cpu(), training.steps


# -- ensembles ---------------------------------------------------------------------------------------------------------


def members_of(teacher: TeacherConfig, where: str) -> list[tuple[TeacherConfig, str]]:
    """The settings of each member of an ensemble, laid over the teacher's own, and how to call it."""
    shared = configuration.dump(replace(teacher, members=(), rule="mean_prob", temperature=None))
    found: list[tuple[TeacherConfig, str]] = []
    for number, entry in enumerate(teacher.members):
        place = f"{where}.members[{number}]"
        own = configuration.spelt_out(entry) if isinstance(entry, str) else entry
        if not isinstance(own, Mapping) or "members" in own:
            raise ValueError(f"{place}: expected a weights file or settings of one model, found {entry!r}")
        member = configuration.parse(TeacherConfig, {**shared, **own}, place)
        for other, called in found:
            if member == other:
                raise ValueError(f"{place}: expected another teacher than {called}; give it a seed or weights")
        found.append((member, place))
    return found


def trained_here(teacher: TeacherConfig) -> bool:
    """Whether any of its weights have yet to be trained."""
    members = [member for member, _ in members_of(teacher, "teacher")] if teacher.members else [teacher]
    return any(member.weights is None for member in members)


def another(teacher: TeacherConfig) -> TeacherConfig | None:
    """A teacher trained likewise with other seeds; None where weights come from a file."""
    if not teacher.members:
        return None if teacher.weights is not None else replace(teacher, seed=teacher.seed + 1)
    members = [member for member, _ in members_of(teacher, "teacher")]
    if any(member.weights is not None for member in members):
        return None
    seeds = [member.seed for member in members]
    shift = max(seeds) - min(seeds) + 1  # so that the two have no seed in common
    own = [configuration.spelt_out(entry) if isinstance(entry, str) else entry for entry in teacher.members]
    return replace(teacher, members=tuple({**one, "seed": seed + shift} for one, seed in zip(own, seeds, strict=True)))


def _one_spec(teacher: TeacherConfig, where: str) -> InputSpec:
    """The input that all members share."""
    specs = [teacher_spec(member, place) for member, place in members_of(teacher, where)]
    kinds = [(spec.shape, spec.num_classes) for spec in specs]
    if len(set(kinds)) > 1:
        found = ", ".join(f"{shape} with {k} of members[{place}]" for place, (shape, k) in enumerate(kinds))
        raise ValueError(f"{where}.members: expected images of one shape with one number of classes, found {found}")
    return specs[0]


def _ensemble_of(
    teacher: TeacherConfig, spec: InputSpec, file: Path | None, where: str, device: str | None
) -> nn.Module:
    """All members, those without weights trained one after the other; kept in `file` as one network."""
    from dfkd.schemes.ensemble import REFERENCE, Ensemble

    if file is not None and file.exists() and trained_here(teacher):
        return models.load(file)
    check_source(teacher, where)
    made, described, checkpoints = [], [], []
    for number, (member, place) in enumerate(members_of(teacher, where)):
        if member.weights is not None:
            module = load_model(member, spec, place)
        else:
            checkpoint = None if file is None else _checkpoint(file, f"-{number}")
            module, _ = _train(member, spec, checkpoint, place, device)
            checkpoints.append(checkpoint)
        Probe(module, spec, name=place).check()
        made.append(module)
        name, options = _built_as(member)
        scale = [module.mean.tolist(), module.std.tolist()] if isinstance(module, models.Normalised) else None
        described.append({"model": name, "options": options, "normalise": scale})
    module = Ensemble(made, teacher.rule, teacher.temperature).eval()
    if file is not None:
        options = {"members": described, "rule": teacher.rule, "temperature": teacher.temperature}
        models.save(file, module, reference=REFERENCE, spec=spec, options=options)
    for checkpoint in checkpoints:  # only now: a member that is done is not trained again
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    return module


def _built_as(model: TeacherConfig | StudentConfig) -> tuple[str | None, dict[str, Any]]:
    """The name and options that a model is built with: its own laid over those that its weights file names."""
    saved = {} if model.weights is None else read_metadata(model.weights) or {}
    name = model.model or saved.get("reference")
    own = saved.get("options", {}) if name == saved.get("reference") else {}
    return name, {**own, **model.options}


# -- students ----------------------------------------------------------------------------------------------------------


def student_of(student: StudentConfig, spec: InputSpec) -> Any:
    """What distillation builds a student from: a name or a factory, which loads the weights of a warm start.

    Where a scheme is named it is wrapped with it, and all that is trained is built once to see that it fits.
    """
    from dfkd.schemes.from_teacher import FromTeacher
    from dfkd.schemes.offline import make_trained
    from dfkd.schemes.together import Together

    alone = _alone(student, spec)
    if student.from_teacher is not None:
        alone = FromTeacher(alone, student.from_teacher)
    if student.scheme is None:
        return alone
    wrapped = Together(alone, configuration.scheme(student.scheme))
    with _at("student.scheme"):
        make_trained(wrapped, spec, 0)
    return wrapped


def assistants_of(config: DistillConfig, spec: InputSpec) -> list[Any]:
    """What the students in between are built from, as for the last one."""
    made = []
    for number, assistant in enumerate(config.assistants):
        where = f"assistants[{number}]"
        with _at(where):
            made.append(student_of(configuration.parse(StudentConfig, assistant, where), spec))
    return made


def _alone(student: StudentConfig, spec: InputSpec) -> Any:
    if student.weights is not None:
        load_model(student, spec, "student")  # what does not fit is found now
        normalise, _ = _normalise(student.normalise, student.model, student.weights, "student")
        name, options = _built_as(student)
        return partial(models.load_teacher, name, spec, **options, weights=student.weights, normalise=normalise)
    if student.model is None:
        raise ValueError("student: expected a model, found none; name one with student.model=")
    with _at("student"):
        models.build(student.model, spec, **student.options)
    return partial(models.build, student.model, spec, **student.options) if student.options else student.model


def named_in(weights: Path) -> dict[str, Any] | None:
    """The model that a weights file of ours names, and its options, as a student's settings.

    Of an ensemble it is the first member's: a student is one network.
    """
    from dfkd.schemes.ensemble import REFERENCE

    saved = read_metadata(weights) or {}
    if saved.get("reference") is None:
        return None
    if saved["reference"] == REFERENCE:
        first = saved["options"]["members"][0]
        return {"model": str(first["model"]), "options": dict(first["options"])}
    return {"model": str(saved["reference"]), "options": dict(saved.get("options", {}))}


def _normalise(wanted: Any, model: str | None, weights: Path | None, where: str) -> tuple[Any, str]:
    """What to wrap around a model on loading, and how to say it."""
    if wanted in (None, "none"):
        return None, "none (the model takes pixels)"
    if wanted != "auto":
        return _wanted(wanted, where), str(wanted)
    if weights is None:
        return None, "none (fresh weights learn from pixels)"
    if read_metadata(weights) is not None:
        return None, "as saved in the weights file"
    convention = _CONVENTIONS.get((model or "").partition(":")[0])
    if convention is None:
        return None, "none (if these weights expect normalised input, say normalise=imagenet or [[mean...], [std...]])"
    return convention, f"{convention} (the convention of public {model} weights; normalise=none turns it off)"


def _wanted(wanted: Any, where: str) -> Any:
    """A name, or ((mean, ...), (std, ...)) from lists."""
    if isinstance(wanted, str):
        return wanted
    numbers = isinstance(wanted, list) and len(wanted) == 2 and all(isinstance(part, list) for part in wanted)
    if not numbers or any(isinstance(v, bool) or not isinstance(v, (int, float)) for part in wanted for v in part):
        raise ValueError(f"{where}.normalise: expected a name or [[mean...], [std...]], found {wanted!r}")
    return tuple(map(tuple, wanted))


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Bad input found inside is said to be the teacher's, the student's ..."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
