"""python -m experiments.bench.public FOLDER METHOD: a public implementation's steps beside the bare loop's, and ours.

no paper. FOLDER is a checkout of zju-vipa/CMI or zju-vipa/Fast-Datafree on GitHub. They have no licence, so nothing of
them is here; METHOD is as their datafree_kd.py calls it, or `cmi_later`. They need kornia, termcolor and tqdm. Their
networks, their synthesizer and their `train` run as they are, one thread, WRN-40-2 to WRN-16-1, 32 images; what they
expect of another time or of a GPU is put in their way: an old name of torchvision's, `.cuda()`, and workers that read
images, which would use a second core. A step of theirs is what synthesis.py calls a step of ours, in the same process.
"""

import argparse
import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import data

from . import rows, synthesis
from .bare import bare_step, bare_synthesis

METHODS = {
    "dfq": "dfq",
    "deepinv": "deep_inversion",
    "cmi": "cmi",
    "cmi_later": "cmi, 4096 negatives",  # as many rounds later as fill its bank of features with these
    "fast": "fast_dfkd",
    "fast_meta": "fast_dfkd",
}
"""What is ours of each of theirs."""

WARM = 1  # steps that are run and not counted

Step = Callable[[], None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.public", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkout of theirs")
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--pairs", type=int, default=9, help="steps that count (9)")
    options = parser.parse_args(arguments)
    if not (options.folder / "datafree_kd.py").is_file():
        print(f"error: folder: expected a checkout with datafree_kd.py, found {options.folder}", file=sys.stderr)
        return 2
    if options.pairs < 1:
        print(f"error: pairs: expected an integer >= 1, found {options.pairs}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    where, clock, ours = Path.cwd(), time.process_time, METHODS[options.method]
    with tempfile.TemporaryDirectory() as written:
        os.chdir(written)
        try:
            with redirect_stdout(sys.stderr), _theirs(where / options.folder) as theirs:  # they print
                found = _measured(theirs, options.method, options.pairs, clock)
        finally:
            os.chdir(where)
    # ours again as its own bench has it, beside the same bare loops
    found |= {
        "student_ours": _ratio(synthesis.student_steps(ours, options.pairs, clock)),
        "student_ours_bfloat16": _ratio(synthesis.student_steps(ours, options.pairs, clock, "bfloat16")),
        "student_ours_compiled": _ratio(synthesis.student_steps(ours, options.pairs, clock, compile=True)),
        "synthesis_ours": _ratio(synthesis.synthesis_steps(ours, options.pairs, clock)),
    }
    shares = {
        f"{name} / theirs": found[name] / found[f"{name.split('_')[0]}_theirs"] for name in found if "_ours" in name
    }
    line = {"repository": _head(options.folder), "method": options.method, "pairs": options.pairs, **found, **shares}
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}
    print(json.dumps({**rounded, "about": rows.about("cpu")}))
    return 0


@contextmanager
def _theirs(folder: Path) -> Iterator[SimpleNamespace]:
    """Inside, their modules: `datafree`, `registry`, and the script as `script`; and what they stumble over is not."""

    class Loader(data.DataLoader[Any]):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "num_workers": 0, "pin_memory": False})

    def stay(self: Tensor, *_: Any, **__: Any) -> Tensor:
        return self

    utils = ModuleType("torchvision.models.utils")
    vars(utils)["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    sys.modules["torchvision.models.utils"] = utils
    sys.path.insert(0, str(folder))
    names = {"datafree": "datafree", "registry": "registry", "script": "datafree_kd"}
    with patch.object(data, "DataLoader", Loader), patch.object(torch.Tensor, "cuda", stay):
        yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})


def _measured(theirs: SimpleNamespace, method: str, pairs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians of the ratios to the bare loops, and of seconds."""
    torch.manual_seed(synthesis.SEED)
    shape = (synthesis.BATCH, *synthesis.SPEC.shape)
    teacher, student = (theirs.registry.get_model(net, num_classes=10) for net in ("wrn40_2", "wrn16_1"))
    with torch.no_grad():
        for _ in range(3):
            teacher(torch.rand(shape))
    teacher.eval()
    synthesizer, criterion = _synthesizer(theirs, method, teacher, student, pairs + WARM + 1)

    def timed(step: Step) -> float:
        began = clock()
        step()
        return clock() - began

    part, problem = synthesis.PARTS[METHODS[method]], synthesis._problem()
    loop = bare_synthesis(copy.deepcopy(problem.teacher.module).requires_grad_(True), shape)
    asked, since = 0, 0.0
    steps: list[tuple[float, float]] = []

    def alternate(*_: Any) -> None:
        nonlocal asked, since
        took, first = clock() - since, asked == 0
        asked += 1
        if (asked - 1) % part.asks:
            return
        if not first:
            steps.append((took, timed(loop)))
        since = clock()

    if part.remembered:
        synthesizer.mem_bank.add(torch.rand(part.remembered, synthesizer.mem_bank.dim_feat))
    handle = teacher.register_forward_pre_hook(alternate)
    synthesizer.synthesize()
    handle.remove()
    made = steps[WARM:]

    known = copy.deepcopy(problem.teacher.module).eval().requires_grad_(False)
    learner, x = copy.deepcopy(problem.student.module).train(), torch.rand(shape)
    bare = bare_step(
        known, learner, lambda n: (x[:n], None), len(x), pairs + WARM, synthesis.RATE, synthesis.TEMPERATURE
    )
    optimiser = torch.optim.SGD(student.parameters(), synthesis.RATE, weight_decay=1e-4, momentum=0.9)
    settings = SimpleNamespace(
        kd_steps=1, gpu=None, autocast=theirs.datafree.utils.dummy_ctx, fp16=False, print_freq=0, method=method
    )

    def learn() -> None:
        theirs.script.train(synthesizer, [student, teacher], criterion, optimiser, settings)

    learned = [(timed(learn), timed(bare)) for _ in range(pairs + WARM)][WARM:]
    return {
        "student_theirs": _ratio(learned),
        "student_theirs_seconds": median(took for took, _ in learned),
        "synthesis_theirs": _ratio(made),
        "synthesis_theirs_seconds": median(took for took, _ in made),
    }


def _synthesizer(
    theirs: SimpleNamespace, method: str, teacher: nn.Module, student: nn.Module, steps: int
) -> tuple[Any, Any]:
    """With the settings of their scripts for CIFAR-10, and the student's loss."""
    datafree, shape = theirs.datafree, synthesis.SPEC.shape
    normalizer = datafree.utils.Normalizer(**theirs.registry.NORMALIZE_DICT["cifar10"])
    transforms = importlib.import_module("torchvision.transforms")
    views = transforms.Compose(
        [
            transforms.RandomCrop(shape[-1], padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(normalizer.mean, normalizer.std),
        ]
    )
    common: dict[str, Any] = {
        "img_size": shape,
        "iterations": steps,
        "synthesis_batch_size": synthesis.BATCH,
        "sample_batch_size": synthesis.BATCH,
        "normalizer": normalizer,
        "device": "cpu",
    }
    banked = {**common, "num_classes": 10, "save_dir": "images", "transform": views}
    sizes = {"nz": 256, "ngf": 64, "img_size": shape[-1], "nc": shape[0]}
    made, distill = datafree.synthesis, datafree.criterions.KLDiv(T=synthesis.TEMPERATURE)
    kind: Any
    weights: dict[str, Any]
    if method == "deepinv":
        weights = {"adv": 0, "bn": 10, "oh": 1, "tv": 1e-3, "l2": 0}
        return made.DeepInvSyntheiszer(teacher, student, lr_g=0.05, **weights, **banked), distill
    if method == "dfq":
        networks = datafree.models.generator  # only one of the two has a large one
        generator = getattr(networks, "LargeGenerator", networks.Generator)(**sizes)
        distill = datafree.criterions.KLDiv()
        kind, common = made.GenerativeSynthesizer, {**common, "criterion": distill, "lr_g": 1e-3}
        weights = {"adv": 1, "bn": 1, "oh": 1, "act": 0, "balance": 20}
    elif method.startswith("cmi"):
        generator = datafree.models.generator.Generator(**sizes)
        kind, common = made.CMISynthesizer, {**banked, "lr_g": 1e-3, "feature_layers": None}
        weights = {"adv": 0.5, "bn": 1, "oh": 1, "cr": 0.8, "cr_T": 0.2, "n_neg": 4096, "head_dim": 256}
    else:
        generator = datafree.models.generator.Generator(**sizes)
        kind = made.FastMetaSynthesizer if method == "fast_meta" else made.FastSynthesizer
        common = {**banked, "lr_g": 2e-3, "lr_z": 0.01, "warmup": 0, "reset_l0": 1, "reset_bn": 0, "is_maml": 1}
        weights = {"adv": 1.1, "bn": 10, "oh": 0.4, "bn_mmt": 0.9}
    return kind(teacher, student, generator, nz=256, **weights, **common), distill


def _ratio(pairs: list[Any]) -> float:
    """Median of first over second."""
    return float(median(entry[0] / entry[1] for entry in pairs))


def _head(folder: Path) -> str:
    """The checkout's commit, or its name where git knows none."""
    told = subprocess.run(["git", "-C", str(folder), "log", "-1", "--format=%h"], capture_output=True, text=True)
    return f"{folder.name}@{told.stdout.strip()}" if told.returncode == 0 else folder.name


if __name__ == "__main__":
    sys.exit(main())
