"""Diagnostics of a bank against plain Python, against the layers' own inputs, and at their extremes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd.fidelity import DIAGNOSTICS, diagnose
from dfkd.problem import Probe
from dfkd.types import InputSpec

X = torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def slow_entropy(p: list[float]) -> float:
    return -sum(v * math.log(v) for v in p if v > 0)


def test_predictions_equal_plain_python(teacher: Probe, spec: InputSpec) -> None:
    teacher.module.get_parameter("7.weight").data.mul_(8.0)  # sharper: more than one class is named
    with torch.no_grad():
        p = teacher.module(X / 255.0).double().softmax(dim=1)
    rows = p.tolist()
    named = [row.index(max(row)) for row in rows]
    assert len(set(named)) > 1
    mean = [sum(row[c] for row in rows) / 50 for c in range(5)]
    batches = [np.mean(rows[i : i + 10], axis=0) for i in range(0, 50, 10)]
    values = diagnose(teacher, X, spec, batch=10).values
    assert set(values) == set(DIAGNOSTICS)
    assert values["histogram_entropy"] == pytest.approx(
        slow_entropy([named.count(c) / 50 for c in range(5)]) / math.log(5), rel=1e-5
    )
    assert values["mean_prediction_entropy"] == pytest.approx(slow_entropy(mean) / math.log(5), rel=1e-5)
    assert values["mean_confidence"] == pytest.approx(sum(max(row) for row in rows) / 50, rel=1e-5)
    assert values["mean_entropy"] == pytest.approx(sum(map(slow_entropy, rows)) / 50, rel=1e-5)
    assert values["mean_prediction_spread"] == pytest.approx(np.std(batches, axis=0, ddof=1).mean(), rel=1e-4)
    assert values["pixel_mean"] == pytest.approx(float(np.mean(X.numpy() / 255.0)), rel=1e-6)
    assert values["pixel_std"] == pytest.approx(float(np.std(X.numpy() / 255.0)), rel=1e-6)


def test_batchnorm_shift_equals_the_definition(teacher: Probe, spec: InputSpec) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> nn.Module:
        layer = teacher.module.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args: seen.update({name: args[0]}))
        return layer

    layers = {name: keep(name) for name in ("1", "4")}
    with torch.no_grad():
        teacher.module(X / 255.0)
    inputs = dict(seen)
    found = diagnose(teacher, X, spec, batch=7)
    assert [layer.name for layer in found.layers] == ["1", "4"]
    for layer in found.layers:
        x, bn = inputs[layer.name].double(), layers[layer.name]
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        mu, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0) + bn.eps
        mu_r, var_r = bn.running_mean.double(), bn.running_var.double() + bn.eps
        assert layer.shift == pytest.approx(float(((mu - mu_r).abs() / var_r.sqrt()).mean()), rel=1e-4)
        stored, given = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((mu_r, var_r), (mu, var)))
        kl = torch.distributions.kl_divergence(stored, given).mean()
        assert layer.gauss == pytest.approx(float(kl), rel=1e-4)
    assert found.values["batchnorm_shift"] == pytest.approx(sum(layer.shift for layer in found.layers) / 2)


def test_shift_is_zero_on_the_stored_statistics(teacher: Probe, spec: InputSpec) -> None:
    """All statistics set layer by layer to those of X: the shift must vanish, whatever the batches."""
    for name in ("1", "4"):
        layer = teacher.module.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm2d)
        with teacher.batchnorm_inputs() as seen, torch.no_grad():
            teacher(X / 255.0)
        entry = next(e for e in seen if e.name == name)
        layer.running_mean, layer.running_var = entry.mean.clone(), entry.var.clone()
    found = diagnose(teacher, X, spec, batch=16)
    assert found.values["batchnorm_shift"] == pytest.approx(0.0, abs=1e-4)
    assert found.values["batchnorm_gauss"] == pytest.approx(0.0, abs=1e-4)
    brighter = diagnose(teacher, X.clamp_min(128), spec, batch=16).values["batchnorm_shift"]
    assert brighter is not None
    assert brighter > 0.2


def test_batch_mode_changes_what_the_teacher_says(teacher: Probe, spec: InputSpec) -> None:
    dark = X // 8
    stored, own = (diagnose(teacher, dark, spec, mode).values["mean_entropy"] for mode in ("eval", "batch"))
    assert stored is not None
    assert own is not None
    assert abs(stored - own) > 1e-3


def test_the_distance_to_what_is_stored_is_that_of_eval(teacher: Probe, spec: InputSpec) -> None:
    """By the statistics of the batch the second layer would be given nearly what it has stored."""
    dark = X // 8
    mixed = diagnose(teacher, dark, spec, ((20, "batch"), (30, "eval")), batch=10)
    stored = diagnose(teacher, dark, spec, batch=10)
    for found, expected in zip(mixed.layers, stored.layers, strict=True):
        assert (found.shift, found.gauss) == pytest.approx((expected.shift, expected.gauss), rel=1e-5)
    assert teacher.counts["evaluate"]["forward"] == 20 + 50 + 50 + 2 * (50 + 50)


def test_one_batch_no_batchnorm_and_the_count(plain: Probe, teacher: Probe, spec: InputSpec) -> None:
    values = diagnose(plain, X, spec).values
    assert values["batchnorm_shift"] is None
    assert values["batchnorm_gauss"] is None
    assert values["mean_prediction_spread"] is None
    diagnose(teacher, X, spec, batch=7)
    assert teacher.counts["evaluate"] == {"forward": 50 + 2 * 50, "backward": 50}
    assert teacher.images == 0
    assert all(not module._forward_pre_hooks for module in teacher.module.modules())
    with pytest.raises(ValueError, match="labelling: expected runs that add up to 50 rows"):
        diagnose(plain, X, spec, ((49, "eval"),))


def test_feature_rank_equals_the_definition_row_by_row(teacher: Probe, spec: InputSpec) -> None:
    """The n x n matrix of cosines, entry by entry, whatever the side that the code decomposes."""
    for n in (50, 70):  # fewer rows than features, and more
        x = torch.cat([X, X // 2])[:n]
        with torch.no_grad():
            rows = teacher.module[:-1](x / 255.0).double().tolist()  # type: ignore[index]  # a Sequential

        def cosine(a: list[float], b: list[float]) -> float:
            return sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

        gram = np.array([[cosine(a, b) / n for b in rows] for a in rows])
        expected = math.exp(slow_entropy([v for v in np.linalg.eigvalsh(gram).tolist() if v > 1e-12]))
        found = diagnose(teacher, x, spec, batch=16).values["feature_rank"]
        assert found == pytest.approx(expected, rel=1e-6)
        assert 1.0 < expected < n


@pytest.mark.parametrize(("rows", "rank"), [("same", 1.0), ("zero", 1.0), ("orthogonal", 5.0), ("pairs", 2.0)])
def test_feature_rank_counts_directions(rows: str, rank: float) -> None:
    """Ten images; the lengths of the rows play no part."""
    features = {
        "same": torch.ones(10, 5) * torch.arange(1.0, 11.0)[:, None],
        "zero": torch.zeros(10, 5),
        "orthogonal": torch.eye(5).repeat(2, 1) * torch.arange(1.0, 11.0)[:, None],
        "pairs": torch.eye(5)[[0, 1] * 5],
    }[rows]
    head = nn.Linear(5, 3)
    net = nn.Sequential(nn.Flatten(), head)
    spec = InputSpec((1, 1, 5), 3, low=0.0, high=10.0)
    found = diagnose(Probe(net, spec), features[:, None, None, :], spec, batch=4).values["feature_rank"]
    assert found == pytest.approx(rank, rel=1e-9)
    assert not head._forward_pre_hooks


class Constant(nn.Module):
    """Names class 2, whatever it is shown."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(5)[2].mul(1e4).expand(len(x), 5)


def test_a_collapsed_bank_has_no_entropy(spec: InputSpec) -> None:
    values = diagnose(Probe(Constant(), spec), X, spec, batch=10).values
    assert (values["histogram_entropy"], values["mean_prediction_entropy"], values["mean_confidence"]) == (0, 0, 1)
    assert str(values["histogram_entropy"]) == "0.0"  # not -0.0, which a table shows
    assert values["mean_prediction_spread"] == 0.0
    assert values["feature_rank"] is None  # no linear layer gives its logits
