"""`dfkd train-generator`: what it leaves, how it goes on, what it refuses, and what stops it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from dfkd import train_generator
from dfkd.config import GeneratorConfig, dump, parse
from dfkd.data import load as load_data
from dfkd.rng import derive
from dfkd.train_generator import planned, sheet
from generators.diffusion import Denoising
from generators.pipeline import load as load_pipeline
from generators.saved import describe
from generators.sn_gan_training import Adversaries, load

Command = Callable[..., Any]

STEPS = 12
SMALL = ["generator={sn_gan: {latent: 4, width: 4, critic_width: 4, critic_steps: 2}}", "budget.batch=8"]


@pytest.fixture
def words(quadrants: Path) -> list[str]:
    return [f"data={quadrants}", *SMALL, f"budget.steps={STEPS}", "grid_every=5"]


def trained(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, but for times."""
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {
        "generator": (folder / "generator.safetensors").read_bytes(),
        "sheets": {path.name: path.read_bytes() for path in sorted((folder / "samples").iterdir())},
        "curve": [{key: value for key, value in line.items() if key != "seconds"} for line in curve],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, quadrants: Path) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "gan"
    given = {"sn_gan": {"latent": 4, "width": 4, "critic_width": 4, "critic_steps": 2}}
    budget = {"steps": STEPS, "batch": 8}
    config = {"data": str(quadrants), "generator": given, "budget": budget, "grid_every": 5}
    status, _ = train_generator.train(planned(parse(GeneratorConfig, config)), folder)
    assert status == "ok"
    return folder


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_leaves_a_generator_that_says_what_it_is(run: Command, words: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "gan"
    said = run("train-generator", *words, "--out", out)
    assert said.status == 0, said.err
    assert f"generator: {out / 'generator.safetensors'}" in said.out
    assert f"{STEPS} steps on " in said.out
    assert trained(out) == trained(whole)
    assert {path.name for path in out.iterdir()} == {
        *("config.yaml", "manifest.json", "card.json", "curve.jsonl", "samples", "generator.safetensors")
    }
    source = words[0].removeprefix("data=")
    digest = load_data(source).digest
    about = describe(out / "generator.safetensors")
    assert about == {
        "kind": "sn_gan",
        "shape": (1, 8, 8),
        "low": 0.0,
        "high": 1.0,
        "classes": 4,
        "class_names": list("abcd"),
        "options": about["options"],
        "trained_on": {"source": source, "digest": digest, "size": None, "limit": None},
        "steps": STEPS,
        "seed": 0,
    }
    assert about["options"]["width"] == 4
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["data"]["digest"] == digest
    assert manifest["sources"] == [source]
    assert manifest["data_free"] is False
    assert manifest["versions"]["torch"]
    generator, _ = load(out / "generator.safetensors")
    assert generator(torch.zeros(1, 4), torch.tensor([3])).shape == (1, 1, 8, 8)


def test_sheets_have_a_row_for_each_class(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "samples").iterdir())
    assert names == ["000005.png", "000010.png", "000012.png"]  # as it goes, and the last step
    with Image.open(whole / "samples" / names[-1]) as file:
        assert file.size == (8 * 32, 4 * 32)  # 8 of each of 4 classes, 8 pixels enlarged fourfold
        picture = np.asarray(file)
    generator, _ = load(whole / "generator.safetensors")
    z = torch.randn(32, 4, generator=torch.Generator().manual_seed(derive(0, "sheet")))
    x = generator(z, torch.arange(4).repeat_interleave(8))
    small = picture.reshape(4, 8, 4, 8, 8, 4)[:, :, 0, :, :, 0]
    for row in range(4):
        for column in range(8):
            expected = (255 * x[8 * row + column, 0]).round().numpy()
            np.testing.assert_array_equal(small[row, :, column], expected.astype(np.uint8))


def test_without_classes_a_sheet_is_a_square(run: Command, words: list[str], tmp_path: Path) -> None:
    words = [*words, "conditional=false", "budget.steps=1", "limit=16"]
    assert run("train-generator", *words, "--out", tmp_path / "gan").status == 0
    with Image.open(tmp_path / "gan" / "samples" / "000001.png") as file:
        assert file.size == (256, 256)
    about = describe(tmp_path / "gan" / "generator.safetensors")
    assert (about["classes"], about["class_names"], about["trained_on"]["limit"]) == (None, None, 16)


@pytest.mark.parametrize(("side", "factor"), [(8, 4), (28, 2), (32, 1), (64, 1)])
def test_a_sheet_lays_images_out_row_by_row(side: int, factor: int) -> None:
    levels = torch.randint(256, (6, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = sheet(levels, 3)
    assert found.shape == (3, 2 * factor * side, 3 * factor * side)
    for n in range(6):
        top, left = (n // 3) * factor * side, (n % 3) * factor * side
        cut = found[:, top : top + factor * side : factor, left : left + factor * side : factor]
        np.testing.assert_array_equal(cut, levels[n].numpy())


def test_a_sheet_has_whole_rows() -> None:
    with pytest.raises(ValueError, match="columns: expected a divisor of 5 images, found 2"):
        sheet(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), 2)


def test_the_dry_run_shows_what_it_decided(run: Command, words: list[str], tmp_path: Path) -> None:
    said = run("train-generator", words[0], "--dry-run", "--out", tmp_path / "gan")
    assert said.status == 0
    shown = yaml.safe_load(said.out)
    assert shown["budget"]["steps"] > 100
    assert shown["flip"] is False
    assert shown["grid_every"] == shown["budget"]["steps"] // 10
    assert shown["generator"]["sn_gan"]["latent"] == 128
    assert not (tmp_path / "gan").exists()
    assert dump(planned(parse(GeneratorConfig, shown)).config) == shown  # and what it shows gives the same


@pytest.mark.parametrize("name", ["mnist.npz", "photographs.npz"])
def test_nothing_is_mirrored_unless_it_is_said(name: str, run: Command, quadrants: Path, tmp_path: Path) -> None:
    """Whatever the data is called: nobody but the user knows whether a mirrored image is one of them."""
    data = tmp_path / name
    data.write_bytes(quadrants.read_bytes())
    for words, mirrored in (([f"data={data}"], False), ([f"data={data}", "flip=true"], True)):
        assert yaml.safe_load(run("train-generator", *words, "--dry-run").out)["flip"] is mirrored


@pytest.mark.parametrize(("flip", "conditional"), [(True, True), (False, False)])
def test_real_batches_are_the_data(
    quadrants: Path, flip: bool, conditional: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every row is an image of the training part with its class, mirrored or not; about half of them are."""
    seen: list[tuple[Tensor, Tensor | None]] = []

    def step(self: Adversaries, batches: Any, rng: torch.Generator) -> dict[str, Tensor]:
        del self, rng
        seen.extend(batches)
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(Adversaries, "step", step)
    budget = {"steps": 2, "batch": 50}
    config = {"data": str(quadrants), "flip": flip, "conditional": conditional, "budget": budget}
    config["generator"] = {"sn_gan": {"latent": 4, "width": 4, "critic_steps": 5}}
    train_generator.train(planned(parse(GeneratorConfig, config)), tmp_path)
    assert len(seen) == 2 * 5
    data = load_data(str(quadrants)).train
    assert data.y is not None
    known = {image.numpy().tobytes(): int(y) for image, y in zip(data.x, data.y, strict=True)}
    mirrored = 0
    for x, y in seen:
        assert (y is not None) == conditional
        for row, image in enumerate((255 * x).round().to(torch.uint8)):
            there = known.get(image.numpy().tobytes())
            if there is None:
                there, mirrored = known[image.flip(2).contiguous().numpy().tobytes()], mirrored + 1
            assert y is None or there == int(y[row])
    # of 500 fair coins: off by 80 with probability 2 exp(-2 * 80^2 / 500) = 1.5e-11
    assert abs(mirrored - 250) < 80 if flip else mirrored == 0


# -- going on ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from dfkd import train_generator
from dfkd.cli import main
from generators.sn_gan_training import Adversaries
train_generator.SAVED_EVERY = 0.0
number, at, of = int(sys.argv.pop(1)), int(sys.argv.pop(1)), Adversaries._teach_generator
def teach(self, *given):
    if self.taken == at:
        os.kill(os.getpid(), number)
    return of(self, *given)
Adversaries._teach_generator = teach
main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_equals_uninterrupted(
    number: signal.Signals, run: Command, words: list[str], whole: Path, tmp_path: Path
) -> None:
    """Ended in the middle of its eighth step, after the critic has moved on: killed, or asked to end."""
    command = [sys.executable, "-c", KILLED, str(int(number)), "7", "train-generator", *words, "--out", "gan"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    out = tmp_path / "gan"
    if number == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        assert done.returncode == 130, done.stderr
        assert done.stderr.splitlines()[-1] == "dfkd: interrupted; the same command continues"
    assert not (out / "generator.safetensors").exists()
    state = torch.load(out / "checkpoint", weights_only=True)["ranks"][0]
    assert state["stream"]["step"] == (7 if number == signal.SIGKILL else 8)
    assert run("train-generator", *words, "--out", out).status == 0
    assert trained(out) == trained(whole)
    assert not (out / "checkpoint").exists()


def test_a_diffusion_model_of_digits_goes_on_where_it_was_ended(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to end in its third step of four; the same command then leaves the same files. Sheets show ten classes."""
    words = ["data=digits", "generator={diffusion: {channels: [8], blocks: 1}}", "budget.steps=4", "budget.batch=8"]
    words = ["train-generator", *words, "grid_every=3", "--out"]
    assert run(*words, tmp_path / "whole").status == 0
    of = Denoising.step

    def stopped(self: Denoising, batches: Any, rng: torch.Generator) -> dict[str, Tensor]:
        if self.taken == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return of(self, batches, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Denoising, "step", stopped)
        said = run(*words, tmp_path / "ended")
    assert (said.status, said.err.splitlines()[-1]) == (130, "dfkd: interrupted; the same command continues")
    assert not (tmp_path / "ended" / "generator").exists()
    assert run(*words, tmp_path / "ended").status == 0
    found, expected = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for part in ("generator", "samples")
            for path in (tmp_path / name / part).rglob("*")
            if path.is_file()
        }
        for name in ("ended", "whole")
    )
    assert found == expected
    assert {"samples/000003.png", "samples/000004.png", "generator/dfkd.json"} < set(found)
    with Image.open(tmp_path / "ended" / "samples" / "000004.png") as sheet_of_all:
        assert sheet_of_all.size == (8 * 32, 10 * 32)
        assert len(np.unique(np.asarray(sheet_of_all))) > 20
    about = describe(tmp_path / "ended" / "generator")
    assert (about["kind"], about["classes"], about["shape"], about["steps"]) == ("diffusion", 10, (1, 8, 8), 4)
    assert about["trained_on"]["digest"] == load_data("digits").digest
    denoiser = load_pipeline(tmp_path / "ended" / "generator", torch.device("cpu"), k=10)
    assert (denoiser.shape, denoiser.classes, denoiser.none) == ((1, 8, 8), 10, 10)
    assert denoiser.names == load_data("digits").spec.class_names


def test_what_is_done_but_gone_is_said(run: Command, words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "gan"
    assert run("train-generator", *words, "budget.steps=1", "--out", out).status == 0
    before = trained(out)
    (out / "generator.safetensors").unlink()
    found = run("train-generator", *words, "budget.steps=1", "--out", out)
    assert (found.status, found.out) == (2, "")
    assert f"was done, but generator.safetensors is gone; delete {out / 'card.json'} to train it again" in found.err
    (out / "card.json").unlink()
    assert run("train-generator", *words, "budget.steps=1", "--out", out).status == 0
    assert trained(out) == before
    (out / "card.json").write_text("{")
    found = run("train-generator", *words, "budget.steps=1", "--out", out)
    assert found.status == 2
    assert f"out: {out / 'card.json'} cannot be read; name another folder" in found.err


def test_what_is_done_is_not_done_again(
    run: Command, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gan"
    first = run("train-generator", *words, "--out", out)
    monkeypatch.delattr(Adversaries, "step")
    assert run("train-generator", *words, "--out", out).out == first.out


# -- what stops it -----------------------------------------------------------------------------------------------------


def test_stops_where_a_loss_is_not_finite(
    run: Command, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Adversaries.step

    def step(self: Adversaries, batches: Any, rng: torch.Generator) -> dict[str, Tensor]:
        found = of(self, batches, rng)
        return found if self.taken < 7 else {name: loss * torch.nan for name, loss in found.items()}

    monkeypatch.setattr(Adversaries, "step", step)
    out = tmp_path / "gan"
    said = run("train-generator", *words, "--out", out)
    assert said.status == 1
    assert f"not finite by step 7; {out / 'checkpoint'} holds step 5" in said.err
    assert torch.load(out / "checkpoint", weights_only=True)["ranks"][0]["trainee"]["taken"] == 5
    assert not (out / "generator.safetensors").exists()
    assert [path.name for path in (out / "samples").iterdir()] == ["000005.png"]


def test_stops_where_weights_are_not_finite(run: Command, words: list[str], tmp_path: Path) -> None:
    """A rate beyond all measure: the losses of the first step are finite, what it leaves is not."""
    words = [*words, "generator.sn_gan.learning_rate=1e38", "budget.steps=1"]
    said = run("train-generator", *words, "--out", tmp_path / "gan")
    assert said.status == 1
    assert "not finite by step 1; there is none before it. Try a lower learning rate" in said.err
    assert not (tmp_path / "gan" / "generator.safetensors").exists()


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_a_comparison_draws_from_it_and_says_what_it_was_trained_on(
    run: Command, words: list[str], whole: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    """Alone, in a mixture with the data, and inside composites; what it makes is scored too."""
    source = words[0].removeprefix("data=")
    file = str(whole / "generator.safetensors")
    gan = f"{{gan: {{file: {file}}}}}"
    samplers = [
        f"{{real: {{data: {source}}}}}",
        gan,
        f"{{mixture: {{samplers: [{gan}, {{real: {{data: {source}}}}}], weights: [1, 4], label: mixed}}}}",
        f"{{adversarial: {{base: {{pooled: {{base: {gan}, round: 8}}}}, steps: 1}}}}",
        f"{{balanced: {{base: {{augmented: {{base: {gan}}}}}}}}}",
        f"{{gan: {{file: {file}, steps: 1, batch: 8, balance: true, label: steered}}}}",
    ]
    settings = [f"teacher={{weights: {teachers[0]}, data: {source}}}", "student=digits_cnn", "seeds=[0]"]
    settings += [f"samplers=[{', '.join(samplers)}]", "budget.steps=2", "budget.batch=8"]
    settings += ["evaluate={columns: [test, draws], rows: 8}", "control_teacher=null"]
    out = tmp_path / "compared"
    said = run("compare", *settings, "--out", out, "--workers", "1")
    assert said.status == 0, said.err
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    labels = {"real", "gan", "mixed", "adversarial-pooled-gan", "balanced-augmented-gan", "steered"}
    assert {line["sampler"] for line in lines} == labels
    assert {line["status"] for line in lines} == {"ok"}
    assert not any(line["data_free"] for line in lines)
    manifest = json.loads((out / "manifest.json").read_text())
    trained_on = {"source": source, "digest": load_data(source).digest, "size": None, "limit": None}
    assert manifest["read"]["trained_on"] == {file: trained_on}
    assert set(manifest["read"]["sources"]) == {source, file}
    assert manifest["samplers"]["gan"]["sources"] == [file, source]


def test_what_a_bank_was_made_from_is_not_forgotten(
    run: Command, words: list[str], teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    """Private images, a bank of them, a generator of the bank, and the bank is gone: no run is free of those images."""
    source, bank, out = words[0].removeprefix("data="), tmp_path / "bank", tmp_path / "gan"
    copied = ["synthesize", "real", f"sampler.real.data={source}", f"teacher={teachers[0]}", "--n", 40, "--out", bank]
    assert run(*copied).status == 0
    assert run("train-generator", f"data={bank}", *words[1:], "budget.steps=1", "--out", out).status == 0
    shutil.rmtree(bank)
    gan = f"{{pooled: {{base: {{gan: {{file: {out / 'generator.safetensors'}}}}}, round: 8}}}}"
    settings = [f"teacher={teachers[0]}", f"sampler={gan}", "budget.steps=1", "budget.batch=8"]
    assert run("distill", *settings, "--out", tmp_path / "student").status == 0
    manifest = json.loads((tmp_path / "student" / "manifest.json").read_text())
    (trained_on,) = manifest["read"]["trained_on"].values()
    assert (manifest["data_free"], trained_on["source"]) == (False, str(bank))
    assert (trained_on["made_from"]["data_free"], trained_on["made_from"]["sources"]) == (False, [source])


def test_a_student_of_it_has_it_on_its_card(
    run: Command, words: list[str], whole: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    file = whole / "generator.safetensors"
    settings = [f"teacher={teachers[0]}", f"sampler={{gan: {{file: {file}}}}}", "budget.steps=2", "budget.batch=8"]
    said = run("distill", *settings, "--out", tmp_path / "out")
    assert said.status == 0, said.err
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["data_free"], card["sources"]) == (False, [str(file), words[0].removeprefix("data=")])


def test_a_file_that_does_not_fit_is_one_line(run: Command, teachers: tuple[Path, Path], tmp_path: Path) -> None:
    for file, said in (
        (tmp_path / "missing.safetensors", "no such file or folder"),
        (teachers[0], "is no generator; expected what `dfkd train-generator` wrote, found other weights"),
    ):
        words = [f"teacher={teachers[0]}", f"sampler={{gan: {{file: {file}}}}}", "budget.steps=2"]
        found = run("distill", *words, "--out", tmp_path / "out")
        assert found.status == 2
        assert said in found.err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["generator=sn_gann"], "generator: unknown 'sn_gann'; the nearest is 'sn_gan'"),
        (["generator={sn_gan: {witdh: 3}}"], "generator.sn_gan: option: unknown 'witdh'; the nearest is 'width'"),
        (["generator={sn_gan: {ema: 1}}"], "generator.sn_gan: ema: expected a number in [0, 1), found 1"),
        (["size=7"], "size: sn_gan: expected (channels, height, width) with even sides of 8 or more, found (1, 7, 7)"),
        (["grid_every=0"], "grid_every: expected an integer >= 1, found 0"),
        (["budget.steps=0"], "budget: steps: expected an integer >= 1, found 0"),
        (["budgets.steps=1"], "settings: unknown 'budgets'; the nearest is 'budget'"),
        (["data=no/such.npz"], "data: no such file or folder: 'no/such.npz'"),
        (["device=tpu"], "device: expected cpu, cuda or cuda:N, found 'tpu'"),
        (["conditional=3"], "conditional: expected true or false, found 3"),
    ],
)
def test_refuses(run: Command, words: list[str], changed: list[str], said: str, tmp_path: Path) -> None:
    found = run("train-generator", *words, *changed, "--out", tmp_path / "gan")
    assert (found.status, found.out) == (2, "")
    assert said in found.err.splitlines()[-1]
    assert not (tmp_path / "gan").exists()


def test_refuses_a_folder_that_is_anothers(run: Command, words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "gan"
    assert run("train-generator", *words, "budget.steps=1", "--out", out).status == 0
    before = trained(out)
    found = run("train-generator", *words, "budget.steps=1", "seed=5", "--out", out)
    assert found.status == 2
    assert f"out: {out} holds another run, which differs in seed" in found.err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    found = run("train-generator", *words, "--out", tmp_path / "taken")
    assert found.status == 2
    assert "is not empty (it holds thesis.txt)" in found.err
    found = run("train-generator", *words)
    assert "--out: expected a folder to write to, found none" in found.err
    assert trained(out) == before


def test_refuses_to_go_on_with_other_images_of_the_same_name(
    run: Command, words: list[str], quadrants: Path, tmp_path: Path
) -> None:
    data = tmp_path / "mine.npz"
    data.write_bytes(quadrants.read_bytes())
    words = [f"data={data}", *words[1:], "budget.steps=1"]
    assert run("train-generator", *words, "--out", tmp_path / "gan").status == 0
    with np.load(quadrants) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["x_train"] = arrays["x_train"][::-1]
    np.savez(data, **arrays)
    found = run("train-generator", *words, "--out", tmp_path / "gan")
    assert found.status == 2
    assert "was begun with another data of the same name" in found.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_refuses_a_folder_that_cannot_be_written(run: Command, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    found = run("train-generator", *words, "--out", tmp_path / "closed" / "gan")
    assert found.status == 2
    assert "cannot make this folder" in found.err


def test_refuses_a_folder_that_is_a_file(run: Command, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    found = run("train-generator", *words, "--out", tmp_path / "taken" / "gan")
    assert found.status == 2
    assert "cannot make this folder" in found.err
