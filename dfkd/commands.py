"""What the commands do, once their words are read."""

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn

from dfkd import config as configuration
from dfkd import models
from dfkd.config import CompareConfig, DistillConfig, EvaluateConfig, StudentConfig, TeacherConfig
from dfkd.files import make_folder
from dfkd.layout import check_layout
from dfkd.models.weights import read_metadata
from dfkd.naming import unknown
from dfkd.registry import LOSSES, SAMPLERS, find
from dfkd.types import InputSpec

__all__ = ["compare", "distill", "evaluate", "list_parts", "report", "resolve_teacher", "teach"]

_console = Console(stderr=True, highlight=False)


def _say(text: str) -> None:
    _console.print(text, markup=False, soft_wrap=True)


# -- models ------------------------------------------------------------------------------------------------------------


def _spec(teacher: TeacherConfig, where: str) -> InputSpec:
    """The input: of the data where some is named, else of the weights file, else as shape and classes say."""
    if teacher.data is not None:
        from dfkd.data import load  # here, so that a data-free run never imports it

        return load(teacher.data, size=teacher.size).spec
    if teacher.shape is not None and teacher.classes is not None:
        return InputSpec(teacher.shape, teacher.classes)
    if teacher.weights is not None and _saved(teacher.weights):
        return models.read_spec(teacher.weights)
    raise ValueError(f"{where}: expected data, or shape and classes, or weights that dfkd saved, found none of them")


def _load(model: TeacherConfig | StudentConfig | EvaluateConfig, spec: InputSpec, where: str) -> nn.Module:
    """A model with weights from a file; what normalises its input is printed."""
    normalise, said = _normalise(model.normalise, model.model, model.weights)
    _say(f"{where}: normalise={said}")
    return models.load_teacher(model.model, spec, weights=model.weights, normalise=normalise, **model.options)


def resolve_teacher(teacher: TeacherConfig, file: Path | None, where: str, device: str | None = None) -> nn.Module:
    """The model with its weights, or trained on its data and kept in `file`."""
    spec = _spec(teacher, where)
    if teacher.weights is not None:
        return _load(teacher, spec, where)
    if teacher.data is None or teacher.model is None:
        raise ValueError(f"{where}: expected weights, or a model and data to train it on, found neither")
    if file is not None and file.exists():
        return models.load(file)
    from dfkd.schemes.supervised import teach as train

    _say(f"{where}: training {teacher.model} on {teacher.data} ({teacher.budget.steps} steps)")
    normalise, said = _normalise(teacher.normalise, teacher.model, None)
    _say(f"{where}: normalise={said}")

    fresh = partial(models.load_teacher, teacher.model, spec, normalise=normalise, **teacher.options)
    sampler = find("sampler", "real", SAMPLERS)(data=teacher.data, size=teacher.size)
    if teacher.crop or teacher.flip:
        sampler = find("sampler", "augmented", SAMPLERS)(base=sampler, crop=teacher.crop, flip=teacher.flip)
    module, training = train(
        fresh,
        sampler,
        spec=spec,
        budget=teacher.budget,
        optimiser=teacher.optimiser,
        seed=teacher.seed,
        device=device,
        show_progress=True,
    )
    if training.status != "ok":
        raise ValueError(f"{where}: training {training.status} at step {training.steps}; try a smaller learning rate")
    module = module.cpu()
    if file is not None:
        card = {"data": teacher.data, "seed": teacher.seed, "steps": training.steps}
        models.save(file, module, reference=teacher.model, spec=spec, options=teacher.options, card=card)
    return module


def _student(student: StudentConfig, spec: InputSpec) -> Any:
    """What distillation builds a student from: a reference, or a network where weights give it a warm start."""
    if student.weights is not None:
        return _load(student, spec, "student")
    if student.model is None:
        raise ValueError("student: expected a model")
    models.build(student.model, spec, **student.options)  # a misspelt name or option is found now
    return partial(models.build, student.model, spec, **student.options) if student.options else student.model


# what the weights that are around for these networks expect, where a file does not say it itself
_CONVENTIONS = dict.fromkeys(("torchvision", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), "imagenet")


def _saved(weights: Path) -> bool:
    return read_metadata(weights) is not None


def _reference(weights: Path) -> str | None:
    found = (read_metadata(weights) or {}).get("reference")
    return None if found is None else str(found)


def _normalise(wanted: Any, model: str | None, weights: Path | None) -> tuple[Any, str]:
    """What to wrap around a model on loading, and how to say it."""
    if wanted in (None, "none"):
        return None, "none (the model takes pixels)"
    if wanted != "auto":
        return (tuple(map(tuple, wanted)) if isinstance(wanted, list) else wanted), str(wanted)
    if weights is None:
        return None, "none (fresh weights learn from pixels)"
    if _saved(weights):
        return None, "as saved in the weights file"
    convention = _CONVENTIONS.get((model or "").partition(":")[0])
    if convention is None:
        return None, "none (if these weights expect normalised input, say normalise=imagenet or [[mean...], [std...]])"
    return convention, f"{convention} (the convention of public {model} weights; normalise=none turns it off)"


# -- commands ----------------------------------------------------------------------------------------------------------


def compare(words: list[str], out: Path | None, workers: int | None, dry_run: bool) -> None:
    """`dfkd compare`."""
    check_layout()
    demo = None if any(Path(w).is_file() for w in words) else _packaged("demo.yaml")
    config: CompareConfig = configuration.parse(CompareConfig, configuration.read_settings(words, demo))
    resolved = configuration.dump(config)
    if dry_run:
        print(yaml.safe_dump(resolved, sort_keys=False), end="")
        return
    from dfkd.compare import claim
    from dfkd.compare import compare as run

    if out is None:
        raise ValueError("--out: expected a folder to write to")
    objective = configuration.objective(config.objective)
    spec = _spec(config.teacher, "teacher")
    student = _student(config.student, spec)
    claim(out, resolved)
    torch.set_num_threads(1)
    teacher = resolve_teacher(config.teacher, out / "teacher.safetensors", "teacher", config.device)
    control = _control(config, out)
    data = None
    if config.teacher.data is not None:
        from dfkd.data import load

        data = load(config.teacher.data, size=config.teacher.size)
    comparison = run(
        teacher,
        student,
        config.samplers,
        data=data,
        spec=spec,
        control_teacher=control,
        control_seeds=config.control_seeds,
        objective=objective,
        budget=config.budget,
        optimiser=config.optimiser,
        seeds=config.seeds,
        evaluate=config.evaluate,
        device=config.device,
        precision=config.precision,
        student_train=config.student_train,
        student_score=config.student_score,
        out=out,
        workers=workers or _default_workers(config.device),
        config=resolved,
        show_progress=True,
    )
    comparison.print()
    _say(f"report: {out / 'report.html'}")


def _control(config: CompareConfig, out: Path) -> nn.Module | None:
    """The independent teacher: as named, or trained like the first with another seed."""
    control = config.control_teacher
    if control is None:
        return None
    if isinstance(control, str):
        if control != "auto":
            control = configuration.parse(TeacherConfig, control, "control_teacher")
        elif config.teacher.weights is None:
            control = replace(config.teacher, seed=config.teacher.seed + 1)
        else:
            _say("control_teacher: none, as the teacher was not trained here; name one for the excess agreement")
            return None
    return resolve_teacher(control, out / "control_teacher.safetensors", "control_teacher", config.device)


def _default_workers(device: str | None) -> int:
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return 1 if on_gpu else max(1, min(os.cpu_count() or 1, 8))


def _packaged(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((resources.files("dfkd") / name).read_text(encoding="utf-8"))
    return loaded


def distill(words: list[str], out: Path | None, dry_run: bool) -> None:
    """`dfkd distill`: one student; without data it still says whether it worked."""
    check_layout()
    settings = configuration.read_settings(words)
    settings.setdefault("sampler", _packaged("distill.yaml")["sampler"])
    settings.setdefault("student", {"model": _same_model(settings.get("teacher"))})
    config: DistillConfig = configuration.parse(DistillConfig, settings)
    resolved = configuration.dump(config)
    if dry_run:
        print(yaml.safe_dump(resolved, sort_keys=False), end="")
        return
    from dfkd.compare import claim
    from dfkd.interfaces import is_data_free, sources
    from dfkd.schemes.offline import distill as run

    if out is None:
        raise ValueError("--out: expected a folder to write to")
    objective = configuration.objective(config.objective)
    spec = _spec(config.teacher, "teacher")
    student = _student(config.student, spec)
    claim(out, resolved)
    teacher = resolve_teacher(config.teacher, out / "teacher.safetensors", "teacher", config.device)
    distilled = run(
        teacher,
        student,
        config.sampler,
        spec=spec,
        objective=objective,
        budget=config.budget,
        optimiser=config.optimiser,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        student_batchnorm=config.student_train,
        banks=out / "banks",
        checkpoint=out / "checkpoint",
        show_progress=True,
    )
    training = distilled.training
    if training.status == "interrupted":
        raise KeyboardInterrupt
    from dfkd.fidelity.selfcheck import selfcheck

    unseen = {name: find("sampler", name, SAMPLERS)() for name in ("uniform", "gaussian", "smoothed")}
    unseen = {name: part for name, part in unseen.items() if name != config.sampler.name}
    scores = selfcheck(distilled.problem, config.sampler, training.sampler_state, dict(list(unseen.items())[:2]))
    card = {
        "sampler": configuration.dump(config.sampler),
        "data_free": is_data_free(config.sampler),
        "sources": sources(config.sampler),
        "status": training.status,
        "steps": training.steps,
        "teacher_images": sum(sum(training.counts[p].values()) for p in ("synthesise", "label")),
        "seconds": training.seconds,
        "fidelity_not_a_test_score": scores,
    }
    file = out / "student.safetensors"
    reference = config.student.model
    models.save(file, distilled.student, reference=reference, spec=spec, options=config.student.options, card=card)
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"{training.status} after {training.steps} steps, {card['teacher_images']} teacher images")
    print("agreement with the teacher (not a test score):")
    for name, found in scores.items():
        print(f"  {name:32s} {100 * found['agreement']:6.2f} %   KL {found['kl']:.4f} nats")
    print(f"student: {file}")


def _same_model(teacher: Any) -> str | None:
    """The student's default: the teacher's own architecture."""
    if isinstance(teacher, Mapping) and teacher.get("model"):
        return str(teacher["model"])
    weights = teacher.get("weights") if isinstance(teacher, Mapping) else teacher
    if isinstance(weights, (str, Path)) and Path(weights).is_file() and _saved(Path(weights)):
        return _reference(Path(weights))
    return None


def teach(words: list[str], out: Path | None, dry_run: bool) -> None:
    """`dfkd teach`."""
    check_layout()
    settings = configuration.read_settings(words, {"model": "digits_cnn", "data": "digits"})
    config: TeacherConfig = configuration.parse(TeacherConfig, settings)
    if dry_run:
        print(yaml.safe_dump(configuration.dump(config), sort_keys=False), end="")
        return
    if out is None or out.suffix != ".safetensors":
        raise ValueError(f"--out: expected a file that ends in .safetensors, found {out}")
    if out.exists():
        raise ValueError(f"--out: {out} exists already; name another file")
    if config.weights is not None:
        raise ValueError("weights: teach starts from fresh weights; leave it out")
    make_folder(out.parent)
    module = resolve_teacher(config, out, "teacher", None)
    assert config.data is not None  # resolve_teacher refuses to train without
    _print_scores(_scores(module, config.data, config.size, 500, None), as_json=False)
    print(f"teacher: {out}")


def evaluate(words: list[str], as_json: bool) -> None:
    """`dfkd evaluate`."""
    settings = configuration.read_settings(words)
    config: EvaluateConfig = configuration.parse(EvaluateConfig, settings)
    from dfkd.data import load

    if config.weights is None:
        raise ValueError("weights: expected a weights file")
    module = _load(config, load(config.data, size=config.size).spec, "model")
    _print_scores(_scores(module, config.data, config.size, config.batch, config.device), as_json)


def _scores(module: nn.Module, data: str, size: int | None, batch: int, device: str | None) -> dict[str, Any]:
    from dfkd.data import load
    from dfkd.evaluate import evaluate as score

    return dict(score(module, load(data, size=size), batch=batch, device=device))


def _print_scores(scores: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(scores))
        return
    print(f"accuracy {100 * scores['accuracy']:.2f} %   NLL {scores['nll']:.4f} nats   ECE {scores['ece']:.4f}")


def report(folder: Path) -> None:
    """`dfkd report`."""
    from dfkd.report import write_report
    from dfkd.report.table import print_table

    if not (folder / "results.jsonl").exists():
        raise ValueError(f"{folder}: expected the folder of a comparison, found no results.jsonl in it")
    print_table(folder)
    _say(f"report: {write_report(folder)}")


# -- list --------------------------------------------------------------------------------------------------------------


def list_parts(kind: str, as_json: bool) -> None:
    """`dfkd list`."""
    tables = {"samplers": _list_samplers, "losses": _list_losses, "models": _list_models, "data": _list_data}
    if kind not in tables:
        raise unknown("list", kind, tables)
    rows = tables[kind]()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        marks = "  [data-free]" if row.get("data_free") else ""
        print(f"{row['name']:18s} {row['summary']}{marks}")
        if row.get("paper"):
            needs = f"; needs {', '.join(row['needs'])}" if row.get("needs") else ""
            print(f"{'':18s}   {row['paper']}{needs}")
        for option in row.get("options", ()):
            print(f"{'':18s}   {option['name']}={option['default']}")


def _list_samplers() -> list[dict[str, Any]]:
    rows = []
    for name, place in SAMPLERS.items():
        cls = find("sampler", name, SAMPLERS)
        row = _describe(name, cls, place)
        rows.append(row | {"needs": list(_class_value(cls, "needs", ())), "data_free": bool(cls.data_free)})
    return rows


def _list_losses() -> list[dict[str, Any]]:
    return [_describe(name, find("loss", name, LOSSES), None) for name in LOSSES]


def _describe(name: str, cls: Any, place: str | None) -> dict[str, Any]:
    """Summary and paper from the docstrings, options from the dataclass."""
    module = import_module(cls.__module__)
    text = inspect.getdoc(cls if place is None else module) or ""
    found = re.search(r"(arXiv:\d{4}\.\d{4,5}|doi:\S+|no paper)", (inspect.getdoc(cls) or "") + (module.__doc__ or ""))
    options = [{"name": f.name, "type": str(f.type), "default": _plain(f)} for f in dataclasses.fields(cls) if f.init]
    paper = found.group(1).rstrip(".,;") if found else None
    return {"name": name, "summary": text.strip().split("\n")[0], "paper": paper, "options": options}


def _plain(f: "dataclasses.Field[Any]") -> Any:
    if f.default is not dataclasses.MISSING:
        return configuration.dump(f.default)
    return "required" if f.default_factory is dataclasses.MISSING else configuration.dump(f.default_factory())


def _class_value(cls: Any, name: str, default: Any) -> Any:
    """A class-level declaration; where an instance computes it, what the default settings give."""
    value = getattr(cls, name, default)
    return getattr(cls(), name) if isinstance(value, property) else value


def _list_models() -> list[dict[str, Any]]:
    return [{"name": name, "summary": models.SUMMARIES[name]} for name in models.MODELS]


def _list_data() -> list[dict[str, Any]]:
    from dfkd.data import SOURCES

    named = [{"name": name, "summary": "scikit-learn" if name == "digits" else "torchvision"} for name in SOURCES]
    return [
        *named,
        {"name": "FILE.npz", "summary": "arrays x_train y_train x_test y_test classes, uint8"},
        {"name": "FOLDER", "summary": "a folder for each class, or train/ and test/ with one for each class"},
    ]
