"""The commands: what they print where, how they end, and what they never import."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import dfkd as package
from dfkd import cli, models
from dfkd.config import CompareConfig, DistillConfig, TeacherConfig, parse
from dfkd.registry import GENERATORS, LOSSES, SAMPLERS, SCHEMES

Command = Callable[..., Any]
HELP = """
import sys
sys.argv[:] = ["dfkd", "--help"]
from dfkd.cli import main
try:
    main()
finally:
    print(sorted({"torch", "numpy", "sklearn", "yaml", "pydantic"} & set(sys.modules)))
"""


def of_children() -> float:
    """Processor seconds of the processes that were started here and have ended."""
    used = os.times()
    return used.children_user + used.children_system


def test_help_is_quick_and_imports_no_torch() -> None:
    """In half a second of its own time, since other processes may be at work; the best of three."""
    times = []
    for _ in range(3):
        began = of_children()
        done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
        times.append(of_children() - began)
        assert "Usage: dfkd" in done.stdout
        assert done.stdout.strip().splitlines()[-1] == "[]"
    assert min(times) < 0.5


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, dfkd; assert 'torch' not in sys.modules; assert set(dfkd.__all__) >= {'compare', 'distill'}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_package_is_there_whatever_was_imported_before() -> None:
    """A module of the same name would take a function's place once it is imported."""
    for _ in range(2):
        for name in package.__all__:
            assert getattr(package, name) is not None
        assert callable(package.compare)
        assert callable(package.distill)
    with pytest.raises(AttributeError, match="no attribute 'compere'"):
        _ = package.compere


def test_without_words_it_says_what_there_is(run: Command) -> None:
    for words in ((), ("--help",)):
        said = run(*words)
        assert said.status == 0
        assert said.err == ""
        for command in ("compare", "scout", "distill", "teach", "train-generator", "evaluate", "report", "list"):
            assert f"\n  {command} " in said.out


@pytest.mark.parametrize(
    "command", ["compare", "scout", "synthesize", "distill", "teach", "train-generator", "evaluate", "report", "list"]
)
def test_every_command_has_help(run: Command, command: str) -> None:
    said = run(command, "--help")
    assert (said.status, said.err) == (0, "")
    assert f"Usage: dfkd {command}" in said.out


@pytest.mark.parametrize("command", ["compare", "scout", "synthesize", "distill", "teach", "train-generator"])
def test_help_says_a_command_that_prints_all_settings(run: Command, command: str) -> None:
    said = " ".join(run(command, "--help").out.split())
    found = re.search(r"All settings: `dfkd (.*? --dry-run)`. .* `dfkd list` samplers", said)
    assert found is not None
    words = found[1].split()
    assert words[0] == command
    assert "seed" in run(*words).out


def test_version(run: Command) -> None:
    assert run("--version").out == f"dfkd {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("comapre",), "command: unknown 'comapre'; the nearest is 'compare'"),
        (("lits", "samplers"), "command: unknown 'lits'; the nearest is 'list'"),
        (("compare", "--wrkers", "2"), "option: unknown '--wrkers'; the nearest is '--workers'"),
        (("distill", "--dryrun"), "option: unknown '--dryrun'; the nearest is '--dry-run'"),
        (("--vresion",), "option: unknown '--vresion'; the nearest is '--version'"),
        (("list", "smaplers"), "list: unknown 'smaplers'; the nearest is 'samplers'"),
        (("list",), "list: expected samplers, losses, schemes, models, generators or data, found none"),
        (("list", "xyz"), "list: unknown 'xyz'; known: samplers, losses, schemes, models, generators, data"),
        (("scout", "digts"), "teacher: expected weights or digits, found nothing at digts; the nearest is 'digits'"),
        (("scout", "mine.yml"), "mine.yml: expected a YAML file or KEY=VALUE, found no such file"),
        (("compare", "--out"), "Option '--out' requires an argument."),
        (("compare", "samplrs=[]"), "settings: unknown 'samplrs'; the nearest is 'samplers'"),
        (("compare", "teacher.model=digits_cnn"), "--out: expected a folder to write to, found none"),
        (("distill",), "settings: teacher is missing; give teacher=VALUE, or a file of settings that has it"),
        (("distill", "teacher=x.safetensors"), "--out: expected a folder to write to, found none"),
        (("evaluate",), "settings: data is missing; give data=VALUE, or a file of settings that has it"),
        (("evaluate", "data=digits"), "weights: expected a weights file, found none; say weights=FILE"),
        (
            ("evaluate", "data=digits", "model=w.safetensors"),
            "weights: expected a weights file, found none but model=w.safetensors; say weights=w.safetensors",
        ),
        (
            ("evaluate", "t.safetensors"),
            "t.safetensors: expected a YAML file or KEY=VALUE, found the name of weights; say weights=t.safetensors",
        ),
        (
            ("distill", "t.pth"),
            "t.pth: expected a YAML file or KEY=VALUE, found the name of weights; say teacher=t.pth",
        ),
        (
            ("distill", "teacher=t.pth", "sampler={uniform: {lable: x}}"),
            "sampler.uniform: option: unknown 'lable'; the nearest is 'label'",
        ),
        (
            ("distill", "teacher=t.pth", "sampler={dafl: {varient: cifar10}}"),
            "sampler.dafl: option: unknown 'varient'; the nearest is 'variant'",
        ),
        (
            ("distill", "teacher=t.pth", "objective={kl: {wieght: 2}}"),
            "objective.kl: option: unknown 'wieght'; the nearest is 'weight'",
        ),
        (
            ("scout", "digits", "sampler=uniform"),
            "sampler: expected samplers, which are ranked, found sampler=uniform; say samplers=[uniform]",
        ),
        (
            ("scout", "digits", "sampler.gaussian.std=1"),
            "sampler: expected samplers, which are ranked, found sampler.gaussian.std=1; say samplers=[NAME, ...]",
        ),
        (("report", "nowhere"), "nowhere: expected the folder of a comparison, found no results.jsonl in it"),
        (("teach", "--out", "t.pt"), "--out: expected a file that ends in .safetensors, found t.pt"),
    ],
)
def test_a_slip_is_one_line(run: Command, words: tuple[str, ...], message: str) -> None:
    said = run(*words)
    assert (said.status, said.out, said.err) == (2, "", f"dfkd: {message}\n")


@pytest.mark.parametrize("where", [0, 1, 3])
def test_debug_shows_where_it_came_from(run: Command, where: int) -> None:
    words = ["compare", "samplrs=[]", "--dry-run"]
    said = run(*words[:where], "--debug", *words[where:])
    assert said.status == 2
    assert said.err.startswith("Traceback (most recent call last)")
    assert said.err.rstrip().endswith("unknown 'samplrs'; the nearest is 'samplers'")


def test_what_is_not_the_users_fault_says_how_to_see_more(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a\nb")

    monkeypatch.setattr("dfkd.listing.show", fail)
    said = run("list", "samplers")
    assert (said.status, said.err) == (1, "dfkd: RuntimeError: a b (--debug shows where)\n")


def test_a_warning_is_one_line_and_said_once(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object) -> None:
        for level in (1, 2):  # two places
            warnings.warn("a\nb", UserWarning, stacklevel=level)
        warnings.warn("c", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr("dfkd.listing.show", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        shown = warnings.showwarning
        assert run("list", "samplers").err == "dfkd: warning: a b\ndfkd: warning: c\n"
        assert warnings.showwarning is shown


def test_an_interruption_is_one_line(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfkd.listing.show", stop)
    said = run("list", "samplers")
    assert (said.status, said.err) == (130, "dfkd: interrupted; the same command continues\n")


# -- list --------------------------------------------------------------------------------------------------------------


def test_list_of_samplers(run: Command) -> None:
    said = run("list", "samplers", "--json")
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert (said.status, said.err) == (0, "")
    assert list(rows) == list(SAMPLERS)
    for row in rows.values():
        assert set(row) == {"name", "summary", "paper", "needs", "data_free", "variants", "options"}
        assert len(row["summary"]) > 20
        assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}.*|doi:10\..+|no paper", row["paper"])
        assert all(set(option) == {"name", "type", "default", "required"} for option in row["options"])
    assert rows["dafl"]["variants"] == ["cifar10", "cifar100"]
    assert rows["real"]["variants"] == []
    assert rows["real"]["data_free"] is False
    assert rows["deep_inversion"]["data_free"] is True
    composites = {
        "mixup",
        "cutmix",
        "adversarial",
        "mixture",
        "robust",
        "pooled",
        "prioritised",
        "augmented",
        "balanced",
    }
    assert {name for name, row in rows.items() if row["data_free"] is None} == composites
    assert rows["deep_inversion"]["needs"] == ["input_grad", "batchnorm"]
    assert rows["deep_inversion"]["paper"].startswith("arXiv:")
    assert len({rows[name]["summary"] for name in ("uniform", "gaussian", "smoothed")}) == 3
    options = {option["name"]: option for option in rows["pooled"]["options"]}
    assert options["base"] == {"name": "base", "type": "a sampler", "default": None, "required": True}
    assert options["round"] == {"name": "round", "type": "a whole number", "default": 256, "required": False}


@pytest.mark.parametrize("kind", ["losses", "schemes", "models", "generators", "data"])
def test_list_of_the_rest(run: Command, kind: str) -> None:
    rows = json.loads(run("list", kind, "--json").out)
    names = [row["name"] for row in rows]
    tables: dict[str, Iterable[str]] = {
        "losses": LOSSES,
        "schemes": SCHEMES,
        "generators": GENERATORS,
        "models": models.MODELS,
        "data": ["digits", "FILE.npz", "FOLDER"],
    }
    expected = list(tables[kind])
    assert set(names) >= set(expected)
    assert all(row["summary"] for row in rows)


def test_list_for_people_says_who_needs_no_data(run: Command) -> None:
    entries = entries_of(run("list", "samplers").out)
    assert " data-free; no paper" in entries["uniform"]
    assert " data-free as its parts are; " in entries["mixup"]
    assert " data-free as its parts are; " in entries["mixture"]
    assert " reads data; no paper" in entries["real"]
    assert " data-free; needs input_grad, batchnorm; arXiv:1912.08795" in entries["deep_inversion"]


def entries_of(listed: str) -> dict[str, str]:
    """By name, everything that is said of it in one line."""
    entries: dict[str, str] = {}
    for line in listed.splitlines():
        if line[0] != " ":
            name = line.split(" ")[0]
        entries[name] = f"{entries.get(name, '')} {line.strip()}"
    return entries


@pytest.mark.parametrize("columns", [72, 80, 120, 300])
def test_list_fits_the_terminal_and_shows_options_as_they_are_written(
    columns: int, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = run("list", "samplers").out
    assert max(map(len, out.splitlines())) <= min(columns, 120)
    entries = entries_of(out)
    for row in json.loads(run("list", "samplers", "--json").out):
        written = re.findall(r"([a-z_0-9]+)(?:=(\[.*?\]|[^,]*)| \(.*?, required\))(?:,|$)", entries[row["name"]])
        found = {name: yaml.safe_load(value) for name, value in written if name}
        for option in row["options"]:
            default = option["default"]
            near = pytest.approx(default, rel=1e-5) if isinstance(default, float) else default
            assert found[option["name"]] == near, option["name"]


@pytest.mark.parametrize("kind", ["samplers", "losses", "models", "data"])
def test_list_for_people_names_all(run: Command, kind: str) -> None:
    rows = json.loads(run("list", kind, "--json").out)
    lines = run("list", kind).out.splitlines()
    assert [row["name"] for row in rows] == [line.split("  ")[0].split(" ")[0] for line in lines if line[0] != " "]


# -- settings that are only printed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words", "cls"),
    [
        ("compare", (), CompareConfig),
        ("compare", ("budget.steps=7", "samplers=[{pooled: {base: uniform, label: é}}]"), CompareConfig),
        ("distill", ("teacher=t.safetensors", "student=digits_cnn"), DistillConfig),
        ("teach", ("seed=3", "optimiser.learning_rate=1e-2"), TeacherConfig),
    ],
)
def test_a_dry_run_prints_what_is_read_back_the_same(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: tuple[str, ...], cls: type
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(command, *words, "--dry-run", "--out", "x")
    assert (said.status, said.err) == (0, "")
    (tmp_path / "again.yaml").write_text(said.out, encoding="utf-8")
    assert run(command, "again.yaml", "--dry-run").out == said.out
    assert parse(cls, yaml.safe_load(said.out)) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"]


# -- one model ---------------------------------------------------------------------------------------------------------


def test_teach_then_evaluate(run: Command, quadrants: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "t.safetensors"
    words = [f"data={quadrants}", "options.width=4", "budget.steps=40", "budget.batch=40"]
    said = run("teach", *words, "optimiser.name=adamw", "optimiser.learning_rate=1e-2", "--out", file)
    assert said.status == 0
    assert f"teacher: {file}\n" in said.out
    assert "normalise=none" in said.err
    content = file.read_bytes()
    again = run("teach", *words, "--out", file)
    assert (again.status, again.err) == (2, f"dfkd: --out: {file} exists already; name another file\n")
    assert file.read_bytes() == content
    shown = run("evaluate", f"weights={file}", f"data={quadrants}", "--json")
    assert shown.status == 0
    scores = json.loads(shown.out)
    assert shown.out.count("\n") == 1
    assert scores["accuracy"] >= 0.9
    assert scores["rows"] == 24
    assert shown.err == "model: normalise=as saved in the weights file\n"
    plain = run("evaluate", f"weights={file}", f"data={quadrants}")
    assert plain.out.startswith(f"accuracy {100 * scores['accuracy']:.2f} %")


def test_evaluate_counts_the_rows_that_are_right(run: Command, quadrants: Path, teachers: tuple[Path, Path]) -> None:
    from dfkd.data import load

    test = load(str(quadrants)).test
    logits = models.load(teachers[0])(test.x.float() / 255.0)
    right = int((logits.argmax(dim=1) == test.y).sum())
    scores = json.loads(run("evaluate", f"weights={teachers[0]}", f"data={quadrants}", "--json").out)
    assert scores["accuracy"] == pytest.approx(right / 24)


def test_how_pixels_are_normalised_is_printed(
    run: Command, quadrants: Path, tmp_path: Path, network: Callable[..., nn.Module]
) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    words = ["evaluate", "model=digits_cnn", "options.width=4", f"weights={tmp_path / 'w.pt'}", f"data={quadrants}"]
    for value, said in (
        ("[[0.5],[0.25]]", "[[0.5], [0.25]]"),
        ("none", "none (the model takes pixels)"),
        ("auto", "none (if these weights"),
    ):
        found = run(*words, f"normalise={value}")
        assert found.status == 0
        assert found.err.startswith(f"model: normalise={said}")


def test_the_commands_are_the_ones_that_are_known() -> None:
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]
    assert names == [
        "compare",
        "scout",
        "synthesize",
        "distill",
        "teach",
        "train-generator",
        "evaluate",
        "report",
        "list",
    ]
