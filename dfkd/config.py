"""Settings from YAML files and KEY=VALUE words, checked against the parts' own dataclasses.

There is one description of every option: the dataclass field it ends up in. A misspelt name gets the nearest known
one; a wrong type or an illegal value is one line that says where it stands.
"""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dfkd.engine import Budget, Optimiser, Stop
from dfkd.interfaces import Loss, Sampler, default_label
from dfkd.losses import At, Objective, OfSources, combine
from dfkd.naming import unknown
from dfkd.plain import read_yaml
from dfkd.plan import Evaluation, check_choices, check_plan, check_presets
from dfkd.registry import GENERATORS, LOSSES, SAMPLERS, SCHEMES, find
from dfkd.schemes.ensemble import check_rule
from dfkd.schemes.from_teacher import FromTeacher
from dfkd.schemes.together import Scheme
from dfkd.scouting import Settings as ScoutSettings
from dfkd.synthesis import Settings as DrawSettings

__all__ = [
    "CompareConfig",
    "DistillConfig",
    "EvaluateConfig",
    "GeneratorBudget",
    "GeneratorConfig",
    "ScoutConfig",
    "StudentConfig",
    "SynthesizeConfig",
    "TeacherConfig",
    "dump",
    "generator",
    "objective",
    "parse",
    "read_settings",
    "sampler",
    "scheme",
    "spelt_out",
    "words",
]


@dataclass(frozen=True)
class TeacherConfig:
    """A model, and where its weights come from: a file, or training on labelled data.

    model: a registry name, `package.module:function` or `torchvision:NAME`; options: what it is built with. weights: a
    .safetensors file or a `weights_only` state dict; a file that dfkd saved names model, shape and classes itself.
    normalise: `auto` (what the file says, else the model's own convention), `none`, a known name or
    [[mean...], [std...]]. data: a source of images; size: they are resized to it; limit: on how many it is trained, the
    first of a fixed permutation, null for all. shape and classes: the input where no data says so. seed, budget,
    optimiser, crop, flip: how it is trained where there are no weights. members: an
    ensemble of teachers, for each a weights file or what it has other than this one, such as {seed: 1}; rule: how they
    are combined, mean_prob, mean_tempered (at this temperature, which is to be the loss's) or mean_logit.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    normalise: Any = "auto"
    data: str | None = None
    size: int | None = None
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    seed: int = 0
    budget: Budget = Budget(steps=2000, batch=128)
    optimiser: Optimiser = Optimiser()
    crop: int = 0
    flip: bool = False
    # not written, nor part of what a training is known by, where there are none: what was begun without them goes on
    limit: int | None = field(default=None, repr=False, metadata={"unless": None})
    members: tuple[Any, ...] = field(default=(), repr=False, metadata={"unless": ()})
    rule: str = field(default="mean_prob", repr=False, metadata={"unless": "mean_prob"})
    temperature: float | None = field(default=None, repr=False, metadata={"unless": None})

    def __post_init__(self) -> None:
        check_rule(self.rule, self.temperature)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected an integer >= 1, found {self.limit!r}")
        if self.members and self.weights is not None:
            raise ValueError("weights: expected none beside members, which have their own")
        if not self.members and (self.rule, self.temperature) != ("mean_prob", None):
            raise ValueError(f"rule: expected members to combine by {self.rule}, found none")


@dataclass(frozen=True)
class StudentConfig:
    """A student. model: a registry name or `package.module:function`; options: what it is built with.

    For any model options may be separable: true (depthwise-separable convolutions) and bits: 4 (weights and activations
    rounded in the forward pass, 2 to 16). weights and normalise: as for a teacher; given, they are where every student
    starts from. from_teacher: in [0, 1], how far from there to the weights of a teacher of the same architecture, which
    it is at 1. scheme: whom it is trained together with, as {name: {option: value}}.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    normalise: Any = "auto"
    # not written where there is none: folders that were begun before these were settings go on
    from_teacher: float | None = field(default=None, metadata={"unless": None})
    scheme: Any = field(default=None, metadata={"unless": None})

    def __post_init__(self) -> None:
        if self.from_teacher is not None:
            FromTeacher("any", self.from_teacher)
        if self.scheme is not None:
            scheme(self.scheme)


@dataclass(frozen=True)
class CompareConfig:
    """The settings of `dfkd compare`.

    teacher: see TeacherConfig, or the name of a weights file. control_teacher: the same for an independent teacher;
    `auto` trains one where the first was trained on labelled data; null for none. control_seeds: at how many seeds its
    students are trained; null for all. student: a model and its options. objective: losses by name with `weight` and
    options; for any of them also sources: [0], the parts of a mixture on whose rows alone it counts, and members:
    [0, 1], the members of an ensemble that teach it, a term for each; under a name of your own, with `loss: kl`, a loss
    may stand there several times. samplers: names, or {name: {option: value}}, each with a `label` if need be; where
    one is published for several data sets, `variant` names the settings that the options are laid over, as in
    {dafl: {variant: cifar10}}.
    precision: `float32`, `tf32` or `bfloat16`; null is bfloat16 on a GPU, else float32. compile: models and
    objective through torch.compile, for long runs on a GPU or of large nets: up to minutes to begin with, then quicker
    steps. student_train: `train` or `fixed`; student_score: `eval`, `batch` or `recalibrated` BatchNorm. preset:
    whether recipes that say how their authors trained the student have it trained so (objective, optimiser, batch);
    else all share one training.
    """

    teacher: TeacherConfig
    student: StudentConfig
    samplers: dict[str, Sampler]
    control_teacher: TeacherConfig | str | None = "auto"
    control_seeds: int | None = None
    objective: dict[str, Any] = field(default_factory=lambda: {"kl": {"temperature": 4.0}})
    budget: Budget = Budget(steps=2000)
    optimiser: Optimiser = Optimiser()
    evaluate: Evaluation = Evaluation()
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str | None = None
    precision: str | None = None
    # not written where it is off: folders that were begun before it was a setting go on
    compile: bool = field(default=False, metadata={"unless": False})
    student_train: str = "train"
    student_score: str = "eval"
    preset: bool = False

    def __post_init__(self) -> None:
        objective(self.objective)
        measures(self.evaluate.losses)
        check_plan(self)


@dataclass(frozen=True)
class DistillConfig:
    """The settings of `dfkd distill`: as for compare, with one sampler and one seed.

    samplers: several in place of the one: a student is trained on each, and the one is kept that matches best on the
    draws of all, weighted by what the teacher says of them. stop: ends the run before its budget where a signal that
    needs no data is flat. Neither ever sees a test set. preset: whether a recipe that says how its authors trained the
    student has it trained so: objective, optimiser and batch. assistants: students in between, in order, each trained
    as the last one is and then the teacher of the next; the student itself again for generations.
    """

    teacher: TeacherConfig
    student: StudentConfig
    sampler: Sampler | None = None
    samplers: dict[str, Sampler] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=lambda: {"kl": {"temperature": 4.0}})
    budget: Budget = Budget(steps=2000)
    optimiser: Optimiser = Optimiser()
    seed: int = 0
    device: str | None = None
    precision: str | None = None
    compile: bool = field(default=False, metadata={"unless": False})
    student_train: str = "train"
    stop: Stop | None = None
    preset: bool = False
    assistants: tuple[Any, ...] = field(default=(), metadata={"unless": ()})

    def __post_init__(self) -> None:
        objective(self.objective)
        check_choices(self)
        for number, assistant in enumerate(self.assistants):
            parse(StudentConfig, assistant, f"assistants[{number}]")
        if self.assistants and self.samplers:
            raise ValueError("assistants: expected one sampler with them, found several")
        if bool(self.samplers) == (self.sampler is not None):
            raise ValueError("sampler: expected one sampler, or several named by samplers")
        if self.stop is not None:
            self.stop.span(self.optimiser)  # a rate that cannot be held is found now
            if self.samplers:
                raise ValueError("stop: expected one sampler with it, as several are compared at equal budgets")
        if self.preset:
            check_presets({self.sampler.name: self.sampler} if self.sampler is not None else self.samplers)


@dataclass(frozen=True)
class ScoutConfig:
    """The settings of `dfkd scout`: a teacher and an untrained student as for distill, samplers as for compare.

    samplers: those to rank; none named, all that there are. draws: how many rows are looked at.
    """

    teacher: TeacherConfig
    student: StudentConfig
    samplers: dict[str, Sampler] = field(default_factory=dict)
    draws: ScoutSettings = ScoutSettings()
    device: str | None = None


@dataclass(frozen=True)
class SynthesizeConfig:
    """The settings of `dfkd synthesize`: a teacher, a student and a sampler as for distill.

    n, rows, learn, seed: see dfkd.synthesis.Settings; the student stays untrained, or as its weights have it.
    reference: labelled data that the draws are compared with once they are there, of which they do not depend.
    """

    teacher: TeacherConfig
    student: StudentConfig
    sampler: Sampler
    n: int
    rows: int = 256
    learn: int = 100
    seed: int = 0
    device: str | None = None
    precision: str | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        _ = self.draws  # what is illegal is found now

    @property
    def draws(self) -> DrawSettings:
        return DrawSettings(self.n, self.rows, self.learn, self.seed)


@dataclass(frozen=True)
class EvaluateConfig:
    """The settings of `dfkd evaluate`: a model, its weights, and labelled data."""

    data: str
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    normalise: Any = "auto"
    size: int | None = None
    batch: int = 500
    device: str | None = None


@dataclass(frozen=True)
class GeneratorBudget:
    """steps: of the generator, >= 1; batch: real images at a time, >= 1. None for what its kind usually takes."""

    steps: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")


@dataclass(frozen=True)
class GeneratorConfig:
    """The settings of `dfkd train-generator`.

    data: a source of labelled images, of which those to train on are learnt; size: they are resized to it; limit: how
    many are read, null for all. generator: its kind, as {name: {option: value}}. conditional: whether it is told the
    classes. flip: whether half of the real images are mirrored; leave it where a mirrored image is another, as of
    characters. budget: steps and batch. grid_every: steps from one sheet of samples to the next, null for ten of them.
    """

    data: str
    size: int | None = None
    limit: int | None = None
    generator: Any = "sn_gan"
    conditional: bool = True
    flip: bool = False
    budget: GeneratorBudget = GeneratorBudget()
    grid_every: int | None = None
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        generator(self.generator)
        if self.grid_every is not None and self.grid_every < 1:
            raise ValueError(f"grid_every: expected an integer >= 1, found {self.grid_every!r}")


# -- reading -----------------------------------------------------------------------------------------------------------


def read_settings(words: Iterable[str], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """YAML files and KEY=VALUE words, in order, each laid over what came before; KEY may be dotted."""
    settings: dict[str, Any] = dict(base or {})
    for word in words:
        key, equals, value = word.partition("=")
        if equals and not os.path.isfile(word):  # no file where the system takes no name so long
            _set(settings, key.strip().split("."), read_yaml(value, word), word)
            continue
        path = Path(word)
        if not os.path.isfile(word):
            raise ValueError(f"{word}: expected a YAML file or KEY=VALUE, found no such file")
        try:
            loaded = read_yaml(path.read_text(encoding="utf-8"), word)
        except UnicodeDecodeError as error:
            raise ValueError(f"{word}: expected a YAML file, found bytes that are not text") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{word}: expected settings by name, found {type(loaded).__name__}")
        settings |= loaded
    return settings


def _set(settings: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    if not all(keys):
        raise ValueError(f"{word}: expected KEY=VALUE, found no key")
    for depth, key in enumerate(keys[:-1]):
        inner = settings.get(key)
        if isinstance(inner, str):
            inner = spelt_out(inner) if depth == 0 and key in _MODELS else {inner: {}}
        if inner is not None and not isinstance(inner, Mapping):
            raise ValueError(f"{word}: {'.'.join(keys[: depth + 1])} is {inner!r}, which has no {keys[depth + 1]!r}")
        settings[key] = dict(inner or {})  # a copy: what is laid over stays as it was
        settings = settings[key]
    settings[keys[-1]] = value


_MODELS = ("teacher", "control_teacher", "student")


def spelt_out(model: str) -> dict[str, Any]:
    """A teacher or student in one word: a weights file, or a model."""
    return {"weights": model} if Path(model).suffix and ":" not in model else {"model": model}


def parse(cls: type[Any], settings: Any, where: str = "", beside: Iterable[str] = ()) -> Any:
    """An instance of a dataclass of settings from plain values; ValueError with the place of what is wrong.

    beside: what else may stand there and was taken out before, for the nearest name.
    """
    if cls in (TeacherConfig, StudentConfig) and isinstance(settings, str):
        settings = spelt_out(settings)
    if cls is Evaluation and isinstance(settings, list):
        settings = {"columns": settings}
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where or cls.__name__}: expected settings by name, found {settings!r}")
    hints = typing.get_type_hints(cls)
    options = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values = {}
    for key, value in settings.items():
        if key == "data" and key not in options and "teacher" in options:
            raise ValueError(
                "settings: unknown 'data'; a teacher's is teacher.data, and what a student is to learn from is a "
                f"sampler: [{{real: {{data: {value}}}}}]"
            )
        if key not in options:
            raise unknown(f"{where}: option" if where else "settings", str(key), [*options, *beside])
        over = _over_default(options[key], value)
        values[key] = _convert(hints[key], over, f"{where}.{key}" if where else key)
    for name, option in options.items():
        bare = option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
        if bare and name not in values:
            ask = f"expected {words(hints[name])}" if where else f"give {name}=VALUE, or a file of settings that has it"
            raise ValueError(f"{where or 'settings'}: {name} is missing; {ask}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a class of the user's may compare what cannot be compared
        said = str(error).removeprefix(f"{where.rpartition('.')[2]}: ")
        raise ValueError(f"{where}: {said}" if where else str(error)) from error


_LIMITS = {"steps", "teacher_images", "seconds"}


def _over_default(option: "dataclasses.Field[Any]", value: Any) -> Any:
    """A part of a budget or an optimiser is laid over what the field has by default: `budget.batch=64` keeps the steps.

    A budget's limits go together: where one is given, those of the default do not hold beside it.
    """
    default = option.default
    if not isinstance(value, Mapping) or not isinstance(default, (Budget, Optimiser)):
        return value
    kept = {part.name: getattr(default, part.name) for part in dataclasses.fields(default) if part.init}
    if isinstance(default, Budget) and _LIMITS & set(value):
        kept = {name: setting for name, setting in kept.items() if name not in _LIMITS}
    return kept | dict(value)


def sampler(spec: Any, where: str = "sampler") -> tuple[str | None, Sampler]:
    """(label or None, sampler) from `name` or `{name: {option: value, label: text, variant: name}}`."""
    name, options = _named(spec, where)
    label = options.pop("label", None)
    if label is not None and not isinstance(label, str):
        raise ValueError(f"{where}.{name}.label: expected text, found {label!r}")
    cls, at = find(where, name, SAMPLERS) if ":" not in name else _user_class(name, where), f"{where}.{name}"
    beside = ("label", "variant") if getattr(cls, "variants", ()) else ("label",)
    made = parse(cls, _over_variant(cls, options, at), at, beside)
    if not isinstance(made, Sampler):
        missing = [part for part in _SAMPLER if not hasattr(made, part)]
        raise ValueError(f"{where}: {name} is not a sampler; it has no {', '.join(missing)}")
    return label, made


def _over_variant(cls: type[Any], options: dict[str, Any], where: str) -> dict[str, Any]:
    """Options laid over those of the variant that they name, where the class has any."""
    known = getattr(cls, "variants", ())
    if not known or "variant" not in options:
        return options
    variant = options["variant"]
    if variant not in known:
        raise unknown(f"{where}.variant", str(variant), known)
    return _fields(getattr(cls, variant)()) | {name: value for name, value in options.items() if name != "variant"}


_SAMPLER = ("name", "data_free", "needs", "uses_student", "init", "draw", "observe")


def objective(spec: Mapping[str, Any], at: str = "objective") -> Objective:
    """A weighted sum of losses from {name: {option: value, weight: number}}; `at` is where that stands.

    A name of the user's own stands for the `loss` that its options name. sources: on the rows of these parts of a
    mixture alone. members: of these members of an ensemble, a term for each with its share of the weight.
    """
    terms: dict[str, tuple[float, Loss]] = {}
    for entry in spec.items():
        name, options = _named(dict([entry]), at)
        where = f"{at}.{name}"
        weight = _convert(float, options.pop("weight", 1.0), f"{where}.weight")
        sources, members = (
            _convert(tuple[int, ...] | None, options.pop(key, None), f"{where}.{key}") for key in ("sources", "members")
        )
        kind = _convert(str, options.pop("loss", name), f"{where}.loss")
        beside = ("weight", "sources", "members", "loss")
        loss: Loss = parse(find(at if kind == name else f"{where}.loss", kind, LOSSES), options, where, beside)
        if sources is not None:
            loss = _part(OfSources, where, loss=loss, sources=sources)
        if members is None:
            terms[name] = (weight, loss)
            continue
        if not members or min(members) < 0 or len(set(members)) != len(members):
            raise ValueError(f"{where}.members: expected different places of members, from 0, found {list(members)!r}")
        for member in members:
            terms[f"{name} of member {member}"] = (weight / len(members), At(f"members.{member}", loss, "teacher"))
    return combine(terms)


def measures(spec: Mapping[str, Any]) -> dict[str, Loss]:
    """Losses by label, to measure students by, from {name: {option: value}}."""
    at = "evaluate.losses"
    for name, options in spec.items():
        for option in ("weight", "sources", "members"):
            if isinstance(options, Mapping) and option in options:
                raise ValueError(f"{at}.{name}: expected the loss's own options, found {option}, which only trains")
    return {label: loss for label, (_, loss) in objective(spec, at).terms.items()} if spec else {}


def _part(cls: type[Any], where: str, **options: Any) -> Any:
    try:
        return cls(**options)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def scheme(spec: Any) -> Scheme:
    """Whom a student is trained together with, from `name` or {name: {option: value}}."""
    name, options = _named(spec, "scheme")
    made: Scheme = parse(find("scheme", name, SCHEMES), options, f"scheme.{name}")
    return made


def generator(spec: Any) -> Any:
    """The settings of a kind of generator, from `name` or {name: {option: value}}."""
    name, options = _named(spec, "generator")
    return parse(find("generator", name, GENERATORS), options, f"generator.{name}")


def _named(spec: Any, where: str) -> tuple[str, dict[str, Any]]:
    """`name` or {name: options} -> (name, options)."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, options),) = spec.items()
        if options is None or isinstance(options, Mapping):
            return str(name), dict(options or {})
    hint = ""
    if isinstance(spec, Mapping) and len(spec) > 1:  # an option beside the name instead of under it
        name, option = list(spec)[:2]
        hint = f"; its options stand under its name: {where}.{name}.{option}"
    raise ValueError(f"{where}: expected a name or {{name: {{option: value}}}}, found {spec!r}{hint}")


def _user_class(reference: str, where: str) -> Any:
    from dfkd.models.build import import_function

    try:
        found: Any = import_function(reference)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('model: ')}") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{where}: expected {reference!r} to be a dataclass of settings with init, draw and observe")
    return found


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type that a field is annotated with."""
    kinds = [k for k in typing.get_args(hint) if k is not types.NoneType] if _is_union(hint) else [hint]
    if value is None and _is_union(hint) and types.NoneType in typing.get_args(hint):
        return None
    if Sampler in kinds:
        return value if isinstance(value, Sampler) else sampler(value, where)[1]
    if typing.get_args(hint) and Sampler in typing.get_args(hint):
        return _several(hint, value, where)
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and not (isinstance(value, str) and str in kinds):
            if isinstance(value, kind):  # type: ignore[arg-type]  # a dataclass type
                return value
            return parse(kind, value, where)  # type: ignore[arg-type]  # a dataclass type
    if hint is not Any and not _same_truth(kinds, value):
        raise ValueError(f"{where}: expected {words(hint)}, found {_shown(value)}")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{where}: expected {words(hint)}, found {_shown(value)}") from error


def _same_truth(kinds: Iterable[Any], value: Any) -> bool:
    """Whether true and false stand only where they may, and nothing else does where they must: 1 is not true."""
    kinds = list(kinds)
    if isinstance(value, bool):
        return bool in kinds
    if kinds == [bool]:
        return False
    if isinstance(value, (list, tuple)):
        inner = [k for kind in kinds for k in typing.get_args(kind) if k is not Ellipsis]
        return any(k is Any for k in inner) or all(_same_truth(inner, part) for part in value)
    return True


def _shown(value: Any) -> str:
    """As it stands in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _several(hint: Any, value: Any, where: str) -> Any:
    """A list of samplers, as a tuple of them or by label."""
    if value == {} and typing.get_origin(hint) is dict:
        return {}  # as `dump` writes it where none are named
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{where}: expected a list of samplers, found {value!r}")
    if not value:
        raise ValueError(f"{where}: expected at least one sampler, found none")
    entries = [sampler(entry, f"{where}[{place}]") for place, entry in enumerate(value)]
    if typing.get_origin(hint) is not dict:
        return tuple(part for _, part in entries)

    labelled: dict[str, Sampler] = {}
    for label, part in entries:
        name = default_label(part) if label is None else label
        if name in labelled:
            raise ValueError(f"{where}: two samplers are called {name!r}; give one of them a label")
        labelled[name] = part
    return labelled


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def words(hint: Any) -> str:
    """An annotation as people say it."""
    if _is_union(hint):
        return " or ".join(words(k) for k in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (tuple, list):
        inner = [k for k in typing.get_args(hint) if k is not Ellipsis]
        return f"a list of {len(inner)}" if len(inner) > 1 else f"a list, each {words(inner[0])}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", types.NoneType: "null"}
    names |= {Path: "a path", dict: "settings by name", Sampler: "a sampler"}
    if typing.get_origin(hint) is dict:
        return names[dict]
    return names.get(hint, getattr(hint, "__name__", str(hint)))


# -- writing -----------------------------------------------------------------------------------------------------------


def _fields(settings: Any) -> dict[str, Any]:
    return {f.name: dump(getattr(settings, f.name)) for f in dataclasses.fields(settings) if _written(f, settings)}


def dump(settings: Any) -> Any:
    """Plain values that `parse` reads back as the same settings."""
    if isinstance(settings, Sampler):
        cls = type(settings)
        known = find("sampler", settings.name, SAMPLERS) if settings.name in SAMPLERS else None
        name = settings.name if known is cls else f"{cls.__module__}:{cls.__qualname__}"
        return {name: _fields(settings)}
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return _fields(settings)
    if isinstance(settings, Mapping) and settings and all(isinstance(v, Sampler) for v in settings.values()):
        return [_with_label(label, dump(part)) for label, part in settings.items()]
    if isinstance(settings, Mapping):
        return {key: dump(value) for key, value in settings.items()}
    if isinstance(settings, (tuple, list)):
        return [dump(value) for value in settings]
    if isinstance(settings, Path):
        return str(settings)
    return settings


def _written(f: "dataclasses.Field[Any]", settings: Any) -> bool:
    return f.init and not ("unless" in f.metadata and getattr(settings, f.name) == f.metadata["unless"])


def _with_label(label: str, dumped: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ((name, options),) = dumped.items()
    return {name: {"label": label, **options}}
