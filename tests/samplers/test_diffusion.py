"""Images of a diffusion model: how the teacher leads, whose classes are whose, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.interfaces import is_data_free, sources
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import InputSpec
from generators.pipeline import Denoiser, Steer, load, predicted, reverse, schedule
from samplers import Diffusion, Pooled
from samplers.diffusion import Seen, fitted, told_for
from samplers.ingredients import Look

Folder = Callable[[str], Path]
MakeProblem = Callable[..., Problem]
CPU = torch.device("cpu")
NAMES = tuple(f"thing {row}" for row in range(10))


def named(problem: Problem, names: tuple[str, ...] = NAMES) -> Problem:
    """The same problem, whose teacher knows its classes by name."""
    problem.spec = replace(problem.spec, class_names=names)
    return problem


def drawn(sampler: Diffusion, problem: Problem, n: int = 8, seed: int = 3) -> Any:
    state = sampler.init(problem, seed)
    return sampler.draw(state, problem, n)


# -- every kind of pipeline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["dpm_solver", "ddim", "ddpm"])
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "classes", "dit", "text"])
def test_all_kinds_are_led(kind: str, way: Any, diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    if kind == "text":
        pytest.importorskip("transformers")
    shape = (3, 8, 8) if kind in ("dit", "text") else (1, 8, 8)
    problem = named(make_problem(shape, low=-1.0, high=2.0))
    folder = str(diffusion_folder(kind))
    sampler = Diffusion(folder, way, steps=3, batch=6, guidance=0.05, batchnorm="auto", cutmix=True)
    batch = drawn(sampler, problem, 5)
    assert batch.x.shape == (5, *shape)
    assert torch.isfinite(batch.x).all()
    assert torch.equal(batch.x, batch.x.clamp(-1.0, 2.0))
    assert batch.target is not None
    assert len(batch.target.unique()) == 5
    assert float(batch.info["loss"]) > 0.0
    # 256 images of noise for `auto`, then 3 steps of 6 images
    assert problem.teacher.counts["synthesise"] == {"forward": 256 + 18, "backward": 18}
    assert problem.teacher.counts["label"]["forward"] == 0
    assert (sources(sampler), is_data_free(sampler)) == ([folder], False)
    assert not torch.equal(batch.x, drawn(replace(sampler, guidance=0.0), named(make_problem(shape))).x[:5])


def test_without_the_teacher_it_is_not_asked(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    problem = make_problem()
    batch = drawn(Diffusion(str(diffusion_folder("ddpm")), steps=2), problem)
    assert batch.target is None  # nothing was aimed at
    assert problem.teacher.images == 0
    assert not batch.info
    batch = drawn(Diffusion(str(diffusion_folder("classes")), steps=2, batch=4), problem, 10)
    assert all(len(part.unique()) == len(part) for part in batch.target.split(4))


def test_more_classes_than_rows_all_have_their_turn(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    sampler, problem = Diffusion(str(diffusion_folder("classes")), steps=1, batch=3), make_problem()
    state = sampler.init(problem, 1)
    aimed = (sampler.draw(state, problem, 3).target for _ in range(40))
    assert {int(y) for target in aimed if target is not None for y in target} == set(range(10))


def test_is_pooled(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    problem = make_problem()
    sampler = Pooled(Diffusion(str(diffusion_folder("classes")), steps=2, batch=4), round=8, every=None)
    state = sampler.init(problem, 3)
    one = sampler.draw(state, problem, 8)
    other = sampler.draw(state, problem, 8)
    assert one.teacher is not None
    assert torch.equal(one.x.flatten(1).sum(dim=1).sort().values, other.x.flatten(1).sum(dim=1).sort().values)


# -- the teacher leads -------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Class 1 the more, the brighter the image: (n, 1, h, w) -> (n, 2)."""

    def forward(self, x: Tensor) -> Tensor:
        level = 6.0 * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-level, level], dim=1)


def bright(make_problem: MakeProblem) -> Problem:
    return make_problem(num_classes=2, teacher=lambda spec: Bright())


@pytest.mark.parametrize("way", ["dpm_solver", "ddim", "ddpm"])
def test_the_teacher_finds_its_classes_likelier(way: Any, diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    """Than in images from the same noise that it did not lead, for each of four seeds."""
    sampler = Diffusion(str(diffusion_folder("ddpm")), way, steps=10, batch=16, guidance=1.0)
    for seed in range(4):
        heights = []
        for strength in (1e-9, 1.0):
            problem = bright(make_problem)
            batch = drawn(replace(sampler, guidance=strength), problem, 16, seed)
            log_p = problem.teacher(batch.x).logits.log_softmax(dim=1)
            heights.append(log_p.gather(1, batch.target[:, None]).mean())
        assert heights[1] > heights[0] + 0.1, seed


def leading(sampler: Diffusion, problem: Problem, look: Look, y: Tensor, states: list[Any]) -> Steer:
    """What the sampler hands to the way back, for these classes (n,)."""
    return partial(sampler._lead, sampler._objective(0), states, look, y, problem.spec, Seen(torch.zeros(())))


def test_what_is_subtracted_is_the_slope_through_the_denoiser(
    diffusion_folder: Folder, make_problem: MakeProblem
) -> None:
    """Against differences of the objective of the clean prediction, which the formulas give, along random ways."""
    folder, scale, guidance = diffusion_folder("classes"), 1.5, 0.7
    sampler = Diffusion(str(folder), scale=scale, guidance=guidance, batchnorm=0.2)
    problem, denoiser, y = make_problem(), load(folder, CPU, k=10), torch.tensor([2, 5, 9])
    objective = sampler._objective(0)
    states = objective.init(problem, 1, who="test")
    plan, caught = schedule("ddim", denoiser.noise, 5), []
    times = plan.timesteps.tolist()
    with objective.watching(problem) as look:
        lead = leading(sampler, problem, look, y, states)

        def steer(step: int, z: Tensor, clean: Tensor) -> Tensor:
            caught.append((z.detach(), lead(step, z, clean)))
            return caught[-1][1]

        def height(z: Tensor, t: int) -> float:
            time = torch.full((3,), t)
            told = denoiser.network(z, time, y)
            untold = denoiser.network(z, time, torch.full((3,), 10))
            clean = predicted(plan, z, untold + scale * (told - untold), t)
            return 3.0 * float(objective(states, look(fitted(clean, problem.spec), y)))

        start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        reverse(denoiser, start, y, torch.Generator(), scheduler="ddim", steps=5, scale=scale, steer=steer)
        assert len(caught) == 5
        for step in (3, 4):  # before, an untrained network predicts far beyond the box, where all is flat
            z, found = caught[step]
            assert found.norm() > 0.1
            for seed in range(4):
                way = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
                with torch.no_grad():
                    slope = (height(z + 1e-3 * way, times[step]) - height(z - 1e-3 * way, times[step])) / 2e-3
                assert float((found * way).sum()) == pytest.approx(guidance * slope, rel=0.1, abs=0.05)


def test_each_row_is_led_as_if_alone(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    """Where no term is of the batch, its size changes nothing: the same first noise, other rows beside it."""
    folder = diffusion_folder("ddpm")
    problem, sampler = make_problem(), Diffusion(str(folder), "ddim", steps=3, guidance=0.5)
    denoiser, y = load(folder, CPU, k=10), torch.arange(6)
    objective = sampler._objective(0)
    states = objective.init(problem, 1, who="test")
    z = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def led(rows: slice) -> Tensor:
        with objective.watching(problem) as look:
            steer = leading(sampler, problem, look, y[rows], states)
            return reverse(denoiser, z[rows], None, torch.Generator(), scheduler="ddim", steps=3, steer=steer)

    torch.testing.assert_close(led(slice(0, 6))[:2], led(slice(0, 2)), atol=1e-4, rtol=1e-4)


def test_the_adversary_begins_after_so_many_images(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    folder = str(diffusion_folder("ddpm"))
    sampler = Diffusion(folder, steps=2, batch=4, guidance=1.0, adversarial=1.0, warmup=8)
    assert sampler.uses_student
    assert not replace(sampler, guidance=0.0).uses_student
    problem = make_problem()
    state = sampler.init(problem, 1)
    sampler.draw(state, problem, 4, learn=False)
    sampler.draw(state, problem, 4)
    sampler.draw(state, problem, 4)
    assert problem.student.images == 0
    sampler.draw(state, problem, 4)
    assert problem.student.counts["synthesise"] == {"forward": 8, "backward": 8}


def test_mixing_keeps_most_of_an_image(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    sampler = Diffusion(str(diffusion_folder("ddpm")), steps=20, cutmix=True)
    z = torch.arange(40.0)[:, None, None, None].expand(40, 1, 8, 8)
    times = [step for step in range(20) if sampler._mixed(torch.Generator().manual_seed(1), step, z) is not None]
    assert times == [4, 8, 12, 16]
    mixed = sampler._mixed(torch.Generator().manual_seed(1), 4, z)
    assert mixed is not None
    own = (mixed == z).float().mean(dim=(1, 2, 3))
    assert own.min() >= 0.5 - 1 / 8  # in whole pixels
    assert own.mean() < 0.9
    problem = make_problem()
    assert not torch.equal(drawn(sampler, problem).x, drawn(replace(sampler, cutmix=False), problem).x)


# -- pixels and classes ------------------------------------------------------------------------------------------------


def test_images_are_made_to_fit() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0])[:, None, None, None].expand(4, 1, 4, 4)
    found = fitted(x, InputSpec((3, 8, 6), 10, low=-2.0, high=2.0))
    assert found.shape == (4, 3, 8, 6)
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([-2.0, 0.0, 2.0, 2.0]))
    colours = torch.tensor([0.6, 0.0, -0.3])[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(fitted(colours, InputSpec((1, 4, 4), 10)), torch.full((1, 1, 4, 4), 0.55))


def test_other_sizes_are_refused_unless_they_may_be_resized(
    diffusion_folder: Folder, make_problem: MakeProblem
) -> None:
    folder, problem = str(diffusion_folder("ddpm")), make_problem((3, 16, 16))
    message = r"^folder: expected images \(3, 16, 16\), as the teacher takes, found \(1, 8, 8\) .*resize: true"
    with pytest.raises(ValueError, match=message):
        Diffusion(folder).init(problem, 1)
    assert drawn(Diffusion(folder, resize=True, steps=2), problem).x.shape == (8, 3, 16, 16)
    with pytest.raises(ValueError, match=r"^folder: expected 2 channels, found 1"):
        Diffusion(folder, resize=True).init(make_problem((2, 8, 8)), 1)


def test_classes_are_told_by_name(diffusion_folder: Folder) -> None:
    denoiser = load(diffusion_folder("dit"), CPU, k=3)
    spec = InputSpec((3, 8, 8), 3, class_names=("synonym 999", "thing 0", "thing 5, synonym 5"))
    told = told_for(denoiser, spec, "f", CPU)
    assert told is not None
    assert told.tolist() == [999, 0, 5]
    with pytest.raises(ValueError, match=r"^folder: expected the teacher's class 'thimg 5' among the 1000.*'thing 5'"):
        told_for(denoiser, replace(spec, class_names=("thing 1", "thimg 5", "thing 3")), "f", CPU)
    with pytest.raises(ValueError, match=r"^folder: expected a pipeline of 3 classes, as the teacher has, found 1000"):
        told_for(denoiser, replace(spec, class_names=None), "f", CPU)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(("drake", "crane", "duck, drake", "crane"), [0, 1, 2, 3]), (("duck", "drake"), [2, 0])],
)
def test_names_that_two_classes_have(wanted: tuple[str, ...], expected: list[int], diffusion_folder: Folder) -> None:
    """A class that is called so comes before one that is also called so; of equal names each keeps its place."""
    names = ("drake", "crane", "duck, drake", "crane")
    denoiser = replace(load(diffusion_folder("dit"), CPU, k=3), classes=4, names=names)
    told = told_for(denoiser, InputSpec((3, 8, 8), len(wanted), class_names=wanted), "f", CPU)
    assert told is not None
    assert told.tolist() == expected


def test_saved_names_and_classes_are_compared(
    diffusion_folder: Folder, make_problem: MakeProblem, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(diffusion_folder("classes"), tmp_path / "classes"))
    with pytest.raises(ValueError, match=r"^folder: expected a pipeline of 7 classes, as the teacher has, found 11"):
        Diffusion(str(folder)).init(make_problem(num_classes=7), 1)
    trained_on = {"source": "s", "digest": "d", "size": None, "limit": None}
    about = {"kind": "diffusion", "shape": [1, 8, 8], "low": 0, "high": 1, "classes": 10, "class_names": NAMES[::-1]}
    about |= {"options": {}, "trained_on": trained_on, "steps": 1, "seed": 0}
    (folder / "dfkd.json").write_text(json.dumps(about))
    sampler, problem = Diffusion(str(folder), steps=2), named(make_problem())
    state = sampler.init(problem, 1)
    assert state.model.told.tolist() == list(range(9, -1, -1))
    assert sampler.trained_on() == {str(folder): trained_on}
    assert replace(sampler, folder=str(diffusion_folder("ddpm"))).trained_on() == {}
    with pytest.raises(ValueError, match=r"^folder: no such folder: '.*/clases'; the nearest is '.*/classes'$"):
        replace(sampler, folder=str(tmp_path / "clases")).trained_on()
    with pytest.raises(ValueError, match=r"class 'stool' among the 10 classes .* it has thing 9, .*; scale: 0 draws"):
        sampler.init(named(make_problem(), (*NAMES[:9], "stool")), 1)


def test_classes_are_nobodys_business_at_scale_0(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    """A pipeline of other classes than the teacher's draws as one that was told none of them."""
    problem = make_problem((3, 8, 8), num_classes=7)
    sampler = Diffusion(str(diffusion_folder("dit")), steps=3, scale=0.0)
    with pytest.raises(ValueError, match=r"of 7 classes, .* found 1000 in .*; scale: 0 draws"):
        replace(sampler, scale=2.0).init(problem, 1)
    state = sampler.init(problem, 1)
    denoiser: Denoiser = state.model.denoiser
    asked: list[list[int]] = []

    def network(z: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        asked.append(y.tolist())
        return denoiser.network(z, t, y)

    state.model.denoiser = replace(denoiser, network=network)
    batch = sampler.draw(state, problem, 4)
    assert batch.target is None
    assert asked == 3 * [4 * [denoiser.none]]  # once a step
    rng = sampler.init(problem, 1).stream.advance()
    z = torch.randn(4, *denoiser.latent, generator=rng)
    alone = reverse(denoiser, z, torch.full((4,), 3), rng, scheduler="dpm_solver", steps=3, scale=0.0)
    torch.testing.assert_close(batch.x, fitted(alone, problem.spec))
    led = drawn(replace(sampler, guidance=0.1), problem)
    assert led.target is not None  # the teacher's classes lead
    assert int(led.target.max()) < 7


def test_text_needs_no_names_at_scale_0(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    pytest.importorskip("transformers")
    sampler = Diffusion(str(diffusion_folder("text")), steps=2, scale=0.0, resize=True)
    plain, told = (drawn(sampler, problem) for problem in (make_problem(), named(make_problem(), NAMES)))
    assert torch.equal(plain.x, told.x)
    assert plain.target is None


def test_text_needs_names(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="expected a teacher with class names, found none"):
        Diffusion(str(diffusion_folder("text"))).init(make_problem((3, 8, 8)), 1)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": ""}, r"^folder: expected the path"),
        ({"scheduler": "euler"}, r"^scheduler: expected one of dpm_solver, ddim, ddpm"),
        ({"steps": 0}, r"^steps: expected an integer >= 1"),
        ({"scale": -1.0}, r"^scale: expected a number >= 0"),
        ({"prompt": "a photo"}, r"^prompt: expected text with one {} for the class"),
        ({"prompt": "a {} {x}"}, r"^prompt: expected text with one {} for the class"),
        ({"guidance": 1.0, "one_hot": 0.0}, r"^one_hot: expected it, batchnorm or adversarial above 0"),
        ({"guidance": -1.0}, r"^guidance: expected a number >= 0"),
        ({"batchnorm": "much"}, r"^batchnorm: expected a number >= 0 or 'auto'"),
        ({"resize": 1}, r"^resize: expected true or false"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diffusion(**{"folder": "somewhere", **options})


def test_what_the_pipeline_cannot_do_is_refused(diffusion_folder: Folder, make_problem: MakeProblem) -> None:
    folder, problem = str(diffusion_folder("ddpm")), make_problem()
    with pytest.raises(ValueError, match=r"^scale: expected 1 or None"):
        Diffusion(folder, scale=2.0).init(problem, 1)
    with pytest.raises(ValueError, match=r"^steps: expected at most the 1000"):
        Diffusion(folder, steps=1001).init(problem, 1)
    without = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UnsupportedProblem, match=r"^diffusion: needs a teacher with batchnorm"):
        Diffusion(folder, guidance=1.0, batchnorm="auto").init(without, 1)
    assert Diffusion(folder).preset != Diffusion(folder, guidance=1.0).preset
