"""A probe against slow references: what it answers, what it counts, and that it leaves the model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, linear

from dfkd.moments import moments
from dfkd.problem import PENULTIMATE, Phase, Probe, Problem, UnsupportedProblem
from dfkd.rng import initialised
from dfkd.types import Batch, BatchNormMode, InputSpec, Outputs

SPEC = InputSpec((2, 4, 4), 3)
X = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
MODES: tuple[BatchNormMode, ...] = ("eval", "batch")


class Net(nn.Module):
    """Two BatchNorm layers with statistics far from a batch's, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
        self.drop, self.inner = nn.Dropout(0.5), nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8))
        self.last = nn.Linear(8, 3)
        for part in (self.bn, self.inner[1]):
            part.running_mean.uniform_(-1, 1)  # type: ignore[operator]
            part.running_var.uniform_(0.5, 2)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.bn(self.conv(x)))).flatten(1)
        out: Tensor = self.last(torch.relu(self.inner(hidden)))
        return out


def probe(seed: int = 1, **options: Any) -> Probe:
    with initialised(seed):
        return Probe(Net(), SPEC, **options)


def slow(model: nn.Module, x: Tensor, mode: BatchNormMode) -> Tensor:
    """The same net from its state dict, each normalisation written out."""
    s = model.state_dict()

    def normalise(h: Tensor, name: str) -> Tensor:
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        if mode == "batch":
            rows = h.transpose(0, 1).flatten(1)
            mean = torch.stack([row.sum() / row.numel() for row in rows])
            var = torch.stack([((row - m) ** 2).sum() / row.numel() for row, m in zip(rows, mean, strict=True)])
        shape = (1, -1, *([1] * (h.ndim - 2)))
        h = (h - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        scaled: Tensor = h * s[f"{name}.weight"].view(shape) + s[f"{name}.bias"].view(shape)
        return scaled

    h = torch.relu(normalise(conv2d(x, s["conv.weight"], s["conv.bias"]), "bn")).flatten(1)
    h = torch.relu(normalise(linear(h, s["inner.0.weight"], s["inner.0.bias"]), "inner.1"))
    out: Tensor = linear(h, s["last.weight"], s["last.bias"])
    return out


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Parameters, buffers, gradients, modes, switches and hooks are afterwards what they were before."""

    def state() -> list[Any]:
        parts: list[Any] = [value.clone() for value in module.state_dict().values()]
        parts += [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
        for part in module.modules():
            hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
            parts.append((part.training, getattr(part, "track_running_stats", None), *map(len, hooks)))
        return parts

    before, random = state(), torch.get_rng_state()
    yield
    for old, new in zip(before, state(), strict=True):
        if isinstance(old, Tensor):
            assert torch.equal(old, new)
        elif isinstance(old[1], Tensor):
            assert old[0] == new[0]
            assert torch.equal(old[1], new[1])
        else:
            assert old == new
    assert torch.equal(torch.get_rng_state(), random)


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_answers_as_its_mode_says_whatever_it_stands_in(mode: BatchNormMode, training: bool) -> None:
    model = probe()
    model.module.train(training)
    model.module.get_submodule("inner").train(not training)  # and where parts differ
    with untouched(model.module):
        out = model(X, mode)
    torch.testing.assert_close(out.logits, slow(model.module, X, mode))
    assert (out.labelling, out.precision, dict(out.features)) == (((6, mode),), "float32", {})


def test_the_two_modes_differ_here() -> None:
    assert (slow(probe().module, X, "eval") - slow(probe().module, X, "batch")).abs().max() > 0.1


def test_batch_mode_without_stored_statistics_is_eval() -> None:
    with initialised(1):
        module = nn.Sequential(nn.Conv2d(2, 3, 4), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    model = Probe(module, SPEC)
    assert torch.equal(model(X, "eval").logits, model(X, "batch").logits)
    assert "batchnorm" not in model.capabilities


def test_a_raising_model_is_put_back_too() -> None:
    model = probe()
    model.module.train()
    with untouched(model.module), pytest.raises(RuntimeError):
        model(torch.zeros(2, 5, 4, 4), "batch")


def test_refuses_a_mode_that_is_none() -> None:
    with pytest.raises(ValueError, match="mode: expected one of eval, batch, found 'train'"):
        probe()(X, "train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision: expected one of float32, tf32, bfloat16"):
        probe(precision="half")


def test_fixed_and_train_are_the_students_own() -> None:
    """`learn` asks the module as it stands; BatchNorm in training follows momentum 0.1 with the unbiased variance."""
    model = probe()
    model.module.train()
    model.module.get_submodule("drop").eval()
    bn = model.module.get_submodule("bn")
    assert isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    hidden, mean, var = model.module.get_submodule("conv")(X), bn.running_mean.clone(), bn.running_var.clone()
    expected = slow(model.module, X, "batch")
    torch.testing.assert_close(model.learn(X).logits, expected)
    torch.testing.assert_close(bn.running_mean, 0.9 * mean + 0.1 * hidden.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(bn.running_var, 0.9 * var + 0.1 * hidden.var(dim=(0, 2, 3)))
    for part in (bn, model.module.get_submodule("inner.1")):
        part.eval()
    with untouched(model.module):
        fixed = model.learn(X).logits
    torch.testing.assert_close(fixed, slow(model.module, X, "eval"))
    fixed.sum().backward()
    assert bn.weight.grad is not None  # affine parameters still learn
    assert model.counts["label"]["forward"] == 12


def test_precision_is_for_labels_and_scores_only() -> None:
    model = probe(precision="bfloat16", channels_last=True)
    exact = slow(model.module, X, "eval")
    assert model(X).precision == "float32"
    torch.testing.assert_close(model(X).logits, exact)
    phases: tuple[Phase, ...] = ("label", "evaluate")
    for phase in phases:
        with model.counting(phase):
            out = model(X)
        assert (out.precision, out.logits.dtype) == ("bfloat16", torch.float32)
        assert 0 < (out.logits - exact).abs().max() < 0.1


def test_lower_precision_sees_the_weights_of_now() -> None:
    """Inside an autocast block that goes on for many steps, too."""
    model = probe(precision="bfloat16")
    with torch.autocast("cpu", enabled=False), model.counting("label"):
        before = model(X).logits.detach()
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.mul_(1.5)
        torch.testing.assert_close(model(X).logits, slow(model.module, X, "eval"), atol=0.1, rtol=0.05)
        assert (model(X).logits - before).abs().max() > 0.2


# -- layout --------------------------------------------------------------------------------------------------------


class Flattens(nn.Module):
    """A small net of the kind many write; `how` flattens its maps."""

    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.conv, self.linear, self.how = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4 * 256, 3), how
        self.last = False

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        self.last = maps.is_contiguous(memory_format=torch.channels_last)
        flat = maps.view(len(maps), -1) if self.how == "view" else maps.flatten(1)
        logits: Tensor = self.linear(flat)
        return logits


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_asked_channels_last_and_answers_are_the_same(channels: int) -> None:
    torch.manual_seed(0)
    module, spec = Flattens(channels, "flatten"), InputSpec((channels, 16, 16), 3)
    x = torch.rand(5, channels, 16, 16, requires_grad=True)
    expected = module(x)
    (slope,) = torch.autograd.grad(expected.square().sum(), x)
    laid = [module.last]
    model = Probe(module, spec)
    found = model(x).logits
    assert [*laid, module.last] == [False, True]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], slope)
    assert all(parameter.is_contiguous() for parameter in module.parameters())  # only the images were laid out


def test_a_module_that_views_its_maps_is_asked_as_it_can_be() -> None:
    torch.manual_seed(0)
    module, x = Flattens(3, "view"), torch.rand(5, 3, 16, 16)
    model = Probe(module, InputSpec((3, 16, 16), 3))
    torch.testing.assert_close(model(x).logits, module(x))
    assert not model.channels_last


def test_so_is_one_whose_weights_lie_channels_last() -> None:
    """As they do on a GPU: then its maps do whatever its images do."""
    torch.manual_seed(0)
    module, x = Flattens(3, "view"), torch.rand(5, 3, 16, 16)
    expected = module(x)
    model = Probe(module.to(memory_format=torch.channels_last), InputSpec((3, 16, 16), 3))
    model.check()
    torch.testing.assert_close(model(x).logits, expected)


def test_small_images_stay_channels_first() -> None:
    module = Flattens(3, "flatten")
    assert not Probe(module, InputSpec((3, 15, 16), 3)).channels_last
    assert Probe(module, InputSpec((3, 15, 16), 3), channels_last=True).channels_last


# -- counting ------------------------------------------------------------------------------------------------------


def test_counts_images_by_phase_and_direction() -> None:
    model = probe()
    model(X)
    with model.counting("label"), torch.no_grad():
        model(X[:2], "batch")
    with model.counting("evaluate"):
        model(X[:1])
    leaf = X[:4].clone().requires_grad_(True)
    out = model(leaf).logits
    with model.counting("evaluate"):  # a backward belongs to the phase of its forward
        torch.autograd.grad(out.sum(), leaf)
    assert model.counts == {
        "synthesise": {"forward": 10, "backward": 4},
        "label": {"forward": 2, "backward": 0},
        "evaluate": {"forward": 1, "backward": 0},
    }
    assert model.images == 16
    model.charge({"forward": 3, "backward": 5})
    model.charge({"forward": 1}, "label")
    assert model.images == 25
    assert model.phase == "synthesise"


def test_no_backward_is_counted_where_none_reaches_the_input() -> None:
    model = probe()
    model(X).logits.sum().backward()  # parameters only
    with torch.no_grad():
        model(X.clone().requires_grad_(True))
    assert model.counts["synthesise"] == {"forward": 12, "backward": 0}


def test_counting_leaves_value_and_gradient_alone() -> None:
    model, leaf, plain = probe(), X.clone().requires_grad_(True), X.clone().requires_grad_(True)
    ours = torch.autograd.grad(model(leaf).logits.square().sum(), leaf)[0]
    theirs = torch.autograd.grad(slow(model.module, plain, "eval").square().sum(), plain)[0]
    torch.testing.assert_close(ours, theirs)


# -- blocks --------------------------------------------------------------------------------------------------------


def test_frozen_asks_no_parameter_and_puts_back_what_was() -> None:
    model = probe()
    model.module.get_submodule("conv").requires_grad_(False)
    with untouched(model.module):
        leaf = X.clone().requires_grad_(True)
        with model.frozen():
            with model.frozen():
                assert not any(p.requires_grad for p in model.module.parameters())
            assert not any(p.requires_grad for p in model.module.parameters())
            model(leaf).logits.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0
    with pytest.raises(KeyError), untouched(model.module), model.frozen():
        raise KeyError


@pytest.mark.parametrize("mode", MODES)
def test_batchnorm_inputs_equal_their_definition(mode: BatchNormMode) -> None:
    model = probe()
    with untouched(model.module):
        with model.batchnorm_inputs() as seen:
            model(X[:3], mode)
            model(X, mode)
        assert [layer.name for layer in seen] == ["bn", "inner.1"]
    hidden = model.module.get_submodule("conv")(X)
    columns = [hidden[:, channel].flatten() for channel in range(5)]
    mean = torch.stack([column.sum() / column.numel() for column in columns])
    var = torch.stack([((column - column.mean()) ** 2).sum() / column.numel() for column in columns])
    torch.testing.assert_close(seen[0].mean, mean)
    torch.testing.assert_close(seen[0].var, var)  # biased
    torch.testing.assert_close(seen[0].running_mean, model.module.state_dict()["bn.running_mean"])
    torch.testing.assert_close(seen[0].running_var, model.module.state_dict()["bn.running_var"])
    normal = batch_norm(hidden, None, None, training=True)
    torch.testing.assert_close((hidden - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt(), normal)
    model(X)
    assert len(seen) == 2  # nothing is watched any more
    assert seen[0].mean.requires_grad


def test_statistics_are_taken_once_and_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        taken.append(x)
        return moments(x)

    monkeypatch.setattr("dfkd.problem.moments", counted)
    model = probe()
    with model.batchnorm_inputs() as seen:
        model(X)
        _ = seen[0].rows
        assert not taken
        assert seen[1].mean is seen[1].mean
        _ = seen[1].var
        assert len(taken) == 1
        with torch.no_grad():  # no input is kept then
            model(X)
        assert len(taken) == 3
        assert seen[0].input is None
        expected = moments(model.module.get_submodule("conv")(X))
        torch.testing.assert_close((seen[0].mean, seen[0].var), tuple(part.detach() for part in expected))


def test_taps_give_what_the_modules_gave_and_no_longer_than_the_block() -> None:
    model = probe()
    with untouched(model.module):
        with model.taps("conv", "inner"):
            with model.taps("last", "conv"):
                out = model(X)
            inner = model(X)
        assert set(out.features) == {"conv", "inner", "last"}
        assert set(inner.features) == {"conv", "inner"}
        torch.testing.assert_close(out.features["conv"], model.module.get_submodule("conv")(X))
        assert torch.equal(out.features["last"], out.logits)
        assert dict(model(X).features) == {}


def test_the_penultimate_tap_is_what_the_last_linear_layer_is_given() -> None:
    model = probe()
    with untouched(model.module):
        with model.taps(PENULTIMATE, "last"):
            out = model(X)
        with model.penultimate() as seen:
            model(X)
        assert out.features[PENULTIMATE].shape == (6, 8)
        assert torch.equal(out.features[PENULTIMATE], seen[0])
        assert torch.equal(linear(seen[0], *model.module.get_submodule("last").parameters()), out.features["last"])


def test_a_module_called_penultimate_goes_first() -> None:
    named = nn.Sequential()
    named.add_module(PENULTIMATE, nn.Flatten())
    named.add_module("last", nn.Linear(32, 3))
    model = Probe(named, SPEC)
    with model.taps(PENULTIMATE):
        assert torch.equal(model(X).features[PENULTIMATE], X.flatten(1))


def test_a_model_without_a_last_linear_layer_has_no_penultimate_tap() -> None:
    with (
        pytest.raises(UnsupportedProblem, match=r"tap 'penultimate': needs a teacher with penultimate; .* has logits"),
        Probe(NoGradient(), SPEC).taps(PENULTIMATE),
    ):
        pass
    with (
        pytest.raises(ValueError, match="unknown 'penultimat'; the nearest is 'penultimate'"),
        probe().taps("penultimat"),
    ):
        pass


@pytest.mark.parametrize("path", ["innr.0", ""])
def test_a_tap_that_is_not_there_is_named(path: str) -> None:
    model = probe()
    with (
        untouched(model.module),
        pytest.raises(ValueError, match="module path of the teacher: unknown"),
        model.taps("conv", path),
    ):
        pass


class Branches(nn.Module):
    """A map that is changed in place, a pair of tensors, a module nobody calls, and one that folds rows away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(SPEC.channels, 2, 3)
        self.pair = nn.LSTM(SPEC.width - 2, 4, batch_first=True)
        self.spare = nn.Identity()
        self.folded = nn.Identity()
        self.last = nn.LazyLinear(SPEC.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu_(self.conv(x))
        self.pair(maps.flatten(1, 2))
        logits: Tensor = self.last(maps.flatten(1))
        self.folded(logits.mean(dim=0))
        return logits


def branches() -> Probe:
    with initialised(3):
        module = Branches()
        module(torch.zeros(1, *SPEC.shape))
        return Probe(module, SPEC)


def test_a_tap_is_not_changed_by_what_comes_next_in_place() -> None:
    model = branches()
    with model.taps("conv"):
        tapped = model(X).features["conv"]
    assert tapped.min() < -0.01
    torch.testing.assert_close(tapped, model.module.get_submodule("conv")(X))


@pytest.mark.parametrize(("path", "found"), [("pair", "tuple"), ("spare", "nothing, as it was not called")])
def test_a_tap_that_gives_no_tensor_is_named(path: str, found: str) -> None:
    model = branches()
    with model.taps(path), pytest.raises(ValueError, match=f"path '{path}' of the teacher: expected .* found {found}"):
        model(X)


def test_shapes_of_features_are_found_without_counting() -> None:
    model = branches()
    with untouched(model.module):
        assert model.feature_shapes("conv", "last") == {"conv": (2, *(s - 2 for s in SPEC.shape[1:])), "last": (3,)}
    assert model.images == 0
    with pytest.raises(ValueError, match="'folded' of the teacher: expected a row for each of 2 images, found"):
        model.feature_shapes("folded")
    with pytest.raises(ValueError, match="unknown 'covn'; the nearest is 'conv'"):
        model.feature_shapes("covn")


# -- capabilities --------------------------------------------------------------------------------------------------


class NoGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :3]


def test_says_what_it_can_do_and_names_both_where_it_cannot() -> None:
    model = probe()
    with untouched(model.module):
        assert model.capabilities == {"logits", "input_grad", "batchnorm", "features", "penultimate"}
    assert model.images == 0  # finding out is not counted
    plain = Probe(NoGradient(), SPEC)
    assert plain.capabilities == {"logits"}
    with pytest.raises(UnsupportedProblem, match=r"deep_inversion: needs a teacher with input_grad; .* has logits"):
        plain.require("logits", "input_grad", who="deep_inversion")
    with (
        pytest.raises(UnsupportedProblem, match="batchnorm_inputs: needs a teacher with batchnorm"),
        plain.batchnorm_inputs(),
    ):
        pass


def test_penultimate_features_are_what_the_last_linear_layer_is_given() -> None:
    model = probe()
    x = torch.rand(5, *SPEC.shape, generator=torch.Generator().manual_seed(3))
    last = model.module.last
    with untouched(model.module), model.penultimate() as seen:
        for part in (x, x[:2]):
            logits = model(part).logits
            (features,) = seen
            assert features.shape == (len(part), 8)
            torch.testing.assert_close(logits, last(features))  # type: ignore[operator]
    headless = Probe(nn.Sequential(nn.Flatten(), nn.Linear(SPEC.channels * 16, 3), nn.Softplus()), SPEC)
    assert "penultimate" not in headless.capabilities  # what a linear layer gives is not the logits
    with (
        pytest.raises(UnsupportedProblem, match="penultimate: needs a teacher with penultimate"),
        headless.penultimate(),
    ):
        pass


def test_rows_of_a_batchnorm_input_are_their_means_over_positions() -> None:
    model = probe()
    x = torch.rand(5, *SPEC.shape, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    with untouched(model.module), model.frozen(), model.batchnorm_inputs() as seen:
        model(x)
        convolved = model.module.conv(x)  # type: ignore[operator]
        torch.testing.assert_close(seen[0].rows, convolved.mean(dim=(2, 3)))
        assert seen[1].rows.shape == (5, 8)
        torch.testing.assert_close(seen[1].rows.mean(dim=0), seen[1].mean)
        with torch.no_grad():
            model(x)
        with pytest.raises(ValueError, match="bn: what it was given is kept only where gradients are recorded"):
            seen[0].rows  # noqa: B018


class Constant(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.flatten(1)[:, :4], r"expected logits of shape \(n, 3\) for 3 classes, found \(2, 4\) for n = 2"),
        (lambda x: x.sum() * torch.ones(3), r"expected logits of shape \(n, 3\)"),
        (lambda x: x.flatten(1)[:, :3] / 0.0, "expected finite logits"),
        (lambda x: x.flatten(1) @ torch.ones(7, 3), r"cannot be asked images of shape \(2, 4, 4\)"),
        (lambda x: {"logits": x}, r"expected a tensor of logits \(n, k\), found dict"),
    ],
)
def test_check_names_what_is_wrong_with_a_model(answer: Any, message: str) -> None:
    model = Probe(Constant(answer), SPEC, name="teacher")
    with pytest.raises(ValueError, match=f"teacher: .*{message}"):
        model.check()
    assert model.images == 0


def test_the_digest_tells_models_apart() -> None:
    model, other = probe(), probe(2)
    assert model.digest == probe().digest
    assert model.digest != other.digest
    changed = probe()
    changed.module.state_dict()["bn.running_mean"][0] += 1e-3
    assert changed.digest != model.digest


# -- labels --------------------------------------------------------------------------------------------------------


def problem(**options: Any) -> Problem:
    return Problem(probe(1, **options), probe(2, name="student"), SPEC, torch.device("cpu"))


def test_labels_are_detached_and_counted_as_such() -> None:
    p = problem()
    p.teacher.module.train()
    with untouched(p.teacher.module):
        out = p.label(Batch(X))
    torch.testing.assert_close(out.logits, slow(p.teacher.module, X, "eval"))
    assert not out.logits.requires_grad
    assert p.teacher.counts["label"] == {"forward": 6, "backward": 0}
    assert p.teacher.counts["synthesise"] == {"forward": 0, "backward": 0}
    assert p.teacher.phase == "synthesise"


def test_parts_of_a_mixture_are_labelled_each_in_its_mode() -> None:
    p = problem()
    out = p.label(Batch(X, labelling=((2, "batch"), (1, "eval"), (3, "batch"))), taps=("last",))
    parts = [slow(p.teacher.module, X[:2], "batch"), slow(p.teacher.module, X[2:3], "eval")]
    expected = torch.cat([*parts, slow(p.teacher.module, X[3:], "batch")])
    torch.testing.assert_close(out.logits, expected)
    assert torch.equal(out.features["last"], out.logits)
    assert out.labelling == ((2, "batch"), (1, "eval"), (3, "batch"))
    assert p.teacher.counts["label"]["forward"] == 6


def test_carried_answers_are_used_where_they_fit_the_request_only() -> None:
    p = problem()
    told = torch.full((6, 3), 7.0)
    fits = Outputs(told, {"last": told}, ((6, "eval"),))
    assert p.label(Batch(X, teacher=fits)) is fits
    assert p.label(Batch(X, teacher=fits), taps=("last",)) is fits
    assert p.teacher.images == 0
    for batch, taps in (
        (Batch(X, teacher=fits), ("conv",)),  # another tap
        (Batch(X, teacher=fits, labelling=((6, "batch"),)), ()),  # another mode
        (Batch(X, teacher=fits, labelling=((2, "eval"), (4, "eval"))), ()),  # other company
        (Batch(X, teacher=Outputs(told, {}, ((6, "eval"),), "bfloat16")), ()),  # another precision
        (Batch(X, teacher=fits).with_x(X), ()),  # other pixels
    ):
        assert not torch.equal(p.label(batch, taps).logits, told)
    rounded = problem(precision="bfloat16")
    assert not torch.equal(rounded.label(Batch(X, teacher=fits)).logits, told)


def test_searching_freezes_both_and_counts_synthesis() -> None:
    p = problem()
    with untouched(p.teacher.module), untouched(p.student.module), p.searching():
        assert not any(q.requires_grad for probe in (p.teacher, p.student) for q in probe.module.parameters())
        p.teacher(X)
        p.student(X)
    assert p.teacher.counts["synthesise"]["forward"] == 6
    assert p.student.counts["synthesise"]["forward"] == 6


def test_trainable_weights_are_not_taken_for_input_gradients() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.detach().flatten(1))
            return logits

    assert "input_grad" not in Probe(Deaf(), InputSpec((1, 8, 8), 10)).capabilities


def test_a_gradient_that_is_zero_everywhere_is_told() -> None:
    class Rounded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 255).round() / 255)

    with initialised(1):
        rounded, plain = Probe(Rounded(), SPEC), Probe(Net(), SPEC)
    assert (rounded.flat, plain.flat) == (True, False)
    assert "input_grad" in rounded.capabilities  # autograd passes it through
    assert rounded.counts == plain.counts == Probe(Net(), SPEC).counts


def test_a_network_that_is_flat_where_images_are_even_is_not_flat() -> None:
    class Edges(nn.Module):
        """Nothing of an even image passes its ReLU."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = torch.relu(x.diff(dim=3).abs() - 0.01).flatten(1)[:, :3]
            return logits

    assert not Probe(Edges(), SPEC).flat
