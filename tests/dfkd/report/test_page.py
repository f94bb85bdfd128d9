"""The page, read as a browser reads it: nothing from outside, nothing unescaped, the numbers of the records."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dfkd.report import write_report
from dfkd.report.matrix import columns
from dfkd.report.page import breakable
from dfkd.results import Summary, append, read

Build = Callable[..., Path]
REFERENCES = ("src", "href", "action", "data", "poster", "srcset", "formaction", "xlink:href")


class Page(HTMLParser):
    """tags with attributes; text by the element around it; rows of each table as text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "input", "img", "wbr", "br"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        self.text[where] = self.text.get(where, "") + data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def seen(self) -> str:
        """What a person reads."""
        return " ".join(text for tag, text in self.text.items() if tag not in ("style", "script"))


def named(text: str, summary: Summary) -> str:
    """The sampler that a cell names; one name may hold another."""
    return max((sampler for sampler in summary.samplers if sampler in text), key=len)


@pytest.fixture(scope="module")
def page(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = shutil.copytree(shared, tmp_path_factory.mktemp("page") / "demo")
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_nothing_comes_from_outside(page: Page) -> None:
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in REFERENCES:
                assert value.startswith(("data:", "#")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    for text in (page.text["style"], page.text["script"], *(a.get("style", "") for _, a in page.tags)):
        assert not re.search(r"https?:|url\(|@import|//[a-z]|fetch\(|import ", text)


def test_names_are_text_and_never_markup(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert" not in page.text["script"]
    assert "<script>alert(1)</script>" in page.seen
    assert "a\"b'c & д $^$" in page.seen
    titles = [attributes["title"] for _, attributes in page.tags if "title" in attributes]
    assert any("a\"b'c & д $^$ on test" in title for title in titles)  # quotes did not end the attribute
    assert "digits_cnn </script>" in page.seen


def test_says_neither_nan_nor_none(page: Page) -> None:
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.seen + " ".join(str(tag) for tag in page.tags))


def test_the_matrix_holds_the_means_and_spreads_of_the_records(page: Page, folder: Path) -> None:
    summary = Summary(read(folder / "results.jsonl"))
    matrix = page.tables[0]  # agreement stands first
    shown = {row[0]: row[1:] for row in matrix[2:]}
    assert len(shown) == len(summary.samplers)
    checked = 0
    for label, cells in shown.items():
        sampler = named(label, summary)
        for column, cell in zip(columns(summary), cells, strict=True):
            found = summary.cell(sampler, column.name, "agreement")
            if found.mean is None:
                assert cell.strip() == found.status
            else:
                assert found.spread is not None
                assert cell.startswith(f"{100 * found.mean:.1f}±{100 * found.spread:.1f}")
                checked += 1
    assert checked == 9 * len(columns(summary))


def test_failed_runs_are_shown(page: Page) -> None:
    rows = {row[0]: row for row in page.tables[0]}
    assert all(cell == "unsupported" for cell in next(row for name, row in rows.items() if "no batchnorm" in name)[1:])
    assert "1 of 3 diverged" in next(row for name, row in rows.items() if "generative" in name)[1]
    hatched = [attributes for tag, attributes in page.tags if tag == "td" and "failed" in attributes.get("class", "")]
    assert hatched


def test_data_free_is_said_in_words(page: Page, folder: Path) -> None:
    summary = Summary(read(folder / "results.jsonl"))
    for row in page.tables[0][2:]:
        sampler = named(row[0], summary)
        assert row[0].endswith("data-free" if summary.data_free(sampler) else "reads data")


def test_the_table_is_sorted_by_agreement(page: Page) -> None:
    table = next(table for table in page.tables if table[0][0] == "sampler" and "steps" in table[0])
    numbers = [float(row[2].split()[0]) for row in table[1:] if row[2] != "unsupported"]
    assert len(numbers) == 9
    assert numbers == sorted(numbers, reverse=True)


def test_each_metric_has_a_button_and_a_matrix(page: Page) -> None:
    radios = [attributes["id"] for tag, attributes in page.tags if attributes.get("type") == "radio"]
    labels = [attributes["for"] for tag, attributes in page.tags if tag == "label"]
    assert radios == labels
    assert len(radios) == sum(attributes.get("class", "").startswith("panel ") for _, attributes in page.tags) > 4
    for i in range(len(radios)):
        assert f"#metric{i}:checked~.panel{i}" in page.text["style"]
    assert sum("checked" in attributes for _, attributes in page.tags) == 1


def test_charts_and_pictures_are_in_the_page(page: Page) -> None:
    drawings = [
        attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes
    ]
    assert [text.split(" against")[0] for text in drawings] == ["Agreement on test", "Training loss", "Agreement"]
    assert sum(tag == "img" for tag, _ in page.tags) == 9 * 16
    assert sum(tag == "figcaption" for tag, _ in page.tags) == 3 + 2 * 16  # two samplers aim at classes


def test_settings_and_resolution_are_told(page: Page) -> None:
    for text in ("one row is 0.28 %", "2.15.0", "9f2c61d0a7", "0, 1, 2", "budget: {steps: 500}", "arXiv:1912.08795"):
        assert text in page.seen


def test_settings_that_were_left_open_are_not_told(folder: Path) -> None:
    file = folder / "manifest.json"
    trained = {"g.safetensors": {"source": "digits", "size": None, "limit": 0}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"read": {"trained_on": trained}}))
    page = Page(write_report(folder).read_text())
    assert ["read trained on", "g.safetensors: source: digits, limit: 0"] in page.tables[-1]


def test_without_a_test_set_it_says_so(build: Build) -> None:
    text = write_report(build(samplers=("uniform", "generative"), columns=("uniform",))).read_text(encoding="utf-8")
    assert "not a test score" in Page(text).text["section"] + Page(text).seen
    assert "360 test rows" not in Page(text).seen


def test_one_seed_and_one_sampler_are_enough(build: Build) -> None:
    page = Page(write_report(build(samplers=("uniform",), seeds=(0,))).read_text(encoding="utf-8"))
    assert "one seed, so no spread" in page.seen
    assert "±0" not in "".join(page.tables[0][2])


def test_when_everything_failed_it_still_tells(build: Build) -> None:
    page = Page(write_report(build(samplers=("no batchnorm",))).read_text(encoding="utf-8"))
    assert "no batchnorm is unsupported here" in page.seen


def test_only_results_are_needed(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "results.jsonl").write_bytes((folder / "results.jsonl").read_bytes())
    assert "scores per row are missing" in Page(write_report(bare).read_text(encoding="utf-8")).seen


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run folder with a results\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(ValueError, match="expected at least one result line"):
        write_report(tmp_path)


def test_a_broken_bank_is_named(folder: Path) -> None:
    (folder / "banks" / "uniform-s0.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"uniform-s0\.safetensors: expected images as safetensors"):
        write_report(folder)


@pytest.mark.parametrize("text", ["a_b-c", "x" * 30, "<b>&amp; c+d", "д д", ""])
def test_a_breakable_name_keeps_its_letters_and_its_escapes(text: str) -> None:
    parsed = Page(f"<td>{breakable(text)}</td>".replace("td", "p"))
    assert parsed.text.get("p", "") == text
    assert {tag for tag, _ in parsed.tags} <= {"p", "wbr"}


def test_numbers_of_any_finite_size_are_shown(build: Build) -> None:
    folder = build(samplers=("real", "uniform"), seeds=(0, 1))
    lines = read(folder / "results.jsonl")
    heads = {(line.sampler, line.seed): line for line in lines}.values()
    huge = {"logit_r2": -1.6e48, "nll": 9e23}
    append(
        folder / "results.jsonl",
        [replace(head, evaluation="test", metric=m, value=v) for head in heads for m, v in huge.items()],
    )
    page = write_report(folder).read_text(encoding="utf-8")
    assert "−1.6e48" in page
    assert "9.0e23" in page


def test_draws_beside_data_have_a_table_of_their_own(build: Build) -> None:
    folder = build(samplers=("real", "uniform"), seeds=(0, 1))
    assert "How the draws lie beside the data" not in write_report(folder).read_text(encoding="utf-8")
    heads = {(line.sampler, line.seed): line for line in read(folder / "results.jsonl")}.values()
    values = {"coverage": 0.25, "density": 0.5, "nearest_pixels": 0.125, "nearest_pixels_test": 0.0625}
    lines = [
        replace(head, evaluation="own_draws", metric=name, value=value + head.seed / 10)
        for head in heads
        for name, value in values.items()
    ]
    append(folder / "results.jsonl", lines)
    about = {"n": 300, "k": 5, "training_rows": 1437, "reasons": {"frechet_distance": "a <reason>"}}
    (folder / "runs" / "real-s0" / "quality.json").write_text(json.dumps(about))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    table = next(table for table in page.tables if "coverage, %" in table[0])
    assert table[0] == ["sampler", "density", "coverage, %", "nearest in pixels"]
    shown = {named(row[0], Summary(lines)): row[1:] for row in table[1:]}
    assert shown["real"] == shown["uniform"] == ["0.550 ±0.071", "30.0 ±7.1", "0.175 ±0.071"]
    diagnostics = next(table for table in page.tables if "class entropy" in table[0])
    assert not {"coverage", "density", "nearest pixels test"} & set(diagnostics[0])
    assert "300 draws beside as many held-out rows, and 1437 training rows" in page.seen
    assert "the 5th nearest row" in page.seen
    assert "Held-out rows lie 0.113 in pixels from their nearest training row" in page.seen
    assert "Left out: a <reason>." in page.seen
