"""What the commands do, once their words are read."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from dfkd import config as configuration
from dfkd import runtime
from dfkd.bank import made_from, read_index, shards
from dfkd.claim import claimed, keep_manifest, same_models, what_is_read
from dfkd.config import (
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    GeneratorConfig,
    ScoutConfig,
    SynthesizeConfig,
    TeacherConfig,
)
from dfkd.files import make_folder, replace_file
from dfkd.interfaces import default_label, is_data_free, sources
from dfkd.layout import check_layout
from dfkd.models.weights import SUFFIXES, nearby
from dfkd.plain import read_yaml
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS
from dfkd.resolve import (
    another,
    assistants_of,
    check_source,
    load_model,
    named_in,
    say,
    student_of,
    teacher_of,
    teacher_spec,
    trained_here,
    untrained,
)
from dfkd.types import InputSpec, as_device

if TYPE_CHECKING:
    from dfkd.data import Dataset

__all__ = ["compare", "distill", "evaluate", "report", "scout", "synthesize", "teach", "train_generator"]


# -- compare -----------------------------------------------------------------------------------------------------------


def compare(words: list[str], out: Path | None, workers: int | None, dry_run: bool) -> None:
    """`dfkd compare`."""
    check_layout()
    demo = None if any(os.path.isfile(w) for w in words) else _packaged("demo.yaml")
    config: CompareConfig = configuration.parse(CompareConfig, _read(words, "teacher", demo))
    resolved = configuration.dump(config)
    if dry_run:
        _print_yaml(resolved)
        return
    from dfkd.comparison import compare as run
    from dfkd.comparison import try_settings
    from dfkd.plan import Settings

    if out is None and words:
        raise ValueError("--out: expected a folder to write to, found none")
    folder = Path("runs/demo") if out is None else out
    device = as_device(config.device)
    spec = teacher_spec(config.teacher, "teacher")
    student = student_of(config.student, spec)
    _require_test(config.teacher)
    settings: dict[str, Any] = {
        "objective": configuration.objective(config.objective),
        "budget": config.budget,
        "optimiser": config.optimiser,
        "seeds": config.seeds,
        "evaluate": replace(config.evaluate, losses=configuration.measures(config.evaluate.losses)),
        "precision": config.precision,
        "compile": config.compile,
        "student_train": config.student_train,
        "student_score": config.student_score,
        "preset": config.preset,
    }
    torch.set_num_threads(1)
    fresh = None if (folder / _TEACHER).exists() else untrained(config.teacher, spec, "teacher")
    if fresh is not None:  # what does not fit is found before a teacher is trained
        try_settings(Settings(fresh, student, config.samplers, spec, device=str(device), **settings))
    with claimed(folder, resolved):
        named = _control(config, spec)
        # what is read from a file is read before anything is trained
        control = None
        if named is not None and not trained_here(named):
            whole = bool(named.members)
            control = teacher_of(named, None, _CONTROL) if whole else load_model(named, spec, _CONTROL)
        teacher = teacher_of(config.teacher, folder / _TEACHER, "teacher", config.device)
        if named is not None and control is None:
            control = teacher_of(named, folder / "control_teacher.safetensors", _CONTROL, config.device)
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
            **settings,
            device=config.device,
            out=folder,
            workers=workers or _default_workers(config.device),
            config=resolved,
            show_progress=True,
        )
    comparison.print()
    say(f"report: {folder / 'report.html'}")


_TEACHER, _CONTROL = "teacher.safetensors", "control_teacher"


def _control(config: CompareConfig, spec: InputSpec) -> TeacherConfig | None:
    """The independent teacher's settings: as named, or like the first with another seed; for the same images."""
    control = config.control_teacher
    if control is None:
        return None
    if isinstance(control, str):
        if control != "auto":
            control = configuration.parse(TeacherConfig, control, _CONTROL)
        else:
            control = another(config.teacher)
        if control is None:
            say("control_teacher: none, as the teacher was not trained here; name one for the excess agreement")
            return None
    if control.data is None and control.shape is None and config.teacher.data is not None:
        control = replace(control, data=config.teacher.data, size=config.teacher.size)
    own = teacher_spec(control, _CONTROL)
    if (own.shape, own.num_classes) != (spec.shape, spec.num_classes):
        raise ValueError(
            f"control_teacher: expected images {spec.shape} of {spec.num_classes} classes, as for the teacher, "
            f"found {own.shape} of {own.num_classes}"
        )
    check_source(control, _CONTROL)
    return control


def _default_workers(device: str | None) -> int:
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return 1 if on_gpu else max(1, min(os.cpu_count() or 1, 8))


def _read(words: list[str], key: str, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that the words say; weights that stand there without their key are told it."""
    for word in words:
        if "=" not in word and Path(word).suffix in SUFFIXES:
            raise ValueError(f"{word}: expected a YAML file or KEY=VALUE, found the name of weights; say {key}={word}")
    return configuration.read_settings(words, base)


def _packaged(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = read_yaml((resources.files("dfkd") / name).read_text(encoding="utf-8"), name)
    return loaded


def _print_yaml(settings: Mapping[str, Any]) -> None:
    print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), end="")


# -- scout -------------------------------------------------------------------------------------------------------------


def scout(words: list[str], dry_run: bool, as_json: bool) -> None:
    """`dfkd scout`: a ranking of samplers before any student is trained."""
    check_layout()
    _refuse_one(words)
    settings = _read(_with_teacher(words), "teacher")
    settings = _without_others(settings, ScoutConfig, CompareConfig, DistillConfig)
    settings.setdefault("student", _same_model(settings.get("teacher")))
    config: ScoutConfig = configuration.parse(ScoutConfig, settings)
    left: dict[str, str] = {}
    if not config.samplers:
        from dfkd.candidates import candidates

        made, left = candidates(config.teacher.data, config.teacher.size)
        config = replace(config, samplers=made)
    if dry_run:
        _print_yaml(configuration.dump(config))
        return
    from dfkd.scouting import Scouted, table
    from dfkd.scouting import scout as run

    as_device(config.device)
    spec = teacher_spec(config.teacher, "teacher")
    student = student_of(config.student, spec)
    teacher = teacher_of(config.teacher, None, "teacher", config.device)
    found = run(
        teacher,
        student,
        config.samplers,
        spec=spec,
        settings=config.draws,
        device=config.device,
        show_progress=True,
    )
    found += [Scouted(name, reason=reason) for name, reason in left.items()]
    print(json.dumps([one.plain() for one in found]) if as_json else table(found))


def _with_teacher(words: list[str]) -> list[str]:
    """The words with a teacher that stands alone, a weights file or `digits`, as the setting that it is."""
    first = words[0] if words else ""
    if first == "digits" and not Path(first).exists():
        return [f"teacher={json.dumps(_packaged('demo.yaml')['teacher'])}", *words[1:]]
    named = "=" not in first and Path(first).suffix in SUFFIXES
    settings = "=" in first or Path(first).suffix in (".yaml", ".yml") or Path(first).is_file()
    if first and not named and not settings:
        raise ValueError(f"teacher: expected weights or digits, found {nearby(Path(first), ['digits'])}")
    return [f"teacher={json.dumps(first)}", *words[1:]] if named else words


def _refuse_one(words: list[str]) -> None:
    """ValueError where a word names the one sampler of distill. A file that does is one of distill's, and is read."""
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.split(".")[0].strip() == "sampler" and not os.path.isfile(word):
            listed = (value.strip().strip("[]") if key.strip() == "sampler" else "") or "NAME, ..."
            raise ValueError(f"sampler: expected samplers, which are ranked, found {word}; say samplers=[{listed}]")


def _without_others(settings: Mapping[str, Any], own: type, *others: type) -> dict[str, Any]:
    """Without the settings of other commands, so that their files can be read; which they are is said."""
    extra = {f.name for other in others for f in fields(other)} - {f.name for f in fields(own)}
    unused = [key for key in settings if key in extra]
    if unused:
        say(f"not used here: {', '.join(unused)}")
    return {key: value for key, value in settings.items() if key not in extra}


# -- distill -----------------------------------------------------------------------------------------------------------


def distill(words: list[str], out: Path | None, dry_run: bool) -> None:
    """`dfkd distill`: one student; without data it still says whether it worked."""
    check_layout()
    settings = _read(words, "teacher")
    if "samplers" not in settings:
        settings.setdefault("sampler", _packaged("distill.yaml")["sampler"])
    settings.setdefault("student", _same_model(settings.get("teacher")))
    config: DistillConfig = configuration.parse(DistillConfig, settings)
    resolved = configuration.dump(config)
    del resolved["sampler" if config.samplers else "samplers"]
    if dry_run:
        _print_yaml(resolved)
        return
    if out is None:
        raise ValueError("--out: expected a folder to write to, found none")
    device = as_device(config.device)
    spec = teacher_spec(config.teacher, "teacher")
    student = student_of(config.student, spec)
    assistants_of(config, spec)  # what does not fit is found now
    from dfkd.comparison import try_settings
    from dfkd.distillation import best_of_several, one_student
    from dfkd.plan import Settings
    from dfkd.schemes.offline import check_precision, make_student

    check_precision(config.precision, device)
    samplers = [sampler for sampler in (*config.samplers.values(), config.sampler) if sampler is not None]
    fresh = None if (out / _TEACHER).exists() else untrained(config.teacher, spec, "teacher")
    if fresh is not None:  # what does not fit is found before a teacher is trained
        names = config.samplers or {sampler.name: sampler for sampler in samplers}
        objective = configuration.objective(config.objective)
        shared: dict[str, Any] = {"objective": objective, "budget": config.budget, "optimiser": config.optimiser}
        try_settings(Settings(fresh, student, names, spec, preset=config.preset, **shared))
    with claimed(out, resolved):
        teacher = teacher_of(config.teacher, out / _TEACHER, "teacher", config.device)
        manifest = {
            **runtime.describe(),
            "seeds": [config.seed],
            "device": str(device),
            "teacher": {"digest": Probe(teacher, spec).digest},
            # of its weights before training: those of a warm start, else those that the seed gives
            "student": {"digest": Probe(make_student(student, spec, config.seed, teacher), spec).digest},
            "read": what_is_read(samplers),
            "data_free": all(is_data_free(sampler) for sampler in samplers),
            "sources": [source for sampler in samplers for source in sources(sampler)],
        }
        same_models(out, manifest)
        make = best_of_several if config.samplers else one_student
        card, said = make(config, teacher, student, spec, out, manifest)
    replace_file(out / "card.json", (json.dumps(card, indent=1) + "\n").encode())
    print(said)
    if card["status"] == "diverged":
        say("distill: the loss was not finite; the student is that of the last good point. Try a smaller learning rate")
        raise SystemExit(1)


def _same_model(teacher: Any) -> dict[str, Any]:
    """The student's default: the teacher's own architecture, with the options it was built with."""
    teacher = configuration.spelt_out(teacher) if isinstance(teacher, str) else teacher
    if not isinstance(teacher, Mapping):
        return {"model": None}
    members = teacher.get("members")
    if isinstance(members, list) and members and teacher.get("model") is None:
        return _same_model(members[0])
    weights, given = teacher.get("weights"), teacher.get("options")
    given = dict(given) if isinstance(given, Mapping) else {}
    named = named_in(Path(weights)) if isinstance(weights, str) and os.path.isfile(weights) else None
    if named is not None and teacher.get("model") in (None, named["model"]):
        return {"model": named["model"], "options": {**named["options"], **given}}
    model = teacher.get("model")
    return {"model": str(model) if model else None, "options": given}


# -- synthesize --------------------------------------------------------------------------------------------------------


def synthesize(words: list[str], n: int | None, out: Path | None, png: bool, dry_run: bool) -> None:
    """`dfkd synthesize`: images of one sampler, kept with what the teacher says of them."""
    check_layout()
    settings = _read(_with_sampler(words), "teacher")
    if n is not None:
        settings["n"] = n
    if "sampler" not in settings:
        raise ValueError("synthesize: expected a sampler, found none; `dfkd list samplers` names them")
    if "n" not in settings:
        raise ValueError("--n: expected how many images, found none")
    settings = _without_others(settings, SynthesizeConfig, CompareConfig, DistillConfig)
    settings.setdefault("student", _same_model(settings.get("teacher")))
    config: SynthesizeConfig = configuration.parse(SynthesizeConfig, settings)
    resolved = configuration.dump(config)
    if dry_run:
        _print_yaml(resolved)
        return
    if out is None:
        raise ValueError("--out: expected a folder to write to, found none")
    device = as_device(config.device)
    spec = teacher_spec(config.teacher, "teacher")
    student = student_of(config.student, spec)
    reference = None if config.reference is None else _reference(config.reference, spec)
    del resolved["reference"]  # a bank that is there may be compared with any
    from dfkd.report.contact import check_png, contact_sheet, write_pngs
    from dfkd.schemes.offline import check_precision, make_problem, make_student
    from dfkd.synthesis import synthesize as run

    check_precision(config.precision, device)
    if png:
        check_png(spec)
    with claimed(out, resolved):
        teacher = teacher_of(config.teacher, out / "teacher.safetensors", "teacher", config.device)
        fresh = make_student(student, spec, config.seed)
        problem = make_problem(teacher, fresh, spec, seed=config.seed, device=device, precision=config.precision)
        described = runtime.describe()
        about = _about_bank(config, problem)
        manifest = {**described, "seeds": [config.seed], "device": str(device), **about}
        same_models(out, manifest)
        keep_manifest(out, manifest)
        about["versions"] = described["versions"]
        index = run(config.sampler, problem, config.draws, out, about, show_progress=True)
    print(_said_of_bank(index, out, contact_sheet(out)))
    if png:
        print(f"pictures: {write_pngs(out)}")
    if reference is not None:
        print(_compared(Probe(teacher, spec, device), reference, out))


def _with_sampler(words: list[str]) -> list[str]:
    """The words with a sampler that stands alone as the setting that it is."""
    first = words[0] if words else "="
    named = "=" not in first and (first in SAMPLERS or ":" in first or not Path(first).suffix)
    return [f"sampler={json.dumps(first)}", *words[1:]] if named else words


def _about_bank(config: SynthesizeConfig, problem: Problem) -> dict[str, Any]:
    """What a bank was made from, as whoever reads it must be able to say."""
    weights = config.student.weights
    return {
        "label": default_label(config.sampler),
        "sampler": configuration.dump(config.sampler),
        "data_free": is_data_free(config.sampler),
        "sources": sources(config.sampler),
        "read": what_is_read([config.sampler]),
        "teacher": {"digest": problem.teacher.digest},
        "student": {"digest": problem.student.digest, "trained": weights is not None},
    }


def _reference(source: str, spec: InputSpec) -> "Dataset":
    from dfkd.data import load  # here, so that a data-free run never imports it

    data = load(source)
    if data.spec.shape != spec.shape:
        raise ValueError(f"reference: expected images {spec.shape}, found {data.spec.shape} in {source!r}")
    return data


def _compared(teacher: Probe, data: "Dataset", out: Path) -> str:
    """What is found of a bank beside data; quality.json has it too."""
    from dfkd.fidelity.quality import QUALITY, Reference
    from dfkd.plan import Evaluation, some_rows

    most = Evaluation().quality_rows
    training, held_out = (x[some_rows(len(x), rows)] for x, rows in ((data.train.x, 10 * most), (data.test.x, most)))
    index = read_index(out)
    chosen = some_rows(index["rows"], most)
    x, first = [], 0
    for shard in shards(out, index):
        here = chosen[(chosen >= first) & (chosen < first + len(shard["x"]))] - first
        x.append(shard["x"][here])
        first += len(shard["x"])
    reference = Reference.of(teacher, teacher.spec, training, held_out if len(held_out) else None)
    found = reference.score(torch.cat(x), some_rows, most)
    about = {"reference": data.name, "digest": data.digest, **asdict(found)}
    replace_file(out / "quality.json", (json.dumps(about, indent=1) + "\n").encode())
    lines = [f"beside {data.name}, {found.n} rows of each, {found.training_rows} training rows, k = {found.k}:"]
    for name, value in found.values.items():
        said = f"{value:.4g}" if value is not None else f"none: {found.reasons.get(name, 'no rows to test on')}"
        lines.append(f"  {name:22s} {said:>8s}   {QUALITY[name].summary}")
    return "\n".join(lines)


def _said_of_bank(index: Mapping[str, Any], out: Path, sheet: Path) -> str:
    """What a person wants to know of a bank that is done."""
    counts, lines = index["counts"], []
    named = sum(map(bool, counts))
    lines.append(f"{index['rows']} images, {index['teacher_images']} teacher images")
    lines.append(
        f"the teacher names {named} of {len(counts)} classes, {min(counts)} to {max(counts)} images each"
        + ("" if index["as_aimed"] is None else f"; {100 * index['as_aimed'] / index['rows']:.1f} % as aimed")
    )
    if index["learned_from"]:
        lines.append(
            f"it follows a student, which was {'the one given' if index['student']['trained'] else 'untrained'}, and "
            f"learned from {index['learned_from']} draws first: not what it becomes beside a student that learns"
        )
    return "\n".join([*lines, f"contact sheet: {sheet}", f"bank: {out} (samplers=[{{real: {{data: {out}}}}}])"])


# -- a generator -------------------------------------------------------------------------------------------------------


def train_generator(words: list[str], out: Path | None, dry_run: bool) -> None:
    """`dfkd train-generator`: images of the user's data, learnt for samplers to draw from."""
    check_layout()
    given: GeneratorConfig = configuration.parse(GeneratorConfig, configuration.read_settings(words))
    from dfkd.train_generator import planned
    from dfkd.train_generator import train as run

    plan = planned(given)
    config, settings = plan.config, plan.settings
    resolved = configuration.dump(config) | {"generator": {settings.name: configuration.dump(settings)}}
    if dry_run:
        _print_yaml(resolved)
        return
    if out is None:
        raise ValueError("--out: expected a folder to write to, found none")
    device, dataset = as_device(config.device), plan.dataset
    with claimed(out, resolved):
        made = made_from(config.data)
        manifest = {
            **runtime.describe(),
            "seeds": [config.seed],
            "device": str(device),
            "data": {"name": dataset.name, "digest": dataset.digest, "train_rows": len(dataset.train)},
            "data_free": False,
            "sources": [config.data],
            **({} if made is None else {"read": {"banks": {config.data: made}}}),
        }
        same_models(out, manifest)
        keep_manifest(out, manifest)
        status, card = run(plan, out, show_progress=True)
    if status == "interrupted":
        raise KeyboardInterrupt
    if status == "diverged":
        kept = card["saved_at"]
        good = "there is none before it" if kept is None else f"{out / 'checkpoint'} holds step {kept}"
        say(f"train-generator: not finite by step {card['steps']}; {good}. Try a lower learning rate in another folder")
        raise SystemExit(1)
    losses = "   ".join(f"{name} {value:.3f}" for name, value in card["losses"].items())
    print(f"{card['steps']} steps on {config.data} in {card['seconds']:.0f} s   {losses}")
    print(f"samples: {out / 'samples'}\ngenerator: {out / card['file']}")


# -- one model ---------------------------------------------------------------------------------------------------------


def teach(words: list[str], out: Path | None, dry_run: bool) -> None:
    """`dfkd teach`."""
    check_layout()
    settings = {"data": "digits", **configuration.read_settings(words)}
    if "members" not in settings:  # whose files may name other models
        settings.setdefault("model", "digits_cnn")
    config: TeacherConfig = configuration.parse(TeacherConfig, settings)
    if dry_run:
        _print_yaml(configuration.dump(config))
        return
    if out is None or out.suffix != ".safetensors":
        raise ValueError(f"--out: expected a file that ends in .safetensors, found {'none' if out is None else out}")
    if out.exists():
        raise ValueError(f"--out: {out} exists already; name another file")
    if config.weights is not None:
        raise ValueError("weights: teach starts from fresh weights; leave it out")
    if config.data is None:
        raise ValueError("data: expected labelled data to train on, found none")
    _require_test(config)
    make_folder(out.parent)
    module = teacher_of(config, out, "teacher", None)
    _print_scores(_scores(module, config.data, config.size, 500, None), as_json=False)
    print(f"teacher: {out}")


def evaluate(words: list[str], as_json: bool) -> None:
    """`dfkd evaluate`."""
    check_layout()
    config: EvaluateConfig = configuration.parse(EvaluateConfig, _read(words, "weights"))
    if config.weights is None:
        meant = config.model is not None and Path(config.model).suffix in SUFFIXES
        hint = f" but model={config.model}; say weights={config.model}" if meant else "; say weights=FILE"
        raise ValueError(f"weights: expected a weights file, found none{hint}")
    if config.batch < 1:
        raise ValueError(f"batch: expected an integer >= 1, found {config.batch!r}")
    as_device(config.device)
    from dfkd.data import load

    spec = load(config.data, size=config.size).spec
    module = load_model(config, spec, "model")
    Probe(module, spec, name="model").check()
    _print_scores(_scores(module, config.data, config.size, config.batch, config.device), as_json)


def _require_test(config: TeacherConfig) -> None:
    """ValueError where the teacher's data has no rows to test on, before anything is trained on it."""
    if config.data is not None:
        from dfkd.data import load

        load(config.data, size=config.size).require_test("data")


def _scores(module: nn.Module, data: str, size: int | None, batch: int, device: str | None) -> dict[str, Any]:
    from dfkd.data import load
    from dfkd.evaluate import evaluate as score

    bar = runtime.Bar("evaluate", True)
    try:
        return dict(score(module, load(data, size=size), batch=batch, device=device, advance=bar.update))
    finally:
        bar.close()


def _print_scores(scores: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(scores))
        return
    print(f"accuracy {100 * scores['accuracy']:.2f} %   NLL {scores['nll']:.4f} nats   ECE {scores['ece']:.4f}")


# -- reading -----------------------------------------------------------------------------------------------------------


def report(folder: Path) -> None:
    """`dfkd report`."""
    from dfkd.report import print_table, write_report

    if not (folder / "results.jsonl").exists():
        raise ValueError(f"{folder}: expected the folder of a comparison, found no results.jsonl in it")
    page = write_report(folder)  # reads all that the table does, and more: what is damaged is said alone
    print_table(folder)
    say(f"report: {page}")
