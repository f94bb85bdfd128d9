"""One frozen teacher, one student, both asked about the same tensor.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531. "Consistent teaching":
Beyer et al.: Knowledge Distillation: A Good Teacher Is Patient and Consistent. CVPR 2022. arXiv:2106.05237.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd import models
from dfkd.engine import Budget, Optimiser, Stop, Training, train
from dfkd.interfaces import Sampler, StudentFactory
from dfkd.losses import KL, Objective, combine
from dfkd.losses.parts import check_sources
from dfkd.problem import Probe, Problem
from dfkd.rng import derive, initialised
from dfkd.schemes.from_teacher import FromTeacher, blend, moves_statistics
from dfkd.schemes.statistics import estimate_statistics
from dfkd.schemes.together import Together
from dfkd.types import InputSpec, as_device

__all__ = ["Distilled", "Student", "check_precision", "distill", "make_problem", "make_student", "make_trained"]


@dataclass(frozen=True)
class Distilled:
    """student: the module after the last step, in evaluation mode. training: how it went. problem: both models."""

    student: nn.Module
    training: Training
    problem: Problem


Student = str | StudentFactory | nn.Module | FromTeacher | Together


def make_student(student: Student, spec: InputSpec, seed: int, teacher: nn.Module | None = None) -> nn.Module:
    """A fresh student: a registry name or `package.module:function`, a zero-argument factory, or a copy of a module.

    Equal seeds give equal initial weights; the global generators are left alone. A module is a warm start. Of a student
    that is trained together with others it is the one that is kept, alone; one that starts from its teacher does so
    where there is one, and is else as fresh as any.
    """
    if isinstance(student, Together):
        return make_student(student.student, spec, seed, teacher)
    if isinstance(student, FromTeacher):
        module = make_student(student.student, spec, seed)
        return module if teacher is None else blend(module, teacher, student.share)
    if isinstance(student, nn.Module):
        return copy.deepcopy(student)
    with initialised(derive(seed, "student")):
        module = models.build(student, spec) if isinstance(student, str) else student()
    if not isinstance(module, nn.Module):
        raise ValueError(f"student: expected the factory to return a torch.nn.Module, found {type(module).__name__}")
    return module


def make_trained(student: Student, spec: InputSpec, seed: int, teacher: nn.Module | None = None) -> nn.Module:
    """What is trained: the student, as it starts alone, and in one module with it whom it is trained together with."""
    if not isinstance(student, Together):
        return make_student(student, spec, seed, teacher)

    def fresh(place: int) -> nn.Module:
        return make_student(student, spec, derive(seed, "together", place) if place else seed, teacher)

    return student.scheme.build(fresh, spec, derive(seed, "scheme"))


def make_problem(
    teacher: nn.Module,
    student: nn.Module,
    spec: InputSpec,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str | None = None,
    banks: Path | None = None,
) -> Problem:
    """Both models behind probes, checked: finite logits (n, k) for images of the spec's shape.

    precision: one of dfkd.problem.PRECISIONS; None is bfloat16 on a GPU and float32 elsewhere.
    """
    where = as_device(device)
    if precision is None:
        precision = "bfloat16" if where.type == "cuda" else "float32"
    check_precision(precision, where)
    probes = [
        Probe(module, spec, where, name, precision) for module, name in ((teacher, "teacher"), (student, "student"))
    ]
    for probe in probes:
        probe.check()
    return Problem(probes[0], probes[1], spec, where, seed=seed, banks=banks)


def check_precision(precision: str | None, device: torch.device) -> None:
    """ValueError where this device has no such numbers."""
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision: tf32 is a GPU's, found device {device}; float32 is the nearest")


def distill(
    teacher: nn.Module,
    student: Student,
    sampler: Sampler,
    *,
    spec: InputSpec,
    objective: Objective | None = None,
    budget: Budget | None = None,
    optimiser: Optimiser | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str | None = None,
    student_batchnorm: str = "train",
    banks: Path | None = None,
    checkpoint: Path | None = None,
    identity: str = "",
    monitor: Callable[[Problem], dict[str, float]] | None = None,
    signal: Callable[[Problem, Any], dict[str, float]] | None = None,
    stop: Stop | None = None,
    compile: bool = False,
    show_progress: bool = False,
) -> Distilled:
    """Trains a student to match the teacher on the sampler's inputs; the last step is the result.

    teacher takes (n, c, h, w) pixels and returns (n, k) logits; it is not altered. objective: KL at temperature 4.
    checkpoint: a file that is written as the run goes and continued from where it exists. monitor, signal, stop and
    compile: see `engine.train`; a signal that needs no data is `fidelity.selfcheck.Signal`. ValueError for models that
    do not fit the spec; UnsupportedProblem where the teacher lacks what the sampler needs. A student may start
    `FromTeacher`, in part. Of a student `Together` with others the sampler, monitor and signal see the module that
    holds them all, and the student that is kept is the result.
    """
    objective = objective or combine({"kl": (1.0, KL(temperature=4.0))})
    budget = budget or Budget(steps=2000)
    check_sources(objective.terms, sampler)
    scheme = student.scheme if isinstance(student, Together) else None
    if scheme is not None:
        objective, identity = scheme.objective(objective), f"{identity}/{scheme!r}"
    trained = make_trained(student, spec, seed, teacher)
    start, anew = student.student if isinstance(student, Together) else student, False
    if isinstance(start, FromTeacher):
        identity = f"{identity}/from teacher {start.share}"
        anew = moves_statistics(trained, start.share)
    problem = make_problem(
        teacher,
        trained,
        spec,
        seed=seed,
        device=device,
        precision=precision,
        banks=banks,
    )
    watch = None if monitor is None else (lambda: monitor(problem))
    listen = None if signal is None else (lambda state: signal(problem, state))
    with problem.teacher.frozen():
        training = train(
            problem,
            sampler,
            objective,
            budget,
            optimiser or Optimiser(),
            seed,
            student_batchnorm=student_batchnorm,
            checkpoint=checkpoint,
            identity=identity,
            monitor=watch,
            signal=listen,
            stop=stop,
            begin=partial(estimate_statistics, problem, sampler, batch=budget.batch) if anew else None,
            compile=compile,
            show_progress=show_progress,
        )
    if scheme is not None:
        whole = problem.student
        kept = Probe(scheme.keep(whole.module), spec, whole.device, whole.name, whole.precision, whole.channels_last)
        problem = replace(problem, student=kept)
    return Distilled(problem.student.module.eval(), training, problem)
