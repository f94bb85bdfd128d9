"""torch.compile as a switch: what goes through it and what does not, that nothing else changes, and TF32."""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.compiler import config

from dfkd import commands, comparison, models
from dfkd.comparison import compare
from dfkd.compilation import forget_changed
from dfkd.config import CompareConfig, DistillConfig, dump, parse
from dfkd.engine import Budget, Optimiser, train
from dfkd.interfaces import Sampler
from dfkd.losses import DIST, DKD, KL, SP, Objective, combine
from dfkd.losses.derivatives import Jacobian
from dfkd.losses.features import Features
from dfkd.plan import Evaluation
from dfkd.problem import PRECISIONS, Probe, Problem
from dfkd.rng import initialised
from dfkd.runtime import tf32
from dfkd.schemes.offline import distill, make_problem
from dfkd.schemes.supervised import teach
from dfkd.synthesis import Settings, synthesize
from dfkd.types import Batch, InputSpec
from samplers import Adversarial, Balanced, Gaussian, Real, Uniform
from samplers.state import State

Command = Callable[..., Any]
SPEC = InputSpec((1, 4, 4), 3)
KL4 = combine({"kl": (1.0, KL(4.0))})
Calls = list[tuple[str, int]]
STEP: Calls = [("eval", 8), ("train", 8), ("loss", 8)]


def net(seed: int) -> nn.Sequential:
    with initialised(seed):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


def problem(precision: str = "float32") -> Problem:
    teacher, student = (
        Probe(net(1), SPEC, precision=precision),
        Probe(net(2), SPEC, name="student", precision=precision),
    )
    return Problem(teacher, student, SPEC, torch.device("cpu"))


def run(asked: Problem, sampler: Sampler, objective: Objective = KL4, **options: Any) -> list[Tensor]:
    """The student after six steps of eight rows."""
    budget = Budget(steps=6, batch=8)
    train(asked, sampler, objective, budget, Optimiser(learning_rate=0.1), 0, **{"compile": True} | options)
    return [value.detach().clone() for value in asked.student.module.state_dict().values()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """torch.compile gives back what it was given; what goes through it is noted: what, and of how many rows."""
    noted: Calls = []

    def compile(function: nn.Module | Objective, **options: Any) -> Callable[..., Any]:
        assert options == {"mode": "default", "dynamic": False}

        def call(*given: Any) -> Any:
            if isinstance(function, Objective):
                noted.append(("loss", len(given[2])))
            else:
                noted.append(("train" if function.training else "eval", given[0].shape[0]))
            return function(*given)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    return noted


def test_labelling_and_learning_of_whole_batches_go_through_it(calls: Calls) -> None:
    with torch.no_grad():
        expected = run(problem(), Uniform(), compile=False)
    assert calls == []
    found = run(problem(), Uniform())
    assert calls == STEP * 6
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """torch.compile gives back what it was given; each call is noted, and whether its weights may be constants."""
    noted: list[tuple[Any, bool]] = []

    def compile(function: Any, **_: Any) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            noted.append((function, inductor.freezing))
            return function(*given)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    return noted


def test_what_never_changes_is_folded_and_nothing_else(folded: list[tuple[Any, bool]]) -> None:
    asked = problem()
    for _ in range(2):
        run(asked, Uniform())
    assert [fold for _, fold in folded] == [True, False, False] * 12
    assert all((function is asked.teacher.module) == fold for function, fold in folded)
    assert not inductor.freezing


class Parts(nn.Module):
    """What a module may hold: a parameter, buffers, saved with it or not, and tensors that it has to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(2)
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.plain, self.several = torch.ones(2), {"list": [torch.ones(()), torch.ones(2, dtype=torch.bool)]}

    def all(self) -> dict[str, Tensor]:
        variance = self.inner.running_var
        assert isinstance(variance, Tensor)
        assert isinstance(self.unsaved, Tensor)
        found = {"buffer": variance, "unsaved": self.unsaved, "plain": self.plain, "weight": self.weight}
        return found | dict(zip(("scalar", "truth"), self.several["list"], strict=True))


@pytest.mark.parametrize("name", Parts().all())
def test_compiled_code_is_let_go_of_where_it_has_other_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows the tensor again, whatever module it is in."""
    reset = list[bool]()
    monkeypatch.setattr(torch.compiler, "reset", lambda: reset.append(True))
    parts = Parts()
    for module in (parts, parts, nn.Sequential(parts), Parts()):
        forget_changed(module)
    assert not reset
    parts.all()[name].data.zero_()
    for module in (nn.Sequential(nn.Identity(), parts), parts, Parts()):
        forget_changed(module)
    assert reset == [True]  # once, for what it was before


def test_what_the_student_trains_is_not_folded(folded: list[tuple[Any, bool]]) -> None:
    teacher, student = net(1), net(2)
    student[-1] = teacher[-1]
    run(replace(problem(), teacher=Probe(teacher, SPEC), student=Probe(student, SPEC, name="student")), Uniform())
    assert len(folded) == 18
    assert not any(fold for _, fold in folded)


@pytest.mark.parametrize(
    "sampler", [Adversarial(base=Uniform(), steps=2), Balanced(base=Gaussian())], ids=["search", "choice"]
)
def test_what_a_sampler_asks_does_not(calls: Calls, sampler: Sampler) -> None:
    asked = problem()
    run(asked, sampler)
    assert asked.teacher.images > 2 * 6 * 8  # it did ask
    assert calls == STEP * 6


@pytest.mark.parametrize(
    ("loss", "through"),
    [
        (Jacobian(), []),  # a gradient's gradient, which compiled code has not
        (Features(pairs=(("2", "2"),)), []),  # hooks, which it does not call
        (SP(), []),
        (DIST(), STEP[:2]),  # whether rows count differently is looked at on the host
        (DKD(warmup=0.5), STEP[:2]),  # it is another one at each step
        (DKD(warmup=0.0), STEP),
    ],
    ids=["slopes", "features", "penultimate", "whole batch", "changing", "logits"],
)
def test_losses_that_look_inside_do_without(calls: Calls, loss: Any, through: Calls) -> None:
    objective = combine({"only": (1.0, loss)})
    expected = run(problem(), Uniform(), objective, compile=False)
    for one, other in zip(run(problem(), Uniform(), objective), expected, strict=True):
        assert torch.equal(one, other)
    assert calls == through * 6


def test_other_hooks_are_called(calls: Calls) -> None:
    probe = problem().teacher
    x = torch.rand(8, *SPEC.shape)
    with probe.compiled(8), probe.counting("label"):
        probe(x)
        assert len(calls) == 1
        with probe.batchnorm_inputs() as seen:
            probe(x)
            assert len(seen) == 1
        with probe.penultimate() as given:
            probe(x)
            assert len(given) == 1
        with probe.taps("2"):
            assert list(probe(x).features) == ["2"]
        assert len(calls) == 1
        probe(x[:7])
        assert len(calls) == 1
    with probe.counting("label"):
        probe(x)
    assert len(calls) == 1


def test_a_run_continues_exactly(calls: Calls, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop() -> dict[str, float]:
        raise Stopped

    expected = run(problem(), Uniform())
    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        run(problem(), Uniform(), checkpoint=file, checkpoint_seconds=0.0, monitor=stop, log_points=2)
    assert file.exists()
    found = run(problem(), Uniform(), checkpoint=file, log_points=2)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert calls


def test_where_it_cannot_be_compiled_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def compile(module: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        del module, options

        def call(*_: Tensor) -> Tensor:
            raise TorchDynamoException("no compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(
        ValueError, match=r"^compile: torch\.compile cannot compile the teacher here \(no compiler found\)"
    ):
        run(problem(), Uniform())


@pytest.mark.usefixtures("calls")
def test_where_its_gradient_cannot_be_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is made in the first backward pass."""
    from torch._dynamo.exc import TorchDynamoException

    def backward(*_: Any, **__: Any) -> None:
        raise TorchDynamoException("no compiler found\nand much more")

    monkeypatch.setattr(Tensor, "backward", backward)
    with pytest.raises(ValueError, match=r"^compile: torch\.compile cannot compile the student's gradient here"):
        run(problem(), Uniform())
    with pytest.raises(TorchDynamoException):
        run(problem(), Uniform(), compile=False)


def test_a_layout_that_a_model_cannot_take_is_no_fault_of_compiling(calls: Calls) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.last = nn.Conv2d(2, 2, 1), nn.Linear(2 * 16 * 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.maps(x).view(len(x), -1))
            return out

    spec = InputSpec((2, 16, 16), 3)
    teacher, student = (Probe(Flat(), spec, name=name) for name in ("teacher", "student"))
    run(Problem(teacher, student, spec, torch.device("cpu")), Uniform())
    assert calls == STEP * 6


@pytest.mark.filterwarnings("default")  # its own modules warn of one another
def test_runs_of_many_batches_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has a limit for each class of models, beyond which it does nothing and says so in a log alone."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(x.flatten(1))
            return out

    graphs: list[Any] = []

    def noting(graph: Any, inputs: Any) -> Any:
        del inputs
        graphs.append(graph)
        return graph.forward

    real, limit = torch.compile, config.recompile_limit
    monkeypatch.setattr(torch, "compile", lambda module, **_: real(module, backend=noting, dynamic=False))
    sizes = range(2, 8)
    for rows in sizes:
        asked = Problem(Probe(Small(), SPEC), Probe(Small(), SPEC, name="student"), SPEC, torch.device("cpu"))
        train(asked, Uniform(), KL4, Budget(steps=1, batch=rows), Optimiser(), 0, compile=True)
    assert len(graphs) == 3 * len(sizes) > limit
    assert config.recompile_limit == limit


# -- the setting -------------------------------------------------------------------------------------------------------

WAYS: dict[str, tuple[tuple[str, ...], int]] = {
    "compare": (("compare", "samplers=[uniform]", "seeds=[0]", "evaluate.columns=[draws]", "--workers", "1"), 1),
    "distill": (("distill", "sampler=uniform"), 1),
    "assistants": (("distill", "sampler=uniform", "assistants=[{model: digits_cnn, options: {width: 2}}]"), 2),
    "candidates": (("distill", "samplers=[uniform, gaussian]"), 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_a_student_passes_it_on(
    way: str, run: Command, teachers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[nn.Module] = []

    def compile(module: nn.Module, **options: Any) -> nn.Module:
        del options
        made.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    words, students = WAYS[way]
    settings = (f"teacher={teachers[0]}", "student.model=digits_cnn", "student.options.width=2", "device=cpu")
    said = run(*words, *settings, "budget.steps=2", "budget.batch=8", "compile=true", "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert len(made) == 3 * students
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["compile"] is True


def test_rows_are_the_samplers_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded writes its next answer where the last one lies."""
    lie: dict[str, Tensor] = {}
    kept: list[tuple[Tensor, Tensor]] = []

    def compile(function: Any, **_: Any) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            out = function(*given)
            if not isinstance(function, Objective):
                return out
            lie.setdefault("rows", torch.empty_like(out.rows)).copy_(out.rows)
            return replace(out, rows=lie["rows"])

        return call

    class Keeping(Uniform):
        def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
            del state, batch
            kept.append((loss, loss.clone()))

    monkeypatch.setattr(torch, "compile", compile)
    run(problem(), Keeping())
    assert len(kept) == 6
    assert all(torch.equal(now, then) for now, then in kept)


def test_a_taught_model_is_compiled(calls: Calls, quadrants: Path) -> None:
    spec = InputSpec((1, 8, 8), 4)
    teach("digits_cnn", Real(str(quadrants)), spec=spec, budget=Budget(steps=2, batch=8), device="cpu", compile=True)
    assert calls == STEP[1:] * 2


@pytest.mark.parametrize("kind", [CompareConfig, DistillConfig])
def test_where_it_is_off_it_is_not_written(kind: Any) -> None:
    """Folders that were begun before it was a setting go on."""
    model = {"model": "digits_cnn"}
    plain = {"teacher": model, "student": model, "samplers": ["uniform"]}
    assert "compile" not in dump(parse(kind, plain))
    assert dump(parse(kind, {**plain, "compile": True}))["compile"] is True


def test_a_folder_begun_in_python_before_it_was_a_setting_goes_on(quadrants: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": str(quadrants), "budget": Budget(steps=1), "seeds": [0], "workers": 1}
    options |= {"evaluate": Evaluation(columns=("draws",)), "device": "cpu", "out": tmp_path / "out"}
    with initialised(1):
        teacher = models.build("digits_cnn", InputSpec((1, 8, 8), 4), width=2)
    compare(teacher, "digits_cnn", [Uniform()], **options)
    assert "compile" not in yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    with pytest.raises(ValueError, match="holds another run, which differs in compile"):
        compare(teacher, "digits_cnn", [Uniform()], compile=True, **options)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # its own modules warn of one another
def test_compiled_and_plain_students_agree() -> None:
    """In rounding: sums are taken in another order. A teacher that has changed since is taken as it is."""
    teacher = net(1)
    norm, head = teacher[1], teacher[4]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    assert isinstance(head, nn.Linear)

    def agree(module: nn.Module, labelling: Any = "eval") -> None:
        pair = [
            run(replace(problem(), teacher=Probe(module, SPEC)), Uniform(labelling=labelling), compile=compile)
            for compile in (True, False)
        ]
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    agree(teacher, "batch")
    agree(teacher)
    with torch.no_grad():
        norm.running_mean.add_(0.5)
        agree(teacher)
        head.bias.mul_(-2.0)
    agree(nn.Sequential(nn.Identity(), teacher))
    with torch.no_grad():
        norm.running_var.mul_(3.0)
    agree(nn.Sequential(nn.Identity(), teacher))
    agree(net(3))


# -- TF32 --------------------------------------------------------------------------------------------------------------


BACKENDS: Any = torch.backends


def rounded() -> tuple[str, str]:
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


class Noting(Uniform):
    """Uniform noise that notes how float32 products are rounded."""

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        noted.append(rounded())
        return super().draw(state, problem, n, learn)


noted: list[tuple[str, str]] = []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_rounded_in_a_run_alone(precision: str, tmp_path: Path) -> None:
    """Or where images are kept; `float32` is no less than that, though torch's convolutions are unless told."""
    before = rounded()
    within = {"tf32": ("tf32", "tf32"), "float32": ("ieee", "ieee"), "bfloat16": before}
    assert before not in (within["tf32"], within["float32"])
    for use in (
        lambda: run(problem(precision), Noting(), compile=False),
        lambda: synthesize(Noting(), problem(precision), Settings(n=4, rows=4, learn=0), tmp_path, {}),
    ):
        noted.clear()
        use()
        assert rounded() == before
        assert set(noted) == {within[precision]}


def _new() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def _one_part() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def test_what_the_caller_had_set_is_put_back() -> None:
    """By torch's older switches or its newer ones, of which mixtures cannot be read; in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=_put_back)
    process.start()
    process.join()
    assert process.exitcode == 0


def _put_back() -> None:
    for caller in (lambda: None, lambda: torch.set_float32_matmul_precision("medium"), _one_part, _new):
        caller()
        before = _switches()
        for on, expected in ((True, "tf32"), (False, "ieee")):
            with tf32(on):
                assert rounded() == (expected, expected)
            assert _switches() == before


def _switches() -> list[str]:
    """All that torch says of it; an error is an answer too."""
    found = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: (*rounded(), BACKENDS.cudnn.rnn.fp32_precision, BACKENDS.mkldnn.matmul.fp32_precision),
    ):
        try:
            found.append(str(read()))
        except RuntimeError as error:
            found.append(type(error).__name__)
    return found


def test_answers_say_so_in_all_phases() -> None:
    probe = problem("tf32").teacher
    x = torch.rand(2, *SPEC.shape)
    assert probe(x).precision == "tf32"
    with probe.counting("label"):
        assert probe(x).precision == "tf32"


def test_a_cpu_has_none() -> None:
    with pytest.raises(ValueError, match=r"^precision: tf32 is a GPU's, found device cpu; float32 is the nearest$"):
        make_problem(net(1), net(2), SPEC, device="cpu", precision="tf32")
    with pytest.raises(ValueError, match="tf32 is a GPU's"):
        distill(net(1), net(2), Uniform(), spec=SPEC, device="cpu", precision="tf32")


@pytest.mark.parametrize(
    "words", [("distill", "sampler=uniform"), ("synthesize", "uniform", "--n", "4"), ("compare", "samplers=[uniform]")]
)
def test_a_command_says_so_before_a_teacher_is_trained(
    words: tuple[str, ...], run: Command, quadrants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr(commands, "teacher_of", refuse)
    settings = ("teacher.model=digits_cnn", f"teacher.data={quadrants}", "student.model=digits_cnn", "device=cpu")
    said = run(*words, *settings, "precision=tf32", "--out", tmp_path / "out")
    assert said.status == 2
    assert "precision: tf32 is a GPU's, found device cpu" in said.err


def test_a_comparison_is_tried_as_for_the_device_that_it_will_have(
    run: Command, quadrants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else tf32 would be refused on a GPU, too, where the teacher is yet to be trained."""
    tried: list[str] = []

    def note(settings: Any) -> None:
        tried.append(settings.device)
        raise ValueError("seen")

    monkeypatch.setattr(commands, "as_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(comparison, "try_settings", note)
    settings = ("teacher.model=digits_cnn", f"teacher.data={quadrants}", "student.model=digits_cnn")
    said = run("compare", *settings, "samplers=[uniform]", "precision=tf32", "--out", tmp_path / "out")
    assert said.err.strip().endswith("seen")
    assert tried == ["cuda:0"]
