"""From settings to models: a teacher with its weights or trained here, and what a student is built from."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from dfkd import config as configuration
from dfkd import models
from dfkd.config import EvaluateConfig, StudentConfig, TeacherConfig
from dfkd.models.weights import read_metadata
from dfkd.registry import SAMPLERS, find
from dfkd.types import InputSpec

__all__ = ["load_model", "named_in", "say", "student_of", "teacher_of", "teacher_spec"]

_console = Console(stderr=True, highlight=False)

# what the weights that are around for these networks expect, where a file does not say it itself
_CONVENTIONS = dict.fromkeys(("torchvision", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), "imagenet")


def say(text: str) -> None:
    """To the person, beside the output proper."""
    _console.print(text, markup=False, soft_wrap=True)


def teacher_spec(teacher: TeacherConfig, where: str) -> InputSpec:
    """The input: of the data where some is named, else as shape and classes say, else of the weights file."""
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
    raise ValueError(f"{where}: expected data, or shape and classes, or weights that dfkd saved, found none of them")


def load_model(model: TeacherConfig | StudentConfig | EvaluateConfig, spec: InputSpec, where: str) -> nn.Module:
    """A model with weights from a file; what normalises its input is printed."""
    normalise, said = _normalise(model.normalise, model.model, model.weights, where)
    with _at(where):
        module = models.load_teacher(model.model, spec, weights=model.weights, normalise=normalise, **model.options)
    say(f"{where}: normalise={said}")
    return module


def teacher_of(teacher: TeacherConfig, file: Path | None, where: str, device: str | None = None) -> nn.Module:
    """The model with its weights, or trained on its data and kept in `file`."""
    spec = teacher_spec(teacher, where)
    if teacher.weights is not None:
        return load_model(teacher, spec, where)
    if teacher.data is None or teacher.model is None:
        raise ValueError(f"{where}: expected weights, or a model and data to train it on, found neither")
    if file is not None and file.exists():
        return models.load(file)
    return _train(teacher, teacher.model, teacher.data, spec, file, where, device)


def _train(
    teacher: TeacherConfig, model: str, data: str, spec: InputSpec, file: Path | None, where: str, device: str | None
) -> nn.Module:
    from dfkd.data import load
    from dfkd.schemes.supervised import teach

    digest = load(data, size=teacher.size).digest
    normalise, said = _normalise(teacher.normalise, model, None, where)
    fresh = partial(models.load_teacher, model, spec, normalise=normalise, **teacher.options)
    with _at(where):
        fresh()  # a misspelt name or option is found before anything is said
        sampler = find("sampler", "real", SAMPLERS)(data=data, size=teacher.size)
        if teacher.crop or teacher.flip:
            sampler = find("sampler", "augmented", SAMPLERS)(base=sampler, crop=teacher.crop, flip=teacher.flip)
    say(f"{where}: training {model} on {data} ({teacher.budget.steps} steps)")
    say(f"{where}: normalise={said}")
    checkpoint = None if file is None else file.with_name(f".{file.stem}.checkpoint")  # hidden: no part of the result
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
    module = module.cpu()
    if file is not None:
        card = {"data": data, "seed": teacher.seed, "steps": training.steps}
        models.save(file, module, reference=model, spec=spec, options=teacher.options, card=card)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return module


def student_of(student: StudentConfig, spec: InputSpec) -> Any:
    """What distillation builds a student from: a name or a factory, which loads the weights of a warm start.

    Where a scheme is named it is wrapped with it, and all that is trained is built once to see that it fits.
    """
    if student.scheme is None:
        return _alone(student, spec)
    from dfkd.schemes.offline import make_trained
    from dfkd.schemes.together import Together

    wrapped = Together(_alone(student, spec), configuration.scheme(student.scheme))
    with _at("student.scheme"):
        make_trained(wrapped, spec, 0)
    return wrapped


def _alone(student: StudentConfig, spec: InputSpec) -> Any:
    if student.weights is not None:
        load_model(student, spec, "student")  # what does not fit is found now
        normalise, _ = _normalise(student.normalise, student.model, student.weights, "student")
        saved = read_metadata(student.weights) or {}
        name = student.model or saved.get("reference")
        own = saved.get("options", {}) if name == saved.get("reference") else {}
        options = {**own, **student.options, "weights": student.weights, "normalise": normalise}
        return partial(models.load_teacher, name, spec, **options)
    if student.model is None:
        raise ValueError("student: expected a model, found none; name one with student.model=")
    with _at("student"):
        models.build(student.model, spec, **student.options)
    return partial(models.build, student.model, spec, **student.options) if student.options else student.model


def named_in(weights: Path) -> dict[str, Any] | None:
    """The model that a weights file of ours names, and its options, as a student's settings."""
    saved = read_metadata(weights) or {}
    if saved.get("reference") is None:
        return None
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
