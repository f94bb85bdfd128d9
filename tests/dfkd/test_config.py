"""Settings in and out: what is read, what is written back, and one line for whatever is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd import config
from dfkd.config import CompareConfig, DistillConfig, EvaluateConfig, TeacherConfig, dump, objective, parse, sampler
from dfkd.engine import Budget
from dfkd.interfaces import Loss, Sampler
from dfkd.losses import KL, LogitMSE
from dfkd.plan import Evaluation
from dfkd.registry import SAMPLERS, find
from samplers import Adversarial, DeepInversion, Gaussian, Mixture, Pooled, Real, Uniform

LEAST: dict[str, Any] = {"teacher": "t.safetensors", "student": "digits_cnn", "samplers": ["uniform"]}
DEMO: dict[str, Any] = yaml.safe_load((Path(config.__file__).parent / "demo.yaml").read_text())


def written(settings: Any) -> Any:
    """Through YAML and back, as a run folder keeps it."""
    return yaml.safe_load(yaml.safe_dump(dump(settings), sort_keys=False))


def read(tmp_path: Path, text: str, *words: str) -> dict[str, Any]:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return config.read_settings([str(file), *words])


# -- round trips -------------------------------------------------------------------------------------------------------


def test_the_demo_is_read_back_as_written() -> None:
    demo: CompareConfig = parse(CompareConfig, DEMO)
    assert parse(CompareConfig, written(demo)) == demo
    assert len(demo.samplers) >= 8
    assert all(isinstance(part, Sampler) for part in demo.samplers.values())


def with_defaults(name: str) -> Sampler:
    cls = find("sampler", name, SAMPLERS)
    given = {
        "samplers": (Uniform(), Gaussian(std=0.1)),
        "data": "cifar10",
        "file": "g.safetensors",
        "folder": "pipeline",
    }
    needed = {
        f.name: given.get(f.name, Uniform(labelling="eval"))
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    made: Sampler = cls(**needed)
    return made


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_read_back_as_written(name: str) -> None:
    part = with_defaults(name)
    assert sampler(written(part)) == (None, part)


@pytest.mark.parametrize(
    "part",
    [
        Adversarial(Pooled(DeepInversion(steps=7, batchnorm=3.0), every=None, capacity=999), divergence="l1"),
        Mixture((Real("x.npz", limit=5), Pooled(Uniform("eval"))), weights=(0.25, 0.75)),
        Mixture((Mixture((Uniform(), Gaussian(0.1))), Real())),
    ],
)
def test_composites_of_composites_are_read_back_as_written(part: Sampler) -> None:
    assert sampler(written(part)) == (None, part)


def test_changed_settings_survive() -> None:
    settings = parse(
        CompareConfig,
        LEAST
        | {
            "teacher": {"model": "a.b:c", "weights": "w.pt", "normalise": [[0.5], [0.25]], "shape": [1, 8, 8]},
            "control_teacher": {"model": "a.b:d", "data": "digits", "crop": 2, "flip": True},
            "objective": {"kl": {"temperature": 2, "weight": 0.5}, "logit_mse": None},
            "budget": {"teacher_images": 10, "batch": 3},
            "evaluate": {"columns": ["draws"], "epsilons": [1]},
            "seeds": [3, 1],
        },
    )
    again = parse(CompareConfig, written(settings))
    assert again == settings
    assert again.budget == Budget(batch=3, teacher_images=10)
    assert again.teacher.shape == (1, 8, 8)
    assert again.control_teacher.flip is True
    assert again.seeds == (3, 1)


OWN = """
from dataclasses import dataclass
from typing import ClassVar
@dataclass(frozen=True)
class Grey:
    level: float = 0.5
    name: ClassVar[str] = "grey"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False
    def init(self, problem, seed): ...
    def draw(self, state, problem, n, learn=True): ...
    def observe(self, state, batch, loss): ...
@dataclass(frozen=True)
class Half:
    name: ClassVar[str] = "half"
    def init(self, problem, seed): ...
def plain(): ...
"""


def test_a_sampler_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_samplers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    label, part = sampler({"pooled": {"base": {"own_samplers:Grey": {"level": "2.5e-1"}}, "label": "mine"}})
    assert label == "mine"
    assert isinstance(part, Pooled)
    assert repr(part.base) == "Grey(level=0.25)"
    assert sampler(written(part)) == (None, part)
    wrong = [
        ("own_samplers:Gray", r"sampler: 'own_samplers' has no 'Gray'; the nearest is 'Grey'"),
        ("own_sampler:Grey", r"sampler: cannot import 'own_sampler' of 'own_sampler:Grey'"),
        ("own_samplers:plain", r"sampler: expected 'own_samplers:plain' to be a dataclass of settings"),
        ("own_samplers:Half", r"sampler: own_samplers:Half is not a sampler; it has no data_free, needs"),
        ({"own_samplers:Grey": {"levle": 1}}, r"own_samplers:Grey: option: unknown 'levle'; the nearest is 'level'"),
    ]
    for spec, message in wrong:
        with pytest.raises(ValueError, match=message):
            sampler(spec)


# -- words -------------------------------------------------------------------------------------------------------------


def test_numbers_may_be_written_as_yaml_reads_as_text() -> None:
    assert yaml.safe_load("1e-3") == "1e-3"  # why it matters
    assert sampler({"gaussian": {"std": "1e-3"}})[1] == Gaussian(std=0.001)
    assert sampler({"deep_inversion": {"batchnorm": "1e1"}})[1] == DeepInversion(batchnorm=10.0)
    assert sampler({"deep_inversion": {"batchnorm": "auto"}})[1] == DeepInversion()
    assert parse(CompareConfig, LEAST | {"optimiser": {"learning_rate": "5e-2"}}).optimiser.learning_rate == 0.05


def test_words_are_laid_over_files_in_order(tmp_path: Path) -> None:
    text = "teacher: {model: m, budget: {steps: 5}}\nseeds: [1]\nstudent: digits_cnn\n"
    found = read(tmp_path, text, "teacher.budget.batch=7", "seeds=[2,3]", "student.options.width=3", "out.new.key=x=y")
    assert found == {
        "teacher": {"model": "m", "budget": {"steps": 5, "batch": 7}},
        "seeds": [2, 3],
        "student": {"model": "digits_cnn", "options": {"width": 3}},
        "out": {"new": {"key": "x=y"}},
    }


def test_words_leave_what_they_are_laid_over_alone() -> None:
    base: dict[str, Any] = {"teacher": {"budget": {"steps": 5}}}
    config.read_settings(["teacher.budget.steps=6"], base)
    assert base == {"teacher": {"budget": {"steps": 5}}}


def test_a_sampler_in_a_word_gets_options() -> None:
    found = config.read_settings(["sampler=uniform", "sampler.uniform.labelling=eval"])
    assert sampler(found["sampler"]) == (None, Uniform(labelling="eval"))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("t.safetensors", TeacherConfig(weights=Path("t.safetensors"))),
        ("resnet20", TeacherConfig(model="resnet20")),
        ("pack.age:function", TeacherConfig(model="pack.age:function")),
    ],
)
def test_a_teacher_in_one_word(word: str, expected: TeacherConfig) -> None:
    assert parse(TeacherConfig, word) == expected
    assert config.read_settings([f"teacher={word}", "teacher.seed=0"])["teacher"].items() >= {"seed": 0}.items()
    assert parse(TeacherConfig, config.read_settings([f"teacher={word}", "teacher.seed=0"])["teacher"]) == expected


def test_labels() -> None:
    specs = ["uniform", {"uniform": {"labelling": "eval", "label": "other"}}, {"pooled": {"base": "gaussian"}}]
    found: CompareConfig = parse(CompareConfig, LEAST | {"samplers": specs})
    assert found.samplers == {
        "uniform": Uniform(),
        "other": Uniform(labelling="eval"),
        "pooled-gaussian": Pooled(Gaussian()),
    }


def test_columns_may_be_a_list() -> None:
    assert parse(CompareConfig, LEAST | {"evaluate": ["test", "uniform"]}).evaluate == Evaluation(("test", "uniform"))


def test_an_objective() -> None:
    found = objective({"kl": {"temperature": 3, "weight": "5e-1"}, "logit_mse": None})
    expected: dict[str, tuple[float, Loss]] = {"kl": (0.5, KL(temperature=3.0)), "logit_mse": (1.0, LogitMSE())}
    assert found.terms == expected


def test_options_of_a_distillation_and_an_evaluation() -> None:
    distil = {"teacher": "t.safetensors", "student": "digits_cnn", "sampler": {"pooled": {"base": "uniform"}}}
    found: DistillConfig = parse(DistillConfig, distil)
    assert found.sampler == Pooled(Uniform())
    assert parse(DistillConfig, written(found)) == found
    assert parse(EvaluateConfig, {"data": "digits", "weights": "w.pt"}).weights == Path("w.pt")


# -- what is wrong -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"samplres": []}, r"^settings: unknown 'samplres'; the nearest is 'samplers'$"),
    (
        {"data": "digits"},
        r"^settings: unknown 'data'; a teacher's is teacher\.data, .* \[\{real: \{data: digits\}\}\]$",
    ),
    ({"teacher": {"modle": "x"}}, r"^teacher: option: unknown 'modle'; the nearest is 'model'$"),
    ({"teacher": {"budget": {"step": 3}}}, r"^teacher.budget: option: unknown 'step'; the nearest is 'steps'$"),
    ({"samplers": ["unifrom"]}, r"^samplers\[0\]: unknown 'unifrom'; the nearest is 'uniform'$"),
    (
        {"samplers": ["real", {"adversarial": {"base": {"pooled": {"base": "generativ"}}}}]},
        r"^samplers\[1\].adversarial.base.pooled.base: unknown 'generativ'; the nearest is 'generative'$",
    ),
    (
        {"samplers": [{"gaussian": {"sdt": 1}}]},
        r"^samplers\[0\].gaussian: option: unknown 'sdt'; the nearest is 'std'$",
    ),
    (
        {"samplers": [{"mixture": {"samplers": ["uniform", "rael"]}}]},
        r"^samplers\[0\].mixture.samplers\[1\]: unknown 'rael'; the nearest is 'real'$",
    ),
    ({"objective": {"kll": {}}}, r"^objective: unknown 'kll'; the nearest is 'kl'$"),
    ({"objective": {"kl": {"temprature": 1}}}, r"^objective.kl: option: unknown 'temprature'; .* 'temperature'$"),
    ({"objective": {"kl": 4}}, r"^objective: expected a name or .*found \{'kl': 4\}$"),
    ({"objective": {"kl": {"weight": -1}}}, r"^objective.kl: expected a finite weight >= 0, found -1"),
    ({"objective": {}}, r"^objective: expected at least one loss"),
    ({"objective": "kl"}, r"^objective: expected settings by name, found 'kl'$"),
    ({"evaluate": {"losses": {"ckaa": {}}}}, r"^evaluate.losses: unknown 'ckaa'; the nearest is 'cka'$"),
    (
        {"evaluate": {"losses": {"cka": {"weight": 2}}}},
        r"^evaluate.losses.cka: expected the loss's own options, found weight, which only trains$",
    ),
    ({"optimiser": {"name": "adam"}}, r"^optimiser: unknown 'adam'; the nearest is 'adamw'$"),
    ({"optimiser": {"schedule": "cosin"}}, r"^optimiser: schedule: unknown 'cosin'; the nearest is 'cosine'$"),
    ({"evaluate": {"columns": ["tset"]}}, r"^evaluate: columns: unknown 'tset'; the nearest is 'test'$"),
    ({"evaluate": {"corruptions": ["nose@3"]}}, r"^evaluate: .*'nose'; the nearest is 'noise'"),
    ({"evaluate": {"corruptions": ["noise@9"]}}, r"^evaluate: .*9"),
    ({"evaluate": {"worst_case_around": "unifrom"}}, r"^worst_case_around: unknown 'unifrom'; .* is 'uniform'$"),
    # types
    ({"seeds": 3}, r"^seeds: expected a list, each a whole number, found 3$"),
    ({"seeds": [1.5]}, r"^seeds: expected a list, each a whole number, found \[1.5\]$"),
    ({"seeds": [True, False]}, r"^seeds: expected a list, each a whole number, found \[True, False\]$"),
    ({"budget": {"steps": "many"}}, r"^budget.steps: expected a whole number or null, found 'many'$"),
    ({"budget": {"steps": True}}, r"^budget.steps: expected a whole number or null, found true$"),
    ({"budget": {"batch": None}}, r"^budget.batch: expected a whole number, found null$"),
    ({"budget": 5}, r"^budget: expected settings by name, found 5$"),
    ({"optimiser": {"learning_rate": False}}, r"^optimiser.learning_rate: expected a number, found false$"),
    ({"optimiser": {"nesterov": 1}}, r"^optimiser.nesterov: expected true or false, found 1$"),
    ({"evaluate": {"epsilons": [True]}}, r"^evaluate.epsilons: expected a list, each a number, found \[True\]$"),
    ({"samplers": [{"gaussian": {"std": True}}]}, r"^samplers\[0\].gaussian.std: expected a number, found true$"),
    ({"samplers": [{"gaussian": {"std": [1]}}]}, r"^samplers\[0\].gaussian.std: expected a number, found \[1\]$"),
    ({"samplers": [{"uniform": {"labelling": "evl"}}]}, r"^samplers\[0\].uniform.labelling: expected one of .*'evl'$"),
    ({"samplers": "uniform"}, r"^samplers: expected a list of samplers, found 'uniform'$"),
    ({"samplers": []}, r"^samplers: expected at least one sampler, found none$"),
    (
        {"samplers": [{"gaussian": {}, "std": 0.5}]},
        r"^samplers\[0\]: expected a name or .*; its options stand under its name: samplers\[0\].gaussian.std$",
    ),
    ({"samplers": [3]}, r"^samplers\[0\]: expected a name or .*found 3$"),
    ({"samplers": [{"uniform": 3}]}, r"^samplers\[0\]: expected a name or .*found \{'uniform': 3\}$"),
    ({"samplers": [{"uniform": {"label": 3}}]}, r"^samplers\[0\].uniform.label: expected text, found 3$"),
    ({"samplers": ["pooled"]}, r"^samplers\[0\].pooled: base is missing; expected a sampler$"),
    ({"samplers": [{"pooled": {"base": 3}}]}, r"^samplers\[0\].pooled.base: expected a name or .*found 3$"),
    ({"teacher": {"weights": 3}}, r"^teacher.weights: expected a path or null, found 3$"),
    ({"teacher": {"shape": [1, 8]}}, r"^teacher.shape: expected a list of 3 or null, found \[1, 8\]$"),
    ({"teacher": {"options": 3}}, r"^teacher.options: expected settings by name, found 3$"),
    ({"teacher": None}, r"^teacher: expected settings by name, found None$"),
    # ranges
    ({"seeds": []}, r"^seeds: expected different integers, found \[\]$"),
    ({"seeds": [1, 1]}, r"^seeds: expected different integers, found \[1, 1\]$"),
    ({"control_seeds": 0}, r"^control_seeds: expected an integer >= 1 or null for all, found 0$"),
    ({"budget": {"steps": 0}}, r"^budget: steps: expected an integer >= 1, found 0$"),
    ({"budget": {"steps": None}}, r"^budget: expected at least one of steps, teacher_images, seconds"),
    ({"optimiser": {"learning_rate": 0}}, r"^optimiser: learning_rate: expected a number > 0, found 0"),
    ({"optimiser": {"learning_rate": ".nan"}}, r"^optimiser.learning_rate: expected a number, found '.nan'$"),
    ({"optimiser": {"learning_rate": float("nan")}}, r"^optimiser: learning_rate: expected a number > 0, found nan"),
    ({"samplers": [{"gaussian": {"std": -1}}]}, r"^samplers\[0\].gaussian: std: expected a number > 0, found -1"),
    ({"evaluate": {"rows": 0}}, r"^evaluate: rows: expected an integer >= 1, found 0$"),
    ({"evaluate": {"columns": []}}, r"^evaluate: columns: expected at least one of"),
    ({"evaluate": {"epsilons": [300]}}, r"^evaluate: epsilons: expected numbers between 0 and 255"),
    ({"precision": "float16"}, r"^precision: expected one of float32, tf32, bfloat16, found 'float16'$"),
    ({"student_train": "eval"}, r"^student_train: expected one of train, fixed, found 'eval'$"),
    ({"student_score": "train"}, r"^student_score: expected one of eval, batch, recalibrated, found 'train'$"),
    # labels
    ({"samplers": ["uniform", "uniform"]}, r"^samplers: two samplers are called 'uniform'; give one of them a label$"),
    ({"samplers": [{"uniform": {"label": "../x"}}]}, r"^samplers: expected a label that can name a folder"),
    ({"samplers": [{"uniform": {"label": ""}}]}, r"^samplers: expected a label that can name a folder, found ''"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_wrong_settings_are_named_with_their_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        parse(CompareConfig, LEAST | change)
    assert "\n" not in str(found.value)


def test_what_is_missing_is_named() -> None:
    message = r"^settings: teacher is missing; give teacher=VALUE, or a file of settings that has it$"
    with pytest.raises(ValueError, match=message):
        parse(CompareConfig, {key: value for key, value in LEAST.items() if key != "teacher"})
    with pytest.raises(ValueError, match=r"expected settings by name, found \[1\]"):
        parse(CompareConfig, [1])


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("a: 1\nb: [1\nc: 2\n", (), r"settings.yaml: not YAML in line 3: "),
        ("a: 1\n\tb: 2\n", (), r"settings.yaml: not YAML in line 2: "),
        ("- 1\n", (), r"settings.yaml: expected settings by name, found list$"),
        ("", (), r"settings.yaml: expected settings by name, found NoneType$"),
        ("a: 1", ("missing.yaml",), r"^missing.yaml: expected a YAML file or KEY=VALUE, found no such file$"),
        ("a: 1", ("=3",), r"^=3: expected KEY=VALUE, found no key$"),
        ("a: 1", ("a..b=3",), r"^a..b=3: expected KEY=VALUE, found no key$"),
        ("a: 1", ("b={",), r"^b=\{: not YAML in line 1: "),
        ("a: {b: 1}\nc: 1\na: {b: 2}\n", (), r"settings.yaml: expected each key once, found 'a' in lines 1 and 3; "),
        ("a: 1", ("a={b: 1, b: 2}",), r"^a=\{b: 1, b: 2\}: expected each key once, found 'b' twice in line 1; "),
        ("a: 1", ("a.b=3",), r"^a.b=3: a is 1, which has no 'b'$"),
        ("a: {b: [uniform]}", ("a.b.0.c=3",), r"^a.b.0.c=3: a.b is \['uniform'\], which has no '0'$"),
    ],
)
def test_wrong_words_are_named(text: str, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, *words)


def test_words_may_be_longer_than_the_name_of_a_file(tmp_path: Path) -> None:
    names = [f"sampler_{number}" for number in range(400)]
    assert read(tmp_path, "a: 1", f"samplers=[{', '.join(names)}]")["samplers"] == names


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"x.yaml: expected a YAML file, found bytes that are not text"):
        config.read_settings([str(tmp_path / "x.yaml")])


# -- a part of what has a default --------------------------------------------------------------------------------------


def test_a_part_of_a_budget_or_an_optimiser_is_laid_over_the_default() -> None:
    found: CompareConfig = parse(CompareConfig, LEAST | {"budget": {"batch": 64}, "optimiser": {"weight_decay": 0.5}})
    assert found.budget == Budget(steps=2000, batch=64)
    assert found.optimiser == dataclasses.replace(CompareConfig.optimiser, weight_decay=0.5)
    teacher = parse(TeacherConfig, {"model": "m", "budget": {"steps": 5}})
    assert teacher.budget == Budget(steps=5, batch=128)
    assert parse(TeacherConfig, {"model": "m", "budget": {"seconds": 9}}).budget == Budget(seconds=9.0, batch=128)
    assert parse(CompareConfig, written(found)) == found


def test_what_is_wrong_with_a_budget_is_said_under_its_name_once() -> None:
    with pytest.raises(ValueError, match=r"^budget: expected at least one of steps, teacher_images, seconds, found no"):
        parse(CompareConfig, LEAST | {"budget": {"steps": None}})
    with pytest.raises(ValueError, match=r"^teacher\.budget: expected at least one of steps"):
        parse(TeacherConfig, {"model": "m", "budget": {"steps": None}}, "teacher")
