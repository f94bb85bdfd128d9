"""How far the slopes of the student's logits in its input are from the teacher's.

Czarnecki, Osindero, Jaderberg, Swirszcz, Pascanu: Sobolev Training for Neural Networks. 2017. arXiv:1706.04859 for
random directions. Srinivas, Fleuret: Knowledge Transfer with Jacobian Matching. 2018. arXiv:1803.00443 for one class,
each slope normalised. Both are unstable alone: add a loss of values such as `kl`. The teacher is differentiated once, a
backward image for each slope, the student twice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd.losses.norms import direction
from dfkd.losses.response import NO_TAPS
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import Stream
from dfkd.types import Batch, Outputs

StudentMode = Literal["eval", "train"]
Of = Literal["teacher", "label"]


def slope(logits: Tensor, x: Tensor, v: Tensor, learn: bool) -> Tensor:
    """J^T v of each row, J (k, c*h*w) being the logits' derivative in x: (n, k), (n, c, h, w), (n, k) -> (n, c, h, w).

    learn: whether the answer can be differentiated again. Rows that a batch's own statistics couple are summed over.
    """
    if not (logits.requires_grad and x.requires_grad):
        raise ValueError("x: expected logits that were computed from an x with requires_grad, found no graph to it")
    try:
        (found,) = torch.autograd.grad(logits, x, v.expand_as(logits), retain_graph=True, create_graph=learn)
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise ValueError("x: expected logits that were computed from this x, found none of them are") from error
    return found


def jacobian_distance(student_logits: Tensor, teacher_logits: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """Mean over d directions v of |J_s^T v - J_t^T v|^2, squared logits over squared pixels: (n,).

    Two (n, k) that were computed from x (n, c, h, w), which has requires_grad; directions (d, n, k), or (d, 1, k) for
    the same ones in all rows. For standard normal v its mean is the squared Frobenius norm of J_s - J_t.
    """
    _same_shape(student_logits, teacher_logits)
    gaps = []
    for v in directions:
        theirs = slope(teacher_logits, x, v, learn=False)
        ours = slope(student_logits, x, v, learn=torch.is_grad_enabled())
        gaps.append((ours - theirs).square().flatten(1).sum(dim=1))
    return torch.stack(gaps).mean(dim=0)


def all_directions(logits: Tensor) -> Tensor:
    """(k, 1, k): the directions with which `jacobian_distance` is the squared Frobenius norm itself."""
    k = logits.shape[1]
    return math.sqrt(k) * torch.eye(k, dtype=logits.dtype, device=logits.device)[:, None]


def class_gradient_distance(student_logits: Tensor, teacher_logits: Tensor, x: Tensor, classes: Tensor) -> Tensor:
    """|g_s/|g_s| - g_t/|g_t||^2, g the slope of one class's logit in x: (n,) from 0 to 4, no unit.

    Two (n, k) that were computed from x (n, c, h, w), which has requires_grad; classes (n,) int64, or (n, k) weights
    of mixed labels. A slope of zero has no direction: it stays zero and has no gradient.
    """
    _same_shape(student_logits, teacher_logits)
    if classes.ndim == 1:
        classes = functional.one_hot(classes, student_logits.shape[1])
    _same_shape(student_logits, classes, "classes")
    v = classes.to(student_logits)
    theirs = slope(teacher_logits, x, v, learn=False).flatten(1)
    ours = slope(student_logits, x, v, learn=torch.is_grad_enabled()).flatten(1)
    return (direction(ours, 1) - direction(theirs, 1)).square().sum(dim=1)


def _same_shape(expected: Tensor, found: Tensor, name: str = "teacher_logits") -> None:
    if expected.shape != found.shape:
        raise ValueError(f"{name}: expected shape {tuple(expected.shape)}, found {tuple(found.shape)}")


@dataclass(frozen=True)
class Jacobian:
    """Squared distance of J^T v for random v, J the logits' derivative in x; squared logits over squared pixels.

    arXiv:1706.04859. directions: standard normal v drawn anew for each row and step, >= 1; null for all classes,
    exactly, at k slopes a step. student_mode: `eval` asks the student once more, as it will be used; `train` takes its
    slopes as it learns, where BatchNorm couples the rows. Called by itself, as a metric, it is exact and takes the
    student as it was asked.
    """

    directions: int | None = 1
    student_mode: StudentMode = "eval"
    name: ClassVar[str] = "jacobian"
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = NO_TAPS
    input_grad: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        number = self.directions
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"directions: expected an integer >= 1 or null, found {number!r}")
        _require_mode(self.student_mode)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """Nothing to train, but directions to draw. UnsupportedProblem where a model cannot be differentiated so."""
        return Asked(self, problem, seed)

    def measured(self, student: Tensor, teacher: Tensor, batch: Batch, stream: Stream) -> Tensor:
        """(n,), in directions of the stream's next step."""
        if self.directions is None:
            return jacobian_distance(student, teacher, batch.x, all_directions(student))
        shape, rng = (self.directions, *student.shape), stream.advance()
        v = torch.randn(shape, generator=rng, dtype=student.dtype, device=student.device)
        return jacobian_distance(student, teacher, batch.x, v)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        return jacobian_distance(student.logits, teacher.logits, batch.x, all_directions(student.logits))


@dataclass(frozen=True)
class ClassGradient:
    """Squared distance of the unit slopes of one class's logit in x, from 0 to 4, no unit.

    arXiv:1803.00443. of: the class is the `teacher`'s top one, or the true `label`. student_mode: `eval` asks the
    student once more, as it will be used; `train` takes its slopes as it learns, where BatchNorm couples the rows.
    Called by itself, as a metric, it takes the student as it was asked.
    """

    of: Of = "teacher"
    student_mode: StudentMode = "eval"
    name: ClassVar[str] = "class_gradient"
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = NO_TAPS
    input_grad: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.of not in get_args(Of):
            raise ValueError(f"of: expected one of {', '.join(get_args(Of))}, found {self.of!r}")
        _require_mode(self.student_mode)

    def init(self, problem: Problem, seed: int) -> nn.Module | None:
        """Nothing to train. UnsupportedProblem where a model cannot be differentiated so."""
        return Asked(self, problem, seed)

    def measured(self, student: Tensor, teacher: Tensor, batch: Batch, stream: Stream) -> Tensor:
        """(n,); nothing is drawn."""
        del stream
        classes = batch.require_y(self.name) if self.of == "label" else teacher.detach().argmax(dim=1)
        return class_gradient_distance(student, teacher, batch.x, classes)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, /) -> Tensor:
        return self.measured(student.logits, teacher.logits, batch, Stream(0))


def _require_mode(found: str) -> None:
    if found not in get_args(StudentMode):
        raise ValueError(f"student_mode: expected one of {', '.join(get_args(StudentMode))}, found {found!r}")


class _Differentiated(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def student_mode(self) -> StudentMode: ...

    def measured(self, student: Tensor, teacher: Tensor, batch: Batch, stream: Stream) -> Tensor: ...


class Asked(nn.Module):
    """Such a loss within a run: it asks the student in its mode, and its random stream is saved with the run."""

    def __init__(self, loss: _Differentiated, problem: Problem, seed: int) -> None:
        super().__init__()
        self._loss, self._student = loss, problem.student
        self._stream = Stream(seed, problem.device)
        _require_slopes(problem, loss.name)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        logits = student.logits
        if self._loss.student_mode == "eval":
            with self._student.counting("label"):
                logits = self._student(batch.x).logits
        return self._loss.measured(logits, teacher.logits, batch, self._stream)

    def get_extra_state(self) -> dict[str, int]:
        return self._stream.state_dict()

    def set_extra_state(self, state: Any) -> None:
        self._stream.load_state_dict(state)


def _require_slopes(problem: Problem, who: str) -> None:
    """UnsupportedProblem where the teacher cannot be differentiated in x, or the student not in x and its weights."""
    instead = "kl, logit_mse and features do without"
    try:
        problem.teacher.require("input_grad", who=who)
    except UnsupportedProblem as error:
        raise UnsupportedProblem(f"{error}; {instead}") from None
    student, spec = problem.student, problem.spec
    before = [(weight, weight.grad) for weight in student.module.parameters()]
    try:
        with student.uncounted(), torch.enable_grad():
            x = torch.full((2, *spec.shape), spec.middle, device=problem.device, requires_grad=True)
            logits = student(x).logits
            found = slope(logits, x, torch.ones_like(logits), learn=True)
            # along every path: one towards the weights alone would pass by a part that refuses
            found.square().sum().backward()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedProblem(
            f"{who}: needs a student that can be differentiated in x and then in its weights: {reason}; {instead}"
        ) from error
    finally:
        for weight, grad in before:
            weight.grad = grad
