"""The scout's score by hand, what it asks of samplers and leaves alone, its list of candidates, and the command."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor, nn

import dfkd
from dfkd.candidates import candidates
from dfkd.interfaces import Sampler, walk
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.registry import SAMPLERS
from dfkd.rng import Stream
from dfkd.scouting import CRITERIA, Scouted, Settings, ranked, scout, table
from dfkd.types import Batch, InputSpec
from samplers import CMI, NAYER, DeepInversion, Pooled, SRe2L, Uniform

SPEC = InputSpec((1, 8, 8), 4)
QUICK = Settings(rows=48, batch=16, learn=3)
Network = Callable[..., nn.Module]


@dataclass(frozen=True)
class Toy:
    """One bright image over and over, or what `fault` says; keeps what is asked of it."""

    fault: str = ""
    follows: bool = False
    seen: list[Any] = field(default_factory=list, hash=False, compare=False)
    name: ClassVar[str] = "toy"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def uses_student(self) -> bool:
        return self.follows

    def init(self, problem: Problem, seed: int) -> Stream:
        if self.fault == "unsupported":
            raise UnsupportedProblem("toy: needs a teacher\nwith patience")
        return Stream(seed, problem.device)

    def draw(self, state: Stream, problem: Problem, n: int, learn: bool = True) -> Batch:
        if self.fault == "draw":
            raise ValueError("toy: cannot draw")
        assert torch.is_grad_enabled()
        assert not any(p.requires_grad for p in problem.teacher.module.parameters())
        self.seen.append(("draw", n, learn, problem.progress, problem.horizon))
        value = torch.nan if self.fault == "nan" else 0.9
        state.advance()
        return Batch(torch.full((n, *problem.spec.shape), value))

    def observe(self, state: Stream, batch: Batch, loss: Tensor) -> None:
        del state, batch
        assert not loss.requires_grad
        self.seen.append(("observe", tuple(loss.shape)))


# -- the score ---------------------------------------------------------------------------------------------------------


def found(label: str, entropy: float, gauss: float | None, rank: float) -> Scouted:
    values = {"histogram_entropy": entropy, "batchnorm_gauss": gauss, "feature_rank": rank}
    return Scouted(label, True, values=values)


def test_score_by_hand() -> None:
    """a beats both, then b and c tie, then is last: (1 + 1/2 + 0) / 3, where nothing but the first is told apart."""
    three = [found("a", 0.9, 0.2, 1.0), found("b", 0.5, 0.1, 2.0), found("c", 0.1, 0.3, 3.0)]
    scores = {one.label: one.score for one in ranked(three)}
    assert scores == pytest.approx({"a": (1 + 0.5 + 0) / 3, "b": (0.5 + 1 + 0.5) / 3, "c": (0 + 0 + 1) / 3})
    assert [one.label for one in ranked(three)] == ["b", "a", "c"]
    near = {one.label: one.score for one in ranked(three, {"histogram_entropy": 0.45})}
    assert near == pytest.approx({"a": (0.75 + 0.5 + 0) / 3, "b": (0.5 + 1 + 0.5) / 3, "c": (0.25 + 0 + 1) / 3})


def test_what_one_lacks_is_not_counted_for_any() -> None:
    scores = {one.label: one.score for one in ranked([found("a", 0.9, None, 1.0), found("b", 0.5, 0.1, 2.0)])}
    assert scores == {"a": 0.5, "b": 0.5}
    assert [one.score for one in ranked([found("a", 0.9, 0.1, 1.0)])] == [0.5]


def test_a_score_is_a_share_and_the_unusable_come_last() -> None:
    best, worst = found("best", 1.0, 0.0, 9.0), found("worst", 0.0, 9.0, 1.0)
    out = Scouted("out", reason="no")
    assert [(one.label, one.score) for one in ranked([worst, out, best])] == [("best", 1), ("worst", 0), ("out", None)]
    assert set(CRITERIA) == set(best.values)


# -- looking -----------------------------------------------------------------------------------------------------------


def look(network: Network, samplers: dict[str, Sampler], settings: Settings = QUICK, **options: Any) -> list[Scouted]:
    return scout(network(), options.pop("student", network(1)), samplers, spec=SPEC, settings=settings, **options)


def test_what_is_like_the_data_is_before_one_image_over_and_over(network: Network) -> None:
    """The stored statistics of this teacher are those of uniform noise."""
    teacher = network().train()
    with torch.no_grad(), torch.random.fork_rng():
        for _ in range(80):
            teacher(torch.rand(32, *SPEC.shape))
    best, worst = scout(
        teacher, network(1), {"same": Toy(), "uniform": Uniform(labelling="eval")}, spec=SPEC, settings=QUICK
    )
    assert best.label == "uniform"
    assert best.score is not None
    assert best.score > 0.8  # noise may be all one class, which is a tie
    assert worst.values["feature_rank"] == pytest.approx(1.0, abs=1e-3)
    assert worst.values["histogram_entropy"] == 0.0
    assert (best.values["batchnorm_gauss"] or 0.0) < 0.1 < (worst.values["batchnorm_gauss"] or 0.0)
    assert [layer.name for layer in best.layers] == ["bn1", "bn2", "bn3"]


def test_edge_and_slope_are_shown_and_decide_nothing(network: Network) -> None:
    """White noise has no slope; one image over and over, flat, has none that could be said."""
    lines = look(network, {"same": Toy(), "uniform": Uniform()})
    white = next(one for one in lines if one.label == "uniform")
    slope, edge = white.values["spectral_slope"], white.values["boundary_share"]
    assert slope == pytest.approx(0.0, abs=0.25)
    assert edge is not None
    head, *rows = table(lines).splitlines()[:3]
    assert head.split()[-4:] == ["edge", "slope", "images", "time"]
    shown = {row.split()[1]: row.split()[-5:-3] for row in rows}
    assert shown["uniform"] == [f"{edge:.3g}", f"{slope:.3g}"]
    assert shown["same"][1] == "-"
    turned = [replace(one, values={**one.values, "spectral_slope": 9.0, "boundary_share": 0.0}) for one in lines]
    assert [(one.label, one.score) for one in ranked(turned)] == [(one.label, one.score) for one in ranked(lines)]


def test_what_cannot_be_used_is_listed_with_its_reason(network: Network) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    samplers: dict[str, Sampler] = {
        "u": Toy("unsupported"),
        "d": Toy("draw"),
        "n": Toy("nan"),
        "deep_inversion": DeepInversion(steps=1),
        "ok": Uniform(),
    }
    lines = scout(plain, network(), samplers, spec=SPEC, settings=QUICK)
    assert [one.label for one in lines] == ["ok", "u", "d", "n", "deep_inversion"]
    reasons = [one.reason or "" for one in lines]
    assert reasons[:4] == [
        "",
        "needs a teacher with patience",
        "cannot draw",
        "its draws are not finite",
    ]
    assert reasons[4].startswith("needs a teacher with batchnorm")
    text = table(lines)
    for one in lines[1:]:
        assert f"    {one.label}: {one.reason}" in text
    assert lines[0].values["batchnorm_gauss"] is None
    inner = {"pooled": Pooled(DeepInversion(steps=1))}  # whose part it is that asks for it
    assert (scout(plain, network(), inner, spec=SPEC)[0].reason or "").startswith("deep_inversion: needs a teacher")


def test_what_no_sampler_has_is_neither_a_column_nor_in_the_score(network: Network) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    text = table(scout(plain, network(), {"uniform": Uniform(), "toy": Toy()}, spec=SPEC, settings=QUICK))
    assert "BatchNorm" not in text
    assert "averaged over classes (more), variety (more)\n" in text
    text = table(look(network, {"uniform": Uniform(), "toy": Toy()}))
    assert "a bad one on MNIST" in text
    assert "averaged over classes (more), BatchNorm (less), variety (more)\n" in text
    assert "\nBatchNorm: nats per channel" in text


def test_only_what_follows_the_student_learns_first(network: Network) -> None:
    still, follows, hurried = Toy(), Toy(follows=True), Toy(follows=True)
    look(network, {"still": still, "follows": follows})
    assert still.seen == [("draw", 48, True, 0.0, 2000)]
    turn = [("draw", 8, True, 0.0, 2000), ("observe", (8,))]
    assert follows.seen == [*turn * 3, ("draw", 48, True, 0.0, 2000)]
    (one,) = look(network, {"hurried": hurried}, Settings(rows=48, learn=3, seconds=0.0))
    assert (one.learned, len(hurried.seen)) == (0, 1)


def test_what_takes_too_long_is_given_up_in_the_middle_of_a_draw(network: Network) -> None:
    """A draw of a million steps; the teacher has no hook left, and the next sampler is scored."""
    teacher = network()
    endless = DeepInversion(steps=1_000_000, batch=8)
    lines = scout(
        teacher,
        network(1),
        {"endless": endless, "pooled": Pooled(endless, round=8), "uniform": Uniform()},
        spec=SPEC,
        settings=Settings(rows=48, limit=0.2),
    )
    assert [one.label for one in lines] == ["uniform", "endless", "pooled"]
    for one in lines[1:]:
        assert one.reason == "its first 48 rows take more than 0.2 s; draws.limit= gives it more"
    assert not teacher._forward_pre_hooks


def test_leaves_everything_as_it_was(network: Network) -> None:
    teacher, student = network().train(), network(1).train()
    before = [{key: value.clone() for key, value in net.state_dict().items()} for net in (teacher, student)]
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    scout(teacher, student, {"p": Pooled(DeepInversion(steps=2, batch=8), round=8)}, spec=SPEC, settings=QUICK)
    assert torch.equal(torch.get_rng_state(), expected)
    for net, old in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in net.state_dict().items())
        assert all(part.training for part in net.modules())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_repeats_itself_whatever_stands_beside_it(network: Network) -> None:
    inverted = Pooled(DeepInversion(steps=2, batch=16), round=16)
    (alone,) = look(network, {"p": inverted})
    beside = next(one for one in look(network, {"u": Uniform(), "q": inverted, "p": inverted}) if one.label == "p")
    assert beside.values == alone.values
    # 3 batches would be 2 x 16 x 2; a pool asks for one round, and both of its users are charged for it
    assert alone.teacher_images == beside.teacher_images >= 64
    (other,) = look(network, {"p": inverted}, Settings(rows=48, batch=16, seed=1))
    assert other.values != alone.values


@pytest.mark.parametrize(
    ("name", "value"), [("rows", 1), ("batch", 0), ("learn", -1), ("seconds", float("nan")), ("rows", True)]
)
def test_names_the_wrong_setting(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a number >= \d, found"):
        Settings(**{name: value})


# -- candidates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, "digits"])
def test_every_sampler_is_a_candidate_or_has_a_reason(data: str | None) -> None:
    made, left = candidates(data, None)
    covered = {part.name for sampler in made.values() for part in walk(sampler)}
    assert covered | set(left) == set(SAMPLERS)
    assert not covered & set(left)
    assert ("real" in made) == (data is not None)
    assert all(reason for reason in left.values())
    assert {"uniform", "deep_inversion", "pooled-deep_inversion", "adversarial-pooled-deep_inversion"} <= set(made)


def test_a_candidate_that_is_looked_at_with_other_settings_says_so() -> None:
    """What a recipe does before its first draw may take minutes; its label says how much less of it is looked at."""
    made, _ = candidates("digits", None)
    alone = {label: sampler for label, sampler in made.items() if len(list(walk(sampler))) == 1 and label != "real"}
    for label, sampler in alone.items():
        assert (label == sampler.name) == (sampler == type(sampler)())
    assert alone["cmi (50 of 200 steps)"] == CMI(steps=50)
    assert alone["nayer (1 round of 20 steps)"] == NAYER(warmup=0, rounds=1, steps=20)
    assert alone["sre2l (1 of 50 rounds)"] == SRe2L(rounds=1)
    assert (CMI().steps, SRe2L().rounds) == (200, 50)


# -- the command -------------------------------------------------------------------------------------------------------

SHORT = ["draws.limit=600", "draws.rows=16", "draws.learn=1", "draws.batch=8"]
INVERTED = "{pooled: {base: {deep_inversion: {steps: 1, batch: 16}}, round: 16}}"


def test_command_prints_a_table_and_json(run: Callable[..., Any], teachers: tuple[Path, Path]) -> None:
    words = ["scout", teachers[0], f"samplers=[uniform, {INVERTED}, real]", *SHORT]
    said = run(*words)
    assert said.status == 0, said.err
    rows = {line.split()[1]: line.split()[0] for line in said.out.splitlines() if line[:3].strip().isdigit()}
    assert set(rows) == {"uniform", "pooled-deep_inversion"}
    assert sorted(rows.values()) == ["1", "2"]
    assert "not scored:\n    real: data: expected images (1, 8, 8) of 4 classes" in said.out
    assert "No student was trained" in said.out
    lines = json.loads(run(*words, "--json").out)
    assert [line["label"] for line in lines if line["reason"] is None] == sorted(rows, key=rows.__getitem__)
    assert {"score", "values", "layers", "teacher_images", "seconds", "data_free"} <= set(lines[0])
    assert len(lines[0]["layers"]) == 3


def test_command_reads_the_file_of_a_comparison(
    run: Callable[..., Any], tmp_path: Path, teachers: tuple[Path, Path]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"teacher: {teachers[0]}\nsamplers: [uniform]\nseeds: [0]\nbudget: {{steps: 3}}\n")
    said = run("scout", file, *SHORT)
    assert said.status == 0, said.err
    assert "not used here: seeds, budget" in said.err
    file.write_text(f"teacher: {teachers[0]}\nsampler: uniform\n")  # of distill: all are ranked for it
    said = run("scout", file, "samplers=[gaussian]", *SHORT)
    assert (said.status, "not used here: sampler\n" in said.err) == (0, True)
    wrong = run("scout", file, "smaplers=[uniform]")
    assert wrong.err.splitlines()[-1] == "dfkd: settings: unknown 'smaplers'; the nearest is 'samplers'"


def test_command_without_samplers_takes_all(run: Callable[..., Any]) -> None:
    said = run("scout", "digits", "--dry-run")
    settings = yaml.safe_load(said.out)
    assert settings["teacher"]["data"] == "digits"
    assert settings["student"]["model"] == "digits_cnn"
    names = [name for entry in settings["samplers"] for name in entry]
    assert {"real", "uniform", "pooled", "adversarial", "generative"} <= set(names)
    assert run("scout").err.startswith("dfkd: settings: teacher is missing; give teacher=VALUE")


def test_a_list_of_samplers_is_labelled_as_for_compare(network: Network) -> None:
    wrong: Any = ["uniform"]
    found = dfkd.scout(network(), network(), [Uniform(), Pooled(DeepInversion(steps=1))], spec=SPEC, settings=QUICK)
    assert {one.label for one in found} == {"uniform", "pooled-deep_inversion"}
    with pytest.raises(ValueError, match=r"samplers: expected samplers, such as Uniform\(\), found 'uniform'"):
        dfkd.scout(network(), network(), wrong, spec=SPEC)
    with pytest.raises(ValueError, match="samplers: two of them have the same label"):
        dfkd.scout(network(), network(), [Uniform(), Uniform()], spec=SPEC)


def test_weights_of_an_unknown_network_are_told_what_to_say(
    run: Callable[..., Any], tmp_path: Path, network: Network
) -> None:
    file = tmp_path / "own.pt"
    torch.save(network().state_dict(), file)
    for words in ([], ["teacher.shape=[1,8,8]", "teacher.classes=4"]):
        said = run("scout", str(file), *words)
        assert said.status == 2
        assert "own.pt does not say what network it is of; name it by teacher.model=" in said.err
