"""A made-up run folder: plausible numbers, a run that diverged, a sampler that is unsupported, names that bite."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dfkd.results import Line, append

SCRIPT = "<script>alert(1)</script>"
QUOTES = "a\"b'c & д $^$"
ROWS = 360

# sampler: (kind, data-free, agreement on test, teacher images in thousands, aims at classes)
SAMPLERS = {
    "real": ("real", False, 0.991, 51, False),
    "mixup": ("mixup", False, 0.986, 51, False),
    "adversarial-real": ("adversarial", False, 0.988, 300, False),
    "uniform": ("uniform", True, 0.55, 51, False),
    SCRIPT: ("gaussian", True, 0.61, 51, False),
    "deep_inversion": ("pooled", True, 0.969, 420, True),
    "generative": ("generative", True, 0.931, 160, False),
    "adversarial-pooled-deep_inversion": ("adversarial", True, 0.987, 660, True),
    QUOTES: ("cutmix", False, 0.982, 51, False),
    "no batchnorm": ("deep_inversion", True, 0.0, 0, False),
}
COLUMNS = ("test", "noise@3", "blur@3", "contrast@3", "uniform")
WORST = ("worst_case@2", "worst_case@8")
DROP = {"test": 0.0, "noise@3": 0.02, "blur@3": 0.06, "contrast@3": 0.11, "uniform": 0.35}

Build = Callable[..., Path]


def build(
    folder: Path,
    seeds: tuple[int, ...] = (0, 1, 2),
    samplers: tuple[str, ...] = tuple(SAMPLERS),
    scores: dict[str, float] | None = None,
    columns: tuple[str, ...] = COLUMNS,
    jitter: float = 0.004,
    against: tuple[str, ...] = (),
    diverged: tuple[tuple[str, int], ...] = (("generative", 2),),
) -> Path:
    """Writes a run folder. scores: agreement on test by sampler, in place of the usual ones.

    jitter: how far the seeds lie apart; against: samplers that are worst where the others are best.
    """
    rng = np.random.default_rng(4)
    hard = {name: rng.permutation(ROWS) for name in (*columns, *WORST)}  # the same rows are hard for all students
    usual = {name: values[2] for name, values in SAMPLERS.items()} | (scores or {})
    folder.mkdir(parents=True, exist_ok=True)
    draws = tuple(f"draws of {name}" for name in samplers if name != "no batchnorm")
    for sampler in samplers:
        kind, data_free, _, thousands, aims = SAMPLERS[sampler]
        for position, seed in enumerate(seeds):
            head = Line(
                sampler, data_free, seed, "test", "agreement", None, 500, 1000 * thousands, 11.5 + 0.08 * thousands,
                kind=kind, labelling="batch" if "uniform" in sampler else "eval", label_forward=51_000,
            )  # fmt: skip
            status = "unsupported" if sampler == "no batchnorm" else "diverged"
            if sampler == "no batchnorm" or (sampler, seed) in diverged:
                append(folder / "results.jsonl", [replace(head, status=status)])  # type: ignore[arg-type]
                continue
            shift = (-jitter if sampler in against else jitter) * (position - 0.5 * (len(seeds) - 1))
            _run(folder, head, columns + draws + WORST, usual[sampler] + shift, hard, rng)
            _bank(folder, sampler, seed, aims, rng)
    _manifest(folder, samplers, seeds)
    return folder


def _run(
    folder: Path,
    head: Line,
    columns: tuple[str, ...],
    score: float,
    hard: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> None:
    lines: list[Line] = []
    rows: dict[str, np.ndarray] = {}
    for column in columns:
        own = column == f"draws of {head.sampler}"
        level = score - DROP.get(column, 0.05)
        level = {"worst_case@2": 0.8 * score, "worst_case@8": 0.4 * score}.get(column, 0.999 if own else level)
        order = hard.get(column, np.arange(ROWS))
        agrees = (order < round(min(max(level, 0.0), 1.0) * ROWS)).astype(np.float32)
        kl = np.where(agrees > 0, 0.01, 1.2).astype(np.float32)
        rows |= {f"agreement|{column}": agrees, f"kl|{column}": kl}
        values: dict[str, float | None] = {"agreement": float(agrees.mean()), "kl": float(kl.mean()), "js": 0.1}
        if not column.startswith("draws") and column != "uniform":
            values |= {"accuracy": float(agrees.mean()) - 0.01, "agreement_teacher_wrong": None}
        if head.seed == 0:
            values |= {"excess_agreement": float(agrees.mean()) - 0.97}
        lines += [replace(head, evaluation=column, metric=metric, value=value) for metric, value in values.items()]
    for metric, value in {"histogram_entropy": 0.98, "mean_confidence": 0.7, "batchnorm_shift": 0.4}.items():
        noisy = value + 0.01 * float(rng.standard_normal())
        lines.append(replace(head, evaluation="own_draws", metric=metric, value=noisy))
    append(folder / "results.jsonl", lines)
    place = folder / "runs" / _name(f"{head.sampler}-s{head.seed}")
    place.mkdir(parents=True)
    np.savez_compressed(place / "rows.npz", **rows)  # type: ignore[arg-type]
    steps = range(50, 501, 50)
    points = [
        {
            "step": step,
            "teacher_images": head.teacher_images * step // 500,
            "seconds": 0.02 * step,
            "loss": 2.0 * np.exp(-step / 150) + 0.02 / score,
            "agreement": score - 0.5 * score * float(np.exp(-step / 70)),
        }
        for step in steps
    ]
    (place / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


def _name(text: str) -> str:
    return text.replace("/", "_").replace("<", "_").replace(">", "_").replace("(", "_").replace(")", "_")


def _bank(folder: Path, sampler: str, seed: int, aims: bool, rng: np.random.Generator) -> None:
    (folder / "banks").mkdir(exist_ok=True)
    x = rng.integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    tensors = {"x": x} | ({"target": np.arange(24, dtype=np.int64) % 10} if aims else {})
    save_file(tensors, folder / "banks" / (_name(f"{sampler}-s{seed}") + ".safetensors"))


def _manifest(folder: Path, samplers: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    manifest = {
        "versions": {"python": "3.12.3", "torch": "2.15.0", "dfkd": "0.1.0"},
        "hardware": {"machine": "x86_64", "cores": 2, "device": "cpu"},
        "threads": 1,
        "seeds": list(seeds),
        "teacher": {"reference": "digits_cnn </script>", "accuracy": 0.9889, "digest": "9f2c61d0a7"},
        "data": {"name": "digits", "train_rows": 1437, "test_rows": ROWS, "digest": "b1946ac9"},
        "control": True,
        "resolution": 1 / ROWS,
        "samplers": {
            name: {
                "kind": SAMPLERS[name][0],
                "data_free": SAMPLERS[name][1],
                "paper": "arXiv:1912.08795" if "inversion" in name else "no paper",
                "sources": [] if SAMPLERS[name][1] else ["digits"],
            }
            for name in samplers
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(
        f"# {SCRIPT} http://example.org/a.js\nseeds: {list(seeds)}\nbudget: {{steps: 500}}\n"
    )


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual run folder, to read from only."""
    return build(tmp_path_factory.mktemp("report") / "demo")


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy of it, to write into."""
    return shutil.copytree(shared, tmp_path / "demo")


@pytest.fixture(name="build")
def _build(tmp_path: Path) -> Build:
    """Other run folders, each in its own place."""
    count = iter(range(100))

    def make(**changes: object) -> Path:
        return build(tmp_path / f"run{next(count)}", **changes)  # type: ignore[arg-type]

    return make
