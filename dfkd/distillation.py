"""What `dfkd distill` does once its settings are read: one student, or the best of several, saved with a card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dfkd import config as configuration
from dfkd import models
from dfkd.claim import keep_manifest
from dfkd.config import DistillConfig
from dfkd.files import replace_file
from dfkd.interfaces import Sampler, is_data_free, preset_of, sources, walk
from dfkd.plan import Evaluation, as_published, reference_of
from dfkd.registry import SAMPLERS, find
from dfkd.resolve import assistants_of
from dfkd.types import InputSpec

__all__ = ["best_of_several", "one_student"]

SIGNAL_ROWS = 256  # in each bank of the signal: a round of most recipes, which some must make anew at each log point


def one_student(
    config: DistillConfig, teacher: nn.Module, student: Any, spec: InputSpec, out: Path, manifest: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Trains and saves the student; its card, and what to say of it."""
    from dfkd.comparison import try_sampler
    from dfkd.fidelity.selfcheck import Signal, selfcheck
    from dfkd.schemes.offline import distill as run
    from dfkd.schemes.offline import make_problem, make_trained
    from dfkd.schemes.stages import Chain, chain

    sampler = config.sampler
    assert sampler is not None  # else there are several
    objective, optimiser, budget = configuration.objective(config.objective), config.optimiser, config.budget
    if config.preset:
        objective, optimiser, budget = as_published(sampler, spec, objective, optimiser, budget)
    try_sampler(sampler, make_problem(teacher, make_trained(student, spec, 0), spec, device="cpu"))
    keep_manifest(out, manifest)
    settings: dict[str, Any] = {
        "spec": spec,
        "objective": objective,
        "budget": budget,
        "optimiser": optimiser,
        "seed": config.seed,
        "device": config.device,
        "precision": config.precision,
        "compile": config.compile,
        "student_batchnorm": config.student_train,
        "banks": out / "banks",
        "signal": None if config.stop is None else Signal(sampler, _quiet(sampler), SIGNAL_ROWS, config.seed),
        "stop": config.stop,
        "show_progress": True,
    }
    if assistants := assistants_of(config, spec):
        chained = chain(teacher, [*assistants, student], sampler, folder=out / "stages", **settings)
    else:
        chained = Chain((run(teacher, student, sampler, checkpoint=out / "checkpoint", **settings),))
    distilled, training = chained.last, chained.last.training
    if training.status == "interrupted":
        raise KeyboardInterrupt
    if len(chained.stages) <= len(assistants):
        raise ValueError(f"assistants[{len(chained.stages) - 1}]: training diverged; try a smaller learning rate")
    unseen = {name: find("sampler", name, SAMPLERS)() for name in ("uniform", "gaussian", "smoothed")}
    unseen = {name: part for name, part in unseen.items() if name != sampler.name}
    unseen = dict(list(unseen.items())[:2])
    # of every stage against the teacher itself
    checked = [
        selfcheck(chained.against_first(number), sampler, stage.training.sampler_state, unseen)
        for number, stage in enumerate(chained.stages)
    ]
    scores = checked[-1]
    counts = [stage.training.counts[phase] for stage in chained.stages for phase in ("synthesise", "label")]
    images = sum(sum(count.values()) for count in counts)
    card = {
        **_about(sampler),
        "preset": config.preset and preset_of(sampler) is not None,
        "status": training.status,
        "steps": training.steps,
        "stopped_by_own_signal": training.flat_at is not None,
        "signal_flat_at_step": training.flat_at,
        "teacher_images": images,
        "seconds": sum(stage.training.seconds for stage in chained.stages),
        "fidelity_not_a_test_score": scores,
    }
    if assistants:
        card["assistants_not_a_test_score"] = checked[:-1]
    replace_file(out / "curve.jsonl", "".join(json.dumps(line) + "\n" for line in training.curve).encode())
    file = out / "student.safetensors"
    name, options = reference_of(student)
    models.save(file, distilled.student, reference=name, spec=spec, options=options, card=card)
    table = "\n".join(
        f"  {name:32s} {_percent(found['agreement'])}   KL {_nats(found['kl'])}" for name, found in scores.items()
    )
    flat = training.flat_at
    why = "" if flat is None else f", stopped by its own signal, flat at step {flat} (not a test score)"
    return card, (
        f"{training.status} after {training.steps} steps{why}, {images} teacher images\n"
        f"agreement with the teacher (not a test score):\n{table}\nstudent: {file}"
    )


def best_of_several(
    config: DistillConfig, teacher: nn.Module, student: Any, spec: InputSpec, out: Path, manifest: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """One student for each sampler at equal budgets, compared on all their draws; the preferred one is saved."""
    from dfkd.comparison import compare
    from dfkd.plan import run_folder
    from dfkd.schemes.offline import make_student
    from dfkd.selection import preference

    folder = out / "candidates"
    comparison = compare(
        teacher,
        student,
        config.samplers,
        spec=spec,
        objective=configuration.objective(config.objective),
        budget=config.budget,
        optimiser=config.optimiser,
        seeds=[config.seed],
        evaluate=Evaluation(columns=("draws",)),
        device=config.device,
        precision=config.precision,
        compile=config.compile,
        student_train=config.student_train,
        preset=config.preset,
        out=folder,
        show_progress=True,
    )
    keep_manifest(out, manifest)
    preferred = preference(comparison.lines)
    best = next(iter(preferred))
    line = next(line for line in comparison.lines if line.sampler == best)
    card = {
        **_about(config.samplers[best]),
        "preset": config.preset and preset_of(config.samplers[best]) is not None,
        "status": "ok",
        "steps": line.steps,
        "chosen": best,
        "preference_not_a_test_score": preferred,
        "left_out": {line.sampler: line.status for line in comparison.lines if line.status != "ok"},
        "teacher_images": sum({line.sampler: line.teacher_images for line in comparison.lines}.values()),
        "seconds": sum({line.sampler: line.seconds for line in comparison.lines}.values()),
    }
    file = out / "student.safetensors"
    name, options = reference_of(student)
    network = make_student(student, spec, config.seed)
    module = models.load(run_folder(folder, best, config.seed) / "student.safetensors", model=network)
    models.save(file, module, reference=name, spec=spec, options=options, card=card)
    table = "\n".join(f"  {label:32s} {_percent(value)}" for label, value in preferred.items())
    return card, (
        f"chosen: {best}, {card['teacher_images']} teacher images for all\n"
        f"agreement on all draws, weighted by what the teacher says of them (not a test score):\n{table}\n"
        f"student: {file}"
    )


def _about(sampler: Sampler) -> dict[str, Any]:
    return {
        "sampler": configuration.dump(sampler),
        "data_free": is_data_free(sampler),
        "sources": sources(sampler),
    }


def _quiet(sampler: Sampler) -> dict[str, Sampler]:
    """Two samplers that are no part of this one, labelled as the models are used: what the signal is measured on."""
    names = [name for name in ("smoothed", "uniform", "gaussian") if name not in {part.name for part in walk(sampler)}]
    names = [*names, "gaussian", "uniform"][:2]  # a mixture may have all three
    return {name: find("sampler", name, SAMPLERS)(labelling="eval") for name in names}


def _percent(value: float | None) -> str:
    return "   none  " if value is None else f"{100 * value:6.2f} %"


def _nats(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f} nats"
