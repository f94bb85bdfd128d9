"""NAYER: rounds against a loop written by hand, what is drawn anew and when, balanced classes, a user's embeddings."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd.claim import what_is_read
from dfkd.interfaces import preset_of
from dfkd.losses import KL
from dfkd.problem import Problem, UnsupportedProblem
from generators.noisy_layer import LabelGenerator
from samplers import NAYER, Augmented, Mixture, Pooled, Uniform
from samplers.ingredients import Disagreement, MovingBatchNorm, OneHot, Rounds
from samplers.state import State

from .by_hand import (
    Watched,
    crops_of_its_bank,
    detached,
    fast_loss,
    mirrored,
    mixed,
    moved_alike,
    near,
    same_rounds,
    window,
)

MakeProblem = Callable[..., Problem]

TINY = NAYER(
    steps=2, batch=12, length=16, noise=6, every=3, rounds=2, warmup=1, warmup_rounds=3, renew=2, crop=0, flip=False
)
STEPS, RATE = 6, 4e-3


def test_defaults_are_the_published_numbers() -> None:
    sampler = NAYER()
    assert (sampler.steps, sampler.batch, sampler.noise, sampler.width) == (40, 400, 1000, "small")
    assert (sampler.learning_rate, sampler.every, sampler.rounds) == (4e-3, 400, 2)
    assert (sampler.warmup, sampler.warmup_rounds, sampler.renew) == (20, 10, 10)
    batchnorm, one_hot, adversary = (10.0, MovingBatchNorm(0.9)), (0.5, OneHot("target")), Disagreement("masked_kl")
    assert sampler._objective(19).terms == (batchnorm, one_hot)
    assert sampler._objective(20).terms == (batchnorm, one_hot, (1.33, adversary))
    preset = preset_of(sampler)
    assert preset is not None
    assert (preset.batch, preset.optimiser["learning_rate"]) == (512, 0.2)
    assert preset.objective == {"kl": (1.0, KL(temperature=20.0))}


# -- a round -----------------------------------------------------------------------------------------------------


def by_hand(problem: Problem, network: LabelGenerator, rngs: list[torch.Generator]) -> list[Any]:
    """Rounds after METHODS' words: new noise and a new Adam for each, classes in blocks, the best step's images.

    The first is one of warm-up.
    """
    teacher, student = Watched(problem.teacher.module), problem.student.module.eval()
    past: Any = None
    kept = []
    for index, rng in enumerate(rngs):
        with torch.no_grad():
            for block in network.noisy.blocks:
                assert isinstance(block, nn.Linear)
                block.weight.copy_(torch.randn(block.weight.shape, generator=rng))
                block.bias.zero_()
        y = torch.cat([torch.arange(10), torch.randint(10, (2,), generator=rng)])
        adam = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=RATE, betas=(0.5, 0.999))
        best = (float("inf"), torch.empty(0))
        for _ in range(STEPS):
            x = network(y)
            seen = mirrored(window(x, rng, 2), rng)
            t, moments = teacher(seen)
            loss = fast_loss(teacher, t, student(seen) if index else None, y, moments, past)
            if loss.item() < best[0]:
                best = (loss.item(), x.detach().clone())
            adam.zero_grad()
            loss.backward()
            adam.step()
        past = mixed(detached(moments), past)
        kept.append((best[1], y, best[0]))
    return kept


@pytest.mark.usefixtures("doubles")
def test_rounds_are_those_of_a_loop_by_hand(make_problem: MakeProblem) -> None:
    problem, other = near(make_problem), near(make_problem)
    sampler = replace(TINY, steps=STEPS, learning_rate=RATE, warmup_rounds=1, renew=None, crop=2, flip=True)
    state, own, origin = (sampler.begin(problem, 4) for _ in range(3))
    found = [sampler.round(state, problem, torch.Generator().manual_seed(12 + turn)) for turn in range(3)]
    expected = by_hand(other, own.generator.train(), [torch.Generator().manual_seed(12 + turn) for turn in range(3)])
    same_rounds(found, expected)
    moved_alike(*(part.generator.trunk.parameters() for part in (state, own, origin)))


def test_draws_are_crops_of_the_bank(make_problem: MakeProblem) -> None:
    crops_of_its_bank(replace(TINY, crop=2, flip=True), make_problem())
    whole = NAYER()
    assert whole.bank == Augmented(Pooled(Rounds(whole), round=800, every=400, warmup=101, capacity=None), flip=True)


def watch(sampler: NAYER, problem: Problem, rounds: int) -> list[dict[str, Tensor]]:
    """The generator's parameters after each round."""
    state = sampler.begin(problem, 1)
    rng, found = torch.Generator().manual_seed(2), []
    for _ in range(rounds):
        sampler.round(state, problem, rng)
        found.append({name: p.detach().clone() for name, p in state.generator.named_parameters()})
    return found


def test_noise_is_new_each_round_and_the_generator_after_its_epochs(make_problem: MakeProblem) -> None:
    # three rounds of warm-up, an epoch; then two an epoch: 3, 5, 7, 9 are firsts, of epochs 0, 1, 2, 3 after it
    seen = watch(replace(TINY, learning_rate=1e-9), make_problem(), 10)
    for before, (last, now) in enumerate(pairwise(seen), start=1):
        for name in ("noisy.blocks.0.weight", "noisy.blocks.1.weight"):
            assert (last[name] - now[name]).abs().max() > 1.0
            assert now[name].std().item() == pytest.approx(1.0, abs=0.35)
        changed = {name for name in now if (last[name] - now[name]).abs().max() > 1e-6 and "noisy" not in name}
        weights = {name for name in now if name.endswith("weight") and "trunk" in name and now[name].ndim > 1}
        assert (changed >= weights) == (before in (3, 7)), before
        assert bool(changed) == (before in (3, 7)), before
    assert all(torch.equal(seen[0]["noisy.embeddings"], now["noisy.embeddings"]) for now in seen)


def test_each_round_has_an_adam_of_its_own(make_problem: MakeProblem) -> None:
    sampler = replace(TINY, steps=1, renew=None, learning_rate=1e-3)
    seen = watch(sampler, make_problem(), 4)
    for last, now in pairwise(seen[1:]):
        step = (last["trunk.body.6.weight"] - now["trunk.body.6.weight"]).abs()
        # the first step of an Adam is as long as its rate wherever there is any slope; the third would not be
        assert step.max() < 1.01e-3
        assert (step > 0.99e-3).float().mean() > 0.95


def test_classes_are_balanced(make_problem: MakeProblem) -> None:
    sampler, problem = replace(TINY, batch=23), make_problem()
    state = sampler.begin(problem, 1)
    assert len(state.generator.noisy.blocks) == 3
    rng, rests = torch.Generator().manual_seed(2), set()
    for _ in range(4):
        target = sampler.round(state, problem, rng).target
        assert target is not None
        assert target[:20].tolist() == [*range(10)] * 2  # block j holds each class once
        rests.add(tuple(target[20:].tolist()))
    assert len(rests) > 1


def test_epochs_and_draws_keep_the_published_ratio(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = TINY.init(problem, 1)
    for draw in range(7):
        TINY.draw(state, problem, 4)
        after = 1 + 2 * (
            1 + draw // 3
        )  # three of warm-up fill two pairs, and their fourth is a round of the first epoch
        assert problem.teacher.counts["synthesise"]["forward"] == (3 + after) * 2 * 12
        assert problem.student.counts["synthesise"]["forward"] == after * 2 * 12
        assert len(state.images) == (3 + after) * 12
    exact = replace(TINY, warmup_rounds=4)
    state = exact.init(problem, 1)
    exact.draw(state, problem, 4)
    assert state.base.recipe.rounds == 4 + 2


def test_embeddings_are_orthogonal_or_learned_or_the_users(make_problem: MakeProblem, tmp_path: Path) -> None:
    problem = make_problem()
    rows = TINY.begin(problem, 1).generator.noisy.embeddings
    torch.testing.assert_close(rows @ rows.T, torch.eye(10))
    short = replace(TINY, length=4).begin(problem, 1).generator.noisy.embeddings  # more classes than that has room for
    torch.testing.assert_close(short.norm(dim=1), torch.ones(10))
    learned = watch(replace(TINY, embeddings="learned"), problem, 2)
    assert not torch.equal(learned[0]["noisy.embeddings"], learned[1]["noisy.embeddings"])
    table = np.random.default_rng(3).normal(size=(10, 7))
    np.save(tmp_path / "text.npy", table)
    save_file({"text": torch.from_numpy(table)}, str(tmp_path / "text.safetensors"))
    for name in ("text.npy", "text.safetensors"):
        state: State = replace(TINY, embeddings=str(tmp_path / name)).begin(problem, 1)
        torch.testing.assert_close(state.generator.noisy.embeddings.detach(), torch.from_numpy(table).float())


def test_refuses_embeddings_that_are_none(make_problem: MakeProblem, tmp_path: Path) -> None:
    problem = make_problem()
    np.save(tmp_path / "few.npy", np.zeros((9, 7)))
    np.save(tmp_path / "flat.npy", np.zeros(10))
    np.save(tmp_path / "empty.npy", np.zeros((10, 0)))
    np.save(tmp_path / "nan.npy", np.full((10, 2), np.nan))
    np.save(tmp_path / "large.npy", np.full((10, 2), 1e300))
    np.save(tmp_path / "complex.npy", np.ones((10, 2), dtype=np.complex128))
    save_file({"a": torch.ones(10, 2, dtype=torch.complex64)}, str(tmp_path / "complex.safetensors"))
    np.save(tmp_path / "words.npy", np.full((10, 2), "a"))
    np.save(tmp_path / "twice.npy", np.arange(10.0)[[0, 1, 2, 1, 4, 5, 6, 7, 8, 9], None])
    (tmp_path / "broken.npy").write_text("no array")
    (tmp_path / "broken.safetensors").write_text("no array")
    save_file({"a": torch.zeros(10, 2), "b": torch.zeros(10, 2)}, str(tmp_path / "two.safetensors"))
    for name, message in (
        (
            "few.npy",
            r"^nayer: embeddings: expected a row of numbers for each of 10 classes, found an array of shape "
            r"\(9, 7\) in '.*few.npy'; orthogonal and learned need no file$",
        ),
        ("flat.npy", r"embeddings: expected a row of numbers for each of 10 classes, found an array of shape \(10,\)"),
        ("empty.npy", r"embeddings: expected a row of numbers for each of 10 .*, found an array of shape \(10, 0\)"),
        ("nan.npy", "embeddings: expected finite numbers, found NaN, infinity or one beyond single precision in"),
        ("large.npy", "embeddings: expected finite numbers, found NaN, infinity or one beyond single precision in"),
        ("complex.npy", "embeddings: cannot read '.*complex.npy': expected real numbers, found complex128; orthogonal"),
        (
            "complex.safetensors",
            "embeddings: cannot read '.*': expected real numbers, found torch.complex64; orthogonal",
        ),
        ("words.npy", "embeddings: cannot read '.*words.npy': expected real numbers, found <U1; orthogonal"),
        ("twice.npy", "embeddings: expected rows that tell the classes apart, found those of classes 1 and 3 equal in"),
        (
            "broken.npy",
            "embeddings: cannot read '.*broken.npy': the magic string .*; orthogonal and learned need no file$",
        ),
        ("broken.safetensors", "embeddings: cannot read '.*broken.safetensors'"),
        ("two.safetensors", "embeddings: expected one array in '.*two.safetensors', found 2"),
        ("gone.npy", "embeddings: cannot read '.*gone.npy'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, embeddings=str(tmp_path / name)).init(problem, 1)
    with pytest.raises(ValueError, match=r"embeddings: expected orthogonal, learned, or a .npy or .safetensors file"):
        NAYER(embeddings="orthagonal")
    for none, found in ((None, "NoneType"), (3, "int"), (torch.rand(10, 2), "Tensor")):
        with pytest.raises(
            ValueError, match=f"embeddings: expected orthogonal, learned, or a .npy .* found a value of type {found}$"
        ):
            NAYER(embeddings=none)  # type: ignore[arg-type]  # wrong on purpose


def test_what_it_refuses(make_problem: MakeProblem) -> None:
    with pytest.raises(
        ValueError, match="nayer: batch: expected at least 10 rows to balance 10 classes, found 9; fast_dfkd"
    ):
        replace(TINY, batch=9).init(make_problem(), 1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rounds": 0}, "rounds: expected an integer >= 1, found 0"),
        ({"renew": 0}, "renew: expected an integer >= 1, found 0"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number > 0, found -1.0"),
        ({"capacity": 700}, "capacity: expected an integer >= 800, found 700"),
        ({"one_hot": 0.0, "batchnorm": 0.0}, "one_hot: expected it or batchnorm above 0"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            NAYER(**settings)
    flat = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)))
    with pytest.raises(UnsupportedProblem, match="nayer: needs a teacher with batchnorm; this teacher has logits"):
        TINY.init(flat, 1)


def test_a_file_that_is_gone_names_who_reads_it() -> None:
    with pytest.raises(ValueError, match=r"^data: no such file or folder: 'gone.npy', which nayer reads$"):
        what_is_read([Mixture((Uniform(), NAYER(embeddings="gone.npy")))])
