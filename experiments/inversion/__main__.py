"""Whether inversion's BatchNorm weight `auto` works for a teacher as it stands, without retuning.

    python -m experiments.inversion model=digits_cnn data=digits
    python -m experiments.inversion model=resnet20 weights=resnet20.th data=cifar10.npz rows=64

The words are those of a teacher (`dfkd teach --help`), and rows, seed. One line of JSON: how many inverted images the
teacher gives the class aimed at, its mean confidence, and the distance of its BatchNorm layers' inputs from what it has
stored, for noise (where inversion begins), for the inverted images, and for as many real test images.
"""

import json
import sys
import time

import torch

from dfkd import config
from dfkd.data import load
from dfkd.pixels import to_pixels
from dfkd.problem import Problem
from dfkd.resolve import teacher_of
from dfkd.schemes.offline import make_problem
from samplers import DeepInversion
from samplers.ingredients import batchnorm_distance, noise_start

from ..ending import in_a_line


def distance(problem: Problem, x: torch.Tensor) -> float:
    """As in the term: sum over layers of the norms of both differences."""
    with torch.no_grad(), problem.searching(), problem.teacher.batchnorm_inputs() as layers:
        problem.teacher(x)
        return float(batchnorm_distance(layers))


def main(words: list[str]) -> None:
    settings = config.read_settings(words)
    rows, seed = int(settings.pop("rows", 256)), int(settings.pop("seed", 0))
    teacher = config.parse(config.TeacherConfig, settings)
    module = teacher_of(teacher, None, "teacher")
    test = load(teacher.data or "digits", size=teacher.size)
    problem = make_problem(module, module, test.spec, seed=seed, device="cpu")
    sampler = DeepInversion(batch=rows)
    state = sampler.init(problem, seed)
    began = time.perf_counter()
    batch = sampler.draw(state, problem, rows)
    seconds = time.perf_counter() - began
    assert batch.target is not None  # inversion aims at a class
    p = problem.label(batch).logits.softmax(dim=1)
    noise = noise_start(problem, rows, torch.Generator().manual_seed(seed))
    few = torch.randperm(len(test.test), generator=torch.Generator().manual_seed(seed))[:rows]
    found = {
        "model": teacher.model,
        "rows": rows,
        "seed": seed,
        "steps": sampler.steps,
        "target_accuracy": float((p.argmax(dim=1) == batch.target).float().mean()),
        "confidence": float(p.max(dim=1).values.mean()),
        "distance_noise": distance(problem, noise),
        "distance_inverted": distance(problem, batch.x),
        "distance_real": distance(problem, to_pixels(test.test.x[few], test.spec)),
        "seconds": seconds,
    }
    print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in found.items()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with in_a_line("experiments.inversion"):
        main(sys.argv[1:])
