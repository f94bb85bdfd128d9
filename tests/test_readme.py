"""README.md is followed: its files are saved, its dfkd commands typed in order in one folder, its Python run.

Training is cut short. The lines with make and pip are not run here: .ci/run runs `make test` and installs with pip.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from dfkd import cli, models
from dfkd.types import InputSpec

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="README.md is not beside the tests")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL) if README.exists() else []
SPEC = InputSpec((1, 8, 8), 10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Somewhere else, with the files that README says to save, and a teacher where the demo leaves one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for _, text in BLOCKS:
        named = re.match(r"# (\w+\.(?:py|yaml))\n", text)
        if named:
            Path(named.group(1)).write_text(text, encoding="utf-8")
    demo = Path("runs/demo")
    demo.mkdir(parents=True)
    torch.manual_seed(0)
    models.save(demo / "teacher.safetensors", models.build("digits_cnn", SPEC), reference="digits_cnn", spec=SPEC)
    yield tmp_path
    for name in ("my_teacher", "my_sampler"):
        sys.modules.pop(name, None)


def commands() -> list[str]:
    lines = "\n".join(text for kind, text in BLOCKS if kind == "bash").replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("dfkd ") and "&&" not in line]


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    words = [re.sub(r"budget\.steps=\d+", "budget.steps=12", word) for word in shlex.split(command)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_commands_are_those_of_the_makefile() -> None:
    makefile = README.parent / "Makefile"
    if not makefile.exists():
        pytest.skip("the Makefile is not beside the tests")
    targets = re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in [*targets, "faults"]:
        assert re.search(rf"^{target}:", makefile.read_text(), re.MULTILINE)


def test_the_commands_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Path("mine.yaml")
    shorter = yaml.safe_load(settings.read_text()) | {"budget": {"steps": 12, "batch": 32}, "seeds": [0]}
    settings.write_text(yaml.safe_dump(shorter))
    left: dict[str, tuple[str, ...]] = {"distill": ("student.safetensors", "card.json"), "teach": ()}
    left |= {"compare": ("report.html", "results.jsonl"), "train-generator": ("card.json", "generator/dfkd.json")}
    extra = {"compare": " --workers 1", "scout": " draws.rows=16 draws.learn=0 samplers=[uniform,real]"}
    typed = commands()
    drawn = ["train-generator", "distill"]
    assert [command.split()[1] for command in typed] == ["scout", "teach", "distill", "compare", *drawn, "distill"]
    for command in typed:
        words = shlex.split(command)
        assert run(command + extra.get(words[1], ""), monkeypatch) == 0, command
        if words[1] == "scout":
            continue  # it only prints
        out = folder / words[words.index("--out") + 1]
        for name in left[words[1]]:
            assert (out / name).is_file(), f"{command}: {name}"
        assert words[1] != "teach" or out.is_file(), command


def test_what_is_linked_is_there() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert link.startswith("https://") or (README.parent / link).is_file(), link


def test_the_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del folder
    blocks = [text for kind, text in BLOCKS if kind == "python" and not re.match(r"# \w+\.py\n", text)]
    assert blocks
    for text in blocks:
        exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
    assert "deep_inversion" in capsys.readouterr().out
