"""What a sampler may ask: two models that can be asked but not altered, and a clock.

A Problem holds no data: a sampler reaches only data that its own settings name.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.affine import affine
from dfkd.compilation import compiled, forget_changed, room
from dfkd.moments import moments
from dfkd.naming import unknown
from dfkd.pixels import as_channels_last
from dfkd.types import BATCHNORM_MODES, Batch, BatchNormMode, InputSpec, Labelling, Outputs, contents

__all__ = [
    "CAPABILITIES",
    "PENULTIMATE",
    "PHASES",
    "PRECISIONS",
    "BatchNormInput",
    "Phase",
    "Probe",
    "Problem",
    "UnsupportedProblem",
]

CAPABILITIES = ("logits", "input_grad", "batchnorm", "features", "penultimate")
"""logits: all. input_grad: gradients reach the input. batchnorm: layers with stored statistics.
features: taps. penultimate: a linear layer gives the logits, and what it is given are the penultimate features."""

PENULTIMATE = "penultimate"
"""The tap that stands for what the last linear layer is given, whatever its path; a module of that name goes first.
`members.0.penultimate` is likewise that of the network at `members.0`, which must answer images with logits itself."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""float32: in full while a student is trained or images are kept, which torch on a GPU is not unless told. tf32: its
convolutions and products are rounded to TF32 there; a GPU's. bfloat16: autocast where images are labelled, learned from
and scored; synthesis is in float32 as torch is set."""

Phase = Literal["synthesise", "label", "evaluate"]
PHASES: tuple[str, ...] = get_args(Phase)


class UnsupportedProblem(ValueError):
    """A sampler or loss needs something of the teacher that it does not have."""


@dataclass(frozen=True)
class BatchNormInput:
    """What one BatchNorm layer was given in the last forward pass, beside what it has stored. Statistics are (c,).

    given: mean and variance where they are not to be taken from the input when they are first asked for.
    """

    name: str
    running_mean: Tensor
    running_var: Tensor
    input: Tensor | None = None  # (n, c, ...), only where a graph keeps it alive anyway
    given: tuple[Tensor, Tensor] | None = None

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        if self.given is not None:
            return self.given
        assert self.input is not None  # one of the two is there
        return moments(self.input)

    @property
    def mean(self) -> Tensor:
        return self._moments[0]

    @property
    def var(self) -> Tensor:
        """Biased, over rows and positions."""
        return self._moments[1]

    @property
    def rows(self) -> Tensor:
        """(n, c): the mean of the input over positions, of each row."""
        if self.input is None:
            raise ValueError(f"{self.name}: what it was given is kept only where gradients are recorded")
        if self.input.ndim == 2:
            return self.input
        positions = self.input[0, 0].numel()
        # a sum's gradient is the same number everywhere, not written out as a mean's is
        return self.input.sum(dim=tuple(range(2, self.input.ndim))) / positions


class _CountBackward(torch.autograd.Function):
    """The identity; its backward counts the rows whose input gradient was computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probe: "Probe") -> Tensor:
        ctx.probe, ctx.phase = probe, probe.phase
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        ctx.probe.counts[ctx.phase]["backward"] += grad.shape[0]
        return grad, None


class Probe:
    """A model behind a counter: it answers, says what it can do, and is the same afterwards.

    module: takes (n, c, h, w) float32 pixels and returns (n, k) logits. precision: one of PRECISIONS. A call asks in
    evaluation mode, dropout off, whatever `module.training` says, with BatchNorm normalising as `mode` says;
    parameters, buffers, gradients, modes and hooks are as before afterwards.
    channels_last: whether images are laid out that way, where the module can take it: convolutions of large maps are
    quicker so, of small ones slower; None for images of 16x16 and more.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: InputSpec,
        device: torch.device | str = "cpu",
        name: str = "teacher",
        precision: str = "float32",
        channels_last: bool | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
        self.spec, self.device, self.name, self.precision = spec, torch.device(device), name, precision
        self.channels_last = spec.height * spec.width >= 16 * 16 if channels_last is None else channels_last
        self.module = module.to(self.device)
        if self.channels_last and self.device.type == "cuda":  # elsewhere laying out the images is enough
            self.module = self.module.to(memory_format=torch.channels_last)
        self.phase: Phase = "synthesise"
        self.counts = {phase: {"forward": 0, "backward": 0} for phase in PHASES}
        self._modules = list(module.modules())
        self._batchnorms = [
            (path, part)
            for path, part in module.named_modules()
            if isinstance(part, _BatchNorm) and part.running_mean is not None
        ]
        self._tapped: dict[str, Any] = {}
        self._taps: tuple[str, ...] = ()
        self._capabilities: frozenset[str] | None = None
        self._linear: nn.Linear | None = None
        self._linears: dict[str, nn.Linear] = {}  # of taps
        self._digest: str | None = None
        self._compiled: Any = None
        self._rows = 0  # how many at a time go through it

    # -- what it can do ------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of CAPABILITIES it has, found out once by asking it two images (not counted)."""
        if self._capabilities is None:
            found = {"logits"}
            if len(self._modules) > 1:
                found.add("features")
            if self._batchnorms:
                found.add("batchnorm")
            if self._answers_with_gradient():
                found.add("input_grad")
            self._linear = self._classifier()
            if self._linear is not None:
                found.add("penultimate")
            self._capabilities = frozenset(found)
        return self._capabilities

    @cached_property
    def flat(self) -> bool:
        """Whether its gradient to its input is 0 all over noise, as where it rounds what it is given (not counted).

        False where its answers know of no gradient. Found out once.
        """
        if "input_grad" not in self.capabilities:
            return False
        numbers = torch.Generator().manual_seed(0)
        noise = torch.rand(2, *self.spec.shape, generator=numbers)
        x = (self.spec.low + self.spec.span * noise).to(self.device).requires_grad_(True)
        with self.uncounted(), torch.enable_grad(), self.frozen():
            logits = self(x).logits
            weights = torch.randn(logits.shape, generator=numbers).to(self.device)
            (slope,) = torch.autograd.grad(logits, x, weights, allow_unused=True)
        return slope is None or not bool((slope != 0).any())  # sync

    def require(self, *needs: str, who: str) -> None:
        """UnsupportedProblem naming `who` and the first capability that is missing."""
        for need in needs:
            if need not in self.capabilities:
                has = ", ".join(c for c in CAPABILITIES if c in self.capabilities)
                raise UnsupportedProblem(f"{who}: needs a {self.name} with {need}; this {self.name} has {has}")

    def check(self) -> None:
        """ValueError where its answers are not finite (n, k) logits for the spec's images."""
        spec = self.spec
        x = torch.full((2, *spec.shape), spec.middle, device=self.device)
        x[1] = spec.low
        counts = self._counts_copy()
        try:
            with torch.no_grad():
                logits = self(x).logits
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{self.name}: cannot be asked images of shape {spec.shape}: {reason}") from error
        finally:
            self.counts = counts
        if logits.shape != (2, spec.num_classes):
            raise ValueError(
                f"{self.name}: expected logits of shape (n, {spec.num_classes}) for {spec.num_classes} classes, "
                f"found {tuple(logits.shape)} for n = 2"
            )
        if not bool(torch.isfinite(logits).all()):  # sync
            raise ValueError(f"{self.name}: expected finite logits, found NaN or infinity for a grey and a dark image")

    @property
    def digest(self) -> str:
        """A hash of its parameters and buffers, to tell teachers apart."""
        if self._digest is None:
            hasher = hashlib.blake2b(digest_size=16)
            for key, value in sorted(self.module.state_dict().items()):
                if isinstance(value, Tensor):
                    hasher.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                    hasher.update(contents(value))  # sync
            self._digest = hasher.hexdigest()
        return self._digest

    def feature_shapes(self, *paths: str) -> dict[str, tuple[int, ...]]:
        """Shapes of what these modules give for one image, found by asking it two (not counted)."""
        with self.uncounted(), torch.no_grad(), self.taps(*paths):
            features = self(torch.full((2, *self.spec.shape), self.spec.middle, device=self.device)).features
        for path, value in features.items():
            if value.ndim < 1 or value.shape[0] != 2:
                raise ValueError(
                    f"module path {path!r} of the {self.name}: expected a row for each of 2 images, "
                    f"found shape {tuple(value.shape)}"
                )
        return {path: tuple(value.shape[1:]) for path, value in features.items()}

    # -- asking --------------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor, mode: BatchNormMode = "eval") -> Outputs:
        """x (n, c, h, w) pixels -> logits (n, k) float32 and the tapped features."""
        if mode not in BATCHNORM_MODES:
            raise ValueError(f"mode: expected one of {', '.join(BATCHNORM_MODES)}, found {mode!r}")
        n = x.shape[0]
        self.counts[self.phase]["forward"] += n
        if x.requires_grad and torch.is_grad_enabled():
            x = _CountBackward.apply(x, self)
        if mode == "eval" and not any(part.training for part in self._modules):
            return self._ask(x, ((n, mode),))  # it stands as it is to be asked
        with self._evaluating(mode):
            return self._ask(x, ((n, mode),))

    def learn(self, x: Tensor) -> Outputs:
        """Answers of the module as it stands: in training, dropout and BatchNorm do what their modes say.

        For the engine alone, which owns the student. Counted and rounded as labelling.
        """
        before, self.phase = self.phase, "label"
        try:
            self.counts["label"]["forward"] += x.shape[0]
            return self._ask(x, ((x.shape[0], "batch"),))
        finally:
            self.phase = before

    def _ask(self, x: Tensor, labelling: Labelling) -> Outputs:
        """The module's answers in the precision of this phase, tagged."""
        precision = self.precision_now
        if precision == "bfloat16":
            # without its cache: inside another autocast block that outlives a step it would keep weights of steps ago
            with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
                logits = self._laid_out(x)
        else:
            logits = self._laid_out(x)
        features: dict[str, Tensor] = {}
        if self._taps:
            features = {path: self._feature(path) for path in self._taps}
            self._tapped.clear()
        if not isinstance(logits, Tensor):
            raise ValueError(f"{self.name}: expected a tensor of logits (n, k), found {type(logits).__name__}")
        return Outputs(logits.float(), features, labelling, precision)

    def _feature(self, path: str) -> Tensor:
        """What a tapped module gave in this call."""
        given = self._tapped.get(path)
        if isinstance(given, Tensor):
            return given.float()
        found = "nothing, as it was not called" if path not in self._tapped else type(given).__name__
        raise ValueError(f"module path {path!r} of the {self.name}: expected it to give a tensor, found {found}")

    def _laid_out(self, x: Tensor) -> Any:
        """The module's answer to the images in the layout that it is quicker with."""
        if self._compiled is not None and self.phase == "label" and x.shape[0] == self._rows and not self._watched:
            return self._compiled(as_channels_last(x) if self.channels_last else x)
        if not self.channels_last:
            return self.module(x)
        try:
            return self.module(as_channels_last(x))
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            self.channels_last = False  # it flattens its maps with `view`, which this layout does not allow
            self.module.to(memory_format=torch.contiguous_format)  # weights laid out so would give it to the maps again
        return self.module(x)

    @property
    def _watched(self) -> bool:
        """Whether hooks are to see what the module does inside, which compiled code does not call."""
        return bool(self._taps or self.module._forward_pre_hooks)

    def label(self, x: Tensor, labelling: Labelling) -> Outputs:
        """x (n, c, h, w), asked run by run, each in its own mode."""
        if len(labelling) == 1:
            return self(x, labelling[0][1])
        answers = [
            self(part, mode) for part, (_, mode) in zip(x.split([r for r, _ in labelling]), labelling, strict=True)
        ]
        features = {path: torch.cat([a.features[path] for a in answers]) for path in self._taps}
        return Outputs(torch.cat([a.logits for a in answers]), features, labelling, self.precision_now)

    @property
    def precision_now(self) -> str:
        """bfloat16 only where images are labelled or scored."""
        return "float32" if self.phase == "synthesise" and self.precision == "bfloat16" else self.precision

    @contextmanager
    def _evaluating(self, mode: BatchNormMode) -> Iterator[None]:
        """Evaluation mode for all, BatchNorm as `mode` says; only what differs is switched and switched back."""
        changed = [part for part in self._modules if part.training]
        for part in changed:
            part.training = False
        batch = [part for _, part in self._batchnorms if part.track_running_stats] if mode == "batch" else ()
        for part in batch:
            # without `track_running_stats` torch passes no running buffers: nothing is read and nothing is written
            part.training, part.track_running_stats = True, False
        try:
            yield
        finally:
            for part in batch:
                part.training, part.track_running_stats = False, True
            for part in changed:
                part.training = True

    def _answers_with_gradient(self) -> bool:
        counts = self._counts_copy()
        x = torch.full((2, *self.spec.shape), self.spec.middle, device=self.device, requires_grad=True)
        try:
            with torch.enable_grad(), self.frozen():  # so that it is the input's gradient, not the weights'
                return bool(self(x).logits.requires_grad)
        except (RuntimeError, TypeError, IndexError, AttributeError):
            return False
        finally:
            self.counts = counts

    def _classifier(self) -> nn.Linear | None:
        """The linear layer whose answer are the logits themselves; None where there is none. Found by asking."""
        given: list[tuple[nn.Linear, Tensor]] = []

        def after(part: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(part, nn.Linear)  # no other is hooked
            given.append((part, output))

        linears = [part for part in self._modules if isinstance(part, nn.Linear)]
        handles = [part.register_forward_hook(after) for part in linears]
        counts = self._counts_copy()
        try:
            with torch.no_grad():
                logits = self(torch.full((2, *self.spec.shape), self.spec.middle, device=self.device)).logits
        except (RuntimeError, TypeError, IndexError, AttributeError):
            return None
        finally:
            self.counts = counts
            for handle in handles:
                handle.remove()
        same = [part for part, out in given if out.shape == logits.shape and torch.equal(out.float(), logits)]  # sync
        return same[-1] if same else None

    def _counts_copy(self) -> dict[str, dict[str, int]]:
        return {phase: dict(count) for phase, count in self.counts.items()}

    # -- blocks --------------------------------------------------------------------------------------------------

    @contextmanager
    def counting(self, phase: Phase) -> Iterator[None]:
        """Inside, images are counted under this phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Inside, images are not counted: for the few that find out what a model is like."""
        counts = self._counts_copy()
        try:
            yield
        finally:
            self.counts = counts

    @contextmanager
    def compiled(self, rows: int, fixed: bool = False) -> Iterator[None]:
        """Inside, `rows` images at a time are labelled and learned from through torch.compile, unless it is tapped.

        On a GPU what is compiled is also recorded, as CUDA graphs. fixed: its weights do not change meanwhile, which a
        CPU makes use of. ValueError at the first call where that fails.
        """
        if self.channels_last:
            self.check()  # whether it can take this layout is found out by asking, which a compiler takes for its fault
        fold = fixed and self.device.type == "cpu"
        if fold:
            forget_changed(self.module)
        self._compiled, self._rows = compiled(self.module, self.device, self.name, fold=fold), rows
        try:
            with room():
                yield
        finally:
            self._compiled = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, no parameter asks for a gradient; the input's gradient is still computed."""
        thawed = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in thawed:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in thawed:
                parameter.requires_grad_(True)

    @contextmanager
    def quicker_batchnorm(self) -> Iterator[None]:
        """Inside, BatchNorm is quicker on a CPU where maps are large, with other roundings. Weights must not change."""
        large = self.channels_last and self.device.type == "cpu"  # small maps gain nothing; a GPU was not measured
        with affine(part for _, part in self._batchnorms if large):
            yield

    @contextmanager
    def batchnorm_inputs(self) -> Iterator[list[BatchNormInput]]:
        """Inside, every call fills the list (emptied first) with one entry for each BatchNorm layer, in call order."""
        self.require("batchnorm", who="batchnorm_inputs")
        seen: list[BatchNormInput] = []

        def hook(path: str, part: _BatchNorm) -> Any:
            def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0].float()
                running_mean, running_var = part.running_mean, part.running_var
                assert running_mean is not None
                assert running_var is not None  # only layers that store them are hooked
                stored = running_mean.float(), running_var.float()
                # a view of which nobody asks for them (the contrast's) pays for none
                what = {"input": x} if x.requires_grad else {"given": moments(x)}
                seen.append(BatchNormInput(path, *stored, **what))

            return before

        handles = [part.register_forward_pre_hook(hook(path, part)) for path, part in self._batchnorms]
        handles.append(self.module.register_forward_pre_hook(lambda *_: seen.clear(), prepend=True))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def penultimate(self) -> Iterator[list[Tensor]]:
        """Inside, every call fills the list (emptied first) with what the last linear layer was given, (n, d)."""
        self.require("penultimate", who="penultimate")
        classifier = self._linear
        assert classifier is not None  # it has the capability
        seen: list[Tensor] = []
        handles = [
            classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0].float())),
            self.module.register_forward_pre_hook(lambda *_: seen.clear(), prepend=True),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def taps(self, *paths: str) -> Iterator[None]:
        """Inside, every answer's `features` has what these modules gave. ValueError for an unknown path.

        PENULTIMATE stands for the features that the last linear layer is given, (n, d).
        """
        known = dict(self.module.named_modules())
        for path in paths:
            inner, _, last = path.rpartition(".")
            if path not in known and last == PENULTIMATE and inner in known:
                if path not in self._linears:
                    self._linears[path] = self._last_linear(path, known[inner])
            elif path not in known or path == "":
                raise unknown(f"module path of the {self.name}", path, [*(k for k in known if k), PENULTIMATE])

        def hook(path: str) -> Any:
            if path in known:
                return known[path].register_forward_hook(partial(self._note, path))
            last = self._linears[path]
            return last.register_forward_pre_hook(lambda part, given: self._note(path, part, given, given[0]))

        before, self._taps = self._taps, tuple(dict.fromkeys((*self._taps, *paths)))
        handles = [hook(path) for path in paths]
        try:
            yield
        finally:
            self._taps = before
            self._tapped.clear()  # a call that raised may have left some
            for handle in handles:
                handle.remove()

    def _last_linear(self, path: str, network: nn.Module) -> nn.Linear:
        """Of a network inside, or of the whole; UnsupportedProblem where it has none."""
        probe = self if network is self.module else self._inside(network)
        try:
            probe.require("penultimate", who=f"tap {path!r}")
        except UnsupportedProblem as error:
            inner = self._of_members() if probe is self else []
            raise UnsupportedProblem(f"{error}; there is {' and '.join(inner)}" if inner else str(error)) from error
        assert probe._linear is not None  # it has the capability
        return probe._linear

    def _inside(self, network: nn.Module) -> "Probe":
        return Probe(network, self.spec, self.device, self.name, channels_last=self.channels_last)

    def _of_members(self) -> list[str]:
        """Taps of penultimate features of networks in a list inside, such as the members of an ensemble."""
        found = []
        for path, part in self.module.named_modules():
            for number, member in enumerate(part if isinstance(part, nn.ModuleList) else ()):
                with suppress(ValueError):  # a layer, no network of its own
                    probe = self._inside(member)
                    probe.check()
                    if "penultimate" in probe.capabilities:
                        found.append(f"{path}.{number}.{PENULTIMATE}")
        return found

    def _note(self, path: str, part: nn.Module, given: Any, output: Any) -> None:
        """Keeps what is tapped until the answer is put together."""
        del part, given  # what a hook is told beside it
        # a copy, as what comes next may change it in place
        self._tapped[path] = output.clone() if isinstance(output, Tensor) else output

    # -- what it was asked ---------------------------------------------------------------------------------------

    @property
    def images(self) -> int:
        """Forward and backward images of synthesis and labelling: the unit of budgets."""
        return sum(sum(self.counts[phase].values()) for phase in ("synthesise", "label"))

    def charge(self, counts: dict[str, int], phase: Phase = "synthesise") -> None:
        """Adds images that were asked on this run's behalf elsewhere (a shared bank)."""
        for direction, images in counts.items():
            self.counts[phase][direction] += images


@dataclass
class Problem:
    """The teacher, the student, and how far the run is. It holds no data.

    progress in [0, 1] and horizon (planned steps) are set by the engine. banks: a folder where pools that do not
    depend on the student keep what they made, so that runs of one comparison share it; seed: the run's root seed, the
    same for all samplers of that run. batch: rows per step, for losses that need so many or take memory by them; None
    where it is not known.
    """

    teacher: Probe
    student: Probe
    spec: InputSpec
    device: torch.device
    progress: float = 0.0
    horizon: int = 1
    seed: int = 0
    banks: Path | None = None
    batch: int | None = None
    charged_seconds: float = field(default=0.0)

    def label(self, batch: Batch, taps: Sequence[str] = ()) -> Outputs:
        """The teacher's detached answers to these rows: those carried where they fit the request, else asked now."""
        teacher, carried = self.teacher, batch.teacher
        before, teacher.phase = teacher.phase, "label"
        try:
            if (
                carried is not None
                and carried.labelling == batch.labelling
                and carried.precision == teacher.precision_now
                and all(path in carried.features for path in taps)
            ):
                return carried
            with torch.no_grad():
                if not taps:
                    return teacher.label(batch.x, batch.labelling)
                with teacher.taps(*taps):
                    return teacher.label(batch.x, batch.labelling)
        finally:
            teacher.phase = before

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Inside, both models are frozen and what they are asked counts as synthesis.

        What BatchNorm computes by is taken when it begins: inside, models are not trained, copied or saved.
        """
        with ExitStack() as stack:
            for probe in (self.teacher, self.student):
                stack.enter_context(probe.frozen())
                stack.enter_context(probe.quicker_batchnorm())
                stack.enter_context(probe.counting("synthesise"))
            yield
