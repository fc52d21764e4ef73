"""What a comparison writes: tables and pictures of the numbers, and a page that stands alone."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import evaluated, make_run
from plotly.offline import get_plotlyjs
from runners import wait_until

from ntm.comparison.grouping import Comparison
from ntm.comparison.grouping import compare as compare_all
from ntm.comparison.page import Section
from ntm.comparison.page import page as page_of
from ntm.comparison.report import (
    curve_panels,
    point_maps,
    point_panels,
    readable_tables,
    seed_panels,
    write_comparisons,
)
from ntm.views.figures import Curve, Panel

HOSTILE = "<script>alert(1)<script> & $x$ | %{y}"


def compare(root: Path) -> Comparison:
    (comparison,) = compare_all(root)
    return comparison


def write_comparison(comparison: Comparison, *arguments: str) -> Path:
    return write_comparisons([comparison], *arguments)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each by its path."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag and text.strip()]


def make_runs(root: Path) -> Path:
    for name, wrong in ((HOSTILE, 20.0), ("ntm", 2.0)):
        for seed in range(2):
            make_run(
                root / name / f"seed_{seed}",
                {100: wrong + seed, 200: wrong - seed, 300: 0.5 * seed},
                [evaluated(10, wrong + seed, 0.5), evaluated(400, wrong, 0.25, 500)],
                config={"model": {"name": name}},
                sequences_to_solve=300,
            )
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_runs(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a comparison, to be read only."""
    return write_comparison(compare(make_runs(tmp_path_factory.mktemp("runs"))))


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    text = (written / "report.html").read_text()
    library = get_plotlyjs()
    assert text.count(library) == 1
    return Page(text.replace(library, ""))


def data(page: Page) -> dict[str, Any]:
    inside = [text for tag, text in page.texts if tag == "script"]
    return json.loads(next(text for text in inside if text.startswith("{")))


def test_every_file_is_there(written):
    assert written.name == "comparison"
    assert {path.name for path in written.iterdir()} == {
        "comparison.json",
        "comparison.md",
        "report.html",
        *(f"{name}.csv" for name in ("groups", "runs", "points", "differences", "curves")),
        *(f"{name}.{end}" for name in ("curves", "seeds", "points") for end in ("png", "svg")),
    }
    assert len(list((written.parent / "ntm" / "mean").iterdir())) == 1


def test_again_gives_the_same_bytes(root):
    folder = write_comparison(compare(root))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_comparison(compare(root))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(list((root / "ntm" / "mean").iterdir())) == 1


def test_csv_and_json_hold_the_same_numbers(written):
    told = json.loads((written / "comparison.json").read_text())
    assert told["bootstrap"] == {"resamplings": 10_000, "confidence": 0.95, "seed": 0}
    for name in ("groups", "runs", "points", "differences"):
        with open(written / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        told_rows = [
            {key: "" if value is None else str(value) for key, value in row.items()}
            for row in told["tasks"]["copy"][name]
        ]
        assert rows == told_rows
        assert rows


def test_the_markdown_is_tables_of_as_many_cells(written):
    text = (written / "comparison.md").read_text()
    assert HOSTILE not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "| ntm | 2 of 2 | 34–100 % | 300 | 300 to 300 | 300 |" in text
    assert "10,000 times" in text
    assert "seed 0" in text
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (written / name).is_file()


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0, 2.0, 3.0], "2.0 ± 1.0"),
        ([0.01, 0.01, 0.01], "0.01 ± 0"),
        ([0.0, 0.0], "0 ± 0"),
        ([12.0, 1212.0], "612 ± 849"),
        ([0.001, 0.002], "0.00150 ± 0.00071"),
        ([7.0], "7"),
    ],
    ids=str,
)
def test_spreads_are_readable(values, shown, tmp_path):
    for seed, value in enumerate(values):
        made = tmp_path / "ntm" / f"seed_{seed}"
        make_run(made, {100: 1.0}, wrong_bits_per_sequence=value)
    models = readable_tables(compare(tmp_path))[0]
    assert models.rows[0][models.headings.index("wrong bits")] == shown


def test_the_page_loads_nothing(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed")
        assert not {"src", "href", "srcset", "action", "background"} & set(attributes)
    own = "".join(text for _, text in page.texts)
    assert "://" not in own
    assert "@import" not in own
    assert "url(" not in own


def test_the_page_may_run_its_own_scripts_and_reach_nobody():
    """As a browser reads it: by the hash of what stands between the tags."""
    page = Page(page_of("t", "mean", [Section("", [], [], [], [])]))
    (policy,) = (
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["form-action"] == rules["base-uri"] == "'none'"
    assert "connect-src" not in rules  # so the default holds
    assert "unsafe" not in rules["script-src"]
    run = [text for tag, text in page.texts if tag == "script" and not text.startswith("{")]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert len(hashes) == 2
    assert set(rules["script-src"].split()) == {f"'sha256-{digest}'" for digest in hashes}


def test_names_are_text_on_the_page(page):
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert page.text("h1") == [f"Comparison of {HOSTILE}; ntm"]
    assert HOSTILE in page.text("td")
    # Plotly shows names as its own kind of markup.
    names = {line["name"] for chart in data(page)["charts"] for line in chart["lines"]}
    assert not any("<" in name for name in names)
    assert any(name.startswith("&lt;script&gt;alert(1)") for name in names)


def test_the_name_of_a_run_cannot_leave_the_data():
    x = np.ones(1)
    curve = Curve("ntm", 0, 0, x, x, run="<!--<script>")
    text = page_of("t", "mean", [Section("", [], [], [Panel("", "", "", "log", [curve])], [])])
    parsed = Page(text.replace(get_plotlyjs(), ""))
    inside = next(text for tag, text in parsed.texts if tag == "script" and text.startswith("{"))
    assert "<" not in inside
    assert data(parsed)["charts"][0]["lines"][0]["key"] == "0/0/<!--<script>"
    assert "0/0/<!--<script>" in [a.get("data-key") for _, a in parsed.elements]


def test_the_page_has_the_curves_of_every_seed_and_their_mean(page):
    charts = data(page)["charts"]
    titles = [chart["title"] for chart in charts]
    assert titles[:4] == [
        "training: wrong bits per sequence",
        "validation: wrong bits per sequence",
        "training: loss",
        "validation: loss",
    ]
    lines = {line["key"]: line for line in charts[1]["lines"]}
    assert set(lines) == {"0/0/", "0/0/seed_0", "0/0/seed_1", "0/1/", "0/1/seed_0", "0/1/seed_1"}
    assert lines["0/1/seed_1"]["x"] == [100, 200, 300]
    assert lines["0/1/seed_1"]["y"] == [3.0, 1.0, 0.5]
    assert lines["0/1/"]["y"] == [2.5, 1.5, 0.25]
    spread = np.std([2.0, 3.0], ddof=1)
    assert lines["0/1/"]["upper"][0] == pytest.approx(2.5 + spread, abs=1e-4)
    assert charts[4]["marked"] == [1, 20]


@pytest.mark.pages
def test_a_chart_is_drawn_when_it_comes_into_view_and_all_are_for_a_printer(page, written, opened):
    """As they stand: a switch that was turned before counts for what comes later."""
    charts = "[...document.querySelectorAll('.chart')]"
    drawn = f"{charts}.map(chart => chart.querySelector('.main-svg') !== null)"
    tab = opened(written / "report.html")
    wait_until(tab, f"{drawn}[0]")
    assert not all(tab.evaluate(drawn))
    tab.uncheck("[data-key='0/0/']")
    tab.evaluate(f"{charts}.at(-1).scrollIntoView()")
    wait_until(tab, f"{drawn}.at(-1)")
    thick = f"{charts}.map(chart => chart.data.filter(one => one.line.width === 2.5).length)"
    assert set(tab.evaluate(thick)[:2]) == {1}  # of two groups
    tab.check("[data-key='0/0/']")
    assert set(tab.evaluate(thick)[:2]) == {2}

    printed = opened(written / "report.html")
    wait_until(printed, f"{drawn}[0]")
    assert not all(printed.evaluate(drawn))
    printed.evaluate("dispatchEvent(new Event('beforeprint'))")  # as a browser says it
    assert printed.evaluate(drawn) == [True] * len(data(page)["charts"])


def test_every_line_of_the_page_has_a_switch(page):
    switches = {a["data-key"] for tag, a in page.elements if "data-key" in a}
    assert switches == {line["key"] for chart in data(page)["charts"] for line in chart["lines"]}


def test_tables_of_the_page_are_those_of_the_markdown(page, written):
    rows = (written / "comparison.md").read_text().splitlines()
    numbers = sum(line.startswith("|") and not line.startswith("|---") for line in rows)
    assert sum(tag == "tr" for tag, _ in page.elements) == numbers


def test_median_and_quartiles_are_drawn_when_asked_for(tmp_path):
    for seed, wrong in enumerate((1.0, 2.0, 9.0)):
        lengths = [evaluated(10, wrong, 1.0), evaluated(20, wrong, 1.0)]
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: wrong}, lengths)
    comparison = compare(tmp_path)
    (curve,) = curve_panels(comparison, "median")[1].curves
    assert (curve.lower[0], curve.y[0], curve.upper[0]) == (1.5, 2.0, 5.5)
    (mean,) = curve_panels(comparison, "mean")[1].curves
    assert mean.y[0] == 4.0
    line = point_panels(comparison, "median")[0].curves[0]
    assert (line.lower[0], line.y[0], line.upper[0]) == (1.5, 2.0, 5.5)


def test_unfinished_runs_are_drawn_and_marked(root):
    ntm = {"model": {"name": "ntm"}}
    made = root / "ntm" / "seed_2"
    make_run(made, {100: 5.0, 200: 5.0}, config=ntm, status="interrupted")
    comparison = compare(root)
    thick = next(c for c in curve_panels(comparison, "mean")[1].curves if "ntm" in c.name)
    assert thick.thin_from == 200
    broken = [c.run for c in seed_panels(comparison)[1].curves if c.broken_off]
    assert broken == ["seed_2"]


def test_memory_sizes_are_lines_of_their_own(root):
    wrong, exact = point_panels(compare(root), "mean")
    lines = [c for c in wrong.curves if c.weight == "thick" and "ntm" in c.name]
    assert [(c.name, c.x.tolist(), c.y.tolist()) for c in lines] == [
        ("ntm, memory 128", [10.0], [2.5]),
        ("ntm, memory 500", [400.0], [2.0]),
    ]
    assert wrong.marked == exact.marked == (1, 20)
    assert wrong.log_x


def test_runs_that_were_not_evaluated_have_no_length_figure(root):
    folder = write_comparison(compare(root))
    assert (folder / "points.png").is_file()
    for path in root.glob("*/seed_*/eval/lengths.csv"):
        path.unlink()
    write_comparison(compare(root))
    assert not (folder / "points.png").exists()
    assert not (folder / "points.svg").exists()
    assert len(data(Page((folder / "report.html").read_text()))["charts"]) == 4


def make_grid(root: Path) -> Path:
    """Two numbers: a trained range of length 1 to 10 and repeats 1 to 10, three points."""
    for seed in range(2):
        stages = [{"ranges": {"length": [1, 10], "repeats": [1, 10]}, "sequences": 1}]
        folder = make_run(
            root / "ntm" / f"seed_{seed}",
            {100: 2.0},
            config={"task": {"name": "repeat_copy"}},
            stages=stages,
        )
        (folder / "eval").mkdir()
        (folder / "eval" / "results.csv").write_text(
            "length,repeats,kind,memory_size,checkpoint,sequences,wrong_bits_per_sequence,"
            "wrong_bits_sd,bits_per_sequence,bits_above_optimum,accuracy,exact\n"
            f"5,10,drawn,128,best,100,{seed},0,1,,1,1\n"
            f"20,10,drawn,128,best,100,{10 + seed},0,1,,1,1\n"
            f"5,20,drawn,128,best,100,{200 + seed},0,1,,1,1\n"
        )
    return root


def test_two_numbers_are_a_heat_map(tmp_path):
    comparison = compare(make_grid(tmp_path))
    (drawn,) = point_maps(comparison, "mean")
    assert (drawn.x_name, drawn.x, drawn.y_name, drawn.y) == (
        "repeats",
        [10, 20],
        "length",
        [5, 20],
    )
    np.testing.assert_equal(drawn.values, [[0.5, 200.5], [10.5, np.nan]])
    assert drawn.marked == ((1, 10), (1, 10))
    assert point_panels(comparison, "mean") == []
    folder = write_comparison(comparison)
    assert (folder / "points.png").stat().st_size > 5000
    page = Page((folder / "report.html").read_text().replace(get_plotlyjs(), ""))
    (chart,) = [chart for chart in data(page)["charts"] if "values" in chart]
    assert chart["values"] == [[0.5, 200.5], [10.5, None]]


def test_kinds_of_sequence_are_a_table_of_their_own(tmp_path):
    for seed, exact in ((0, 1.0), (1, 0.25)):
        kinds = {"drawn": [evaluated(10, 0.0, 1.0)], "zeros": [evaluated(10, 8 - 8 * exact, exact)]}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 1.0}, kinds=kinds)
    comparison = compare(tmp_path)
    (table,) = [t for t in readable_tables(comparison) if t.title == "Kinds of sequence"]
    assert table.headings == ["group", "kind", "memory", "length 10"]
    assert [row[1:] for row in table.rows] == [
        ["drawn", "128", "100 (2 of 2)"],
        ["zeros", "128", "62.5 (1 of 2)"],
        ["every kind", "128", "81.2 (1 of 2)"],
    ]
    folder = write_comparison(comparison)
    with open(folder / "kinds.csv", newline="") as file:
        assert [row["exact_mean"] for row in csv.DictReader(file)] == ["1.0", "0.625", "0.8125"]


@pytest.mark.parametrize(
    ("shares", "shown"),
    [
        ([0.9996], "99.96"),
        ([1.0], "100"),
        ([1.0, 1.0], "100 ± 0"),
        ([0.9996, 0.9996], "99.96 ± 0"),
        ([1.0, 0.9996], "99.980 ± 0.028"),
        ([1.0, 0.99996], "99.9980 ± 0.0028"),
        ([1.0, 0.0], "50 ± 71"),
    ],
    ids=str,
)
def test_an_exact_share_reads_100_only_when_it_is(tmp_path, shares, shown):
    for seed, exact in enumerate(shares):
        kinds = {"drawn": [evaluated(10, 8 - 8 * exact, exact)]}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 1.0}, kinds=kinds)
    (table,) = [t for t in readable_tables(compare(tmp_path)) if "exact, %" in t.headings]
    assert table.rows[0][table.headings.index("exact, %")] == shown


def test_several_tasks_are_files_and_sections_of_their_own(root):
    make_grid(root / "grid")
    folder = write_comparisons(compare_all(root))
    names = {path.name for path in folder.iterdir()}
    assert {"copy_groups.csv", "repeat_copy_points.png", "report.html"} <= names
    assert "groups.csv" not in names
    page = Page((folder / "report.html").read_text().replace(get_plotlyjs(), ""))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert page.text("h1") == ["Comparison over copy, repeat_copy", "copy", "repeat_copy"]
    switches = [a["data-key"] for _, a in page.elements if "data-key" in a]
    assert len(switches) == len(set(switches))
    assert {key.split("/")[0] for key in switches} == {"0", "1"}
    # One task again leaves nothing of the other.
    write_comparisons(compare_all(root)[:1])
    assert not [path.name for path in folder.iterdir() if "repeat" in path.name]


def test_one_model_with_one_seed_and_nothing_else(tmp_path):
    make_run(tmp_path / "ntm" / "seed_0", {100: 1.0})
    folder = write_comparison(compare(tmp_path))
    assert (folder / "differences.csv").read_text() == ""
    assert "Differences" not in (folder / "comparison.md").read_text()


def test_models_without_any_validation_yet(tmp_path):
    make_run(tmp_path / "ntm" / "seed_0", {}, status="running")
    folder = write_comparison(compare(tmp_path), "median")
    assert (folder / "report.html").is_file()


class TestCommand:
    def test_a_groups_name_is_whole_in_a_narrow_terminal(
        self, tmp_path, run_command, capsys, monkeypatch
    ):
        monkeypatch.setenv("COLUMNS", "60")
        for rate in (1e-3, 1e-4):
            config = {"optimizer": {"lr": rate}}
            make_run(tmp_path / "a" / f"ntm_{rate}" / "seed_0", {100: 1.0}, config=config)
        assert run_command("run_compare", f"runs={tmp_path / 'a'}", "by=[model,optimizer.lr]") == 0
        cells = [
            line.split("│")[1].strip()
            for line in capsys.readouterr().out.splitlines()
            if "│" in line
        ]
        assert not any("…" in cell for cell in cells)
        for rate in ("0.001", "0.0001"):
            assert f"ntm,lr={rate}" in "".join(cells).replace(" ", "")

    def test_prints_the_table_and_the_ways_to_look(self, root, run_command, capsys):
        make_run(root / "ntm" / "seed_2", {100: 5.0}, status="interrupted", reason="SIGTERM")
        assert run_command("run_compare", f"runs={root}") == 0
        out = capsys.readouterr().out
        assert "2 of 2" in out
        assert "note: ntm/seed_2: interrupted (SIGTERM), 100 sequences so far" in out
        assert str(root / "comparison" / "report.html") in out
        assert f"tensorboard --logdir {root}" in out
        assert "/#custom_scalars" in out

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            ([], ["runs", "outputs/copy"]),
            (["runs=nowhere"], ["runs", "nowhere", "does not exist"]),
            (["runs=."], ["runs", "config.yaml"]),
            (["runs=ROOT", "statistic=mode"], ["statistic", "mean or median", "mode"]),
            (["runs=ROOT", "stat=mean"], ["stat", "statistic"]),
            (["runs=ROOT/ntm/seed_0"], ["runs", "the run folder", "ntm"]),
            (["runs=[ROOT,nowhere]"], ["runs", "nowhere", "does not exist"]),
            (["runs=[]"], ["runs", "one folder"]),
            (["runs=[3]"], ["runs", "[3]"]),
            (["runs=ROOT", "by=sed"], ["by", "'sed'", "seed"]),
            (["runs=ROOT", "by={a: 1}"], ["by", "keys of run_train.py"]),
        ],
        ids=str,
    )
    def test_a_wrong_command_is_one_line_and_writes_nothing(
        self, overrides, words, tmp_path_factory, run_command, capsys
    ):
        root = tmp_path_factory.mktemp("runs")
        make_run(root / "ntm" / "seed_0", {100: 1.0})
        before = sorted(root.rglob("*"))
        given = [override.replace("ROOT", str(root)) for override in overrides]
        assert run_command("run_compare", *given) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "Traceback" not in line
        for word in words:
            assert word in line
        assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("key", ["wrong_bits_per_sequence", "bits_per_sequence"])
def test_a_result_that_is_no_number_is_told_and_the_rest_is_compared(key, tmp_path):
    strange = {1: math.inf, 2: -math.inf, 3: math.nan, 4: None}
    for seed in range(6):
        more = {key: strange[seed]} if seed in strange else {}
        make_run(tmp_path / "ntm" / f"seed_{seed}", {100: 5.0, 200: 1.0}, **more)
    make_run(tmp_path / "lstm" / "seed_0", {100: 5.0}, config={"model": {"name": "lstm"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = write_comparisons(compare_all(tmp_path))
    told = json.loads((folder / "comparison.json").read_text())
    runs = {run["run"]: run[key] for run in told["tasks"]["copy"]["runs"]}
    text = (folder / "comparison.md").read_text()
    for seed, value in strange.items():
        run = f"ntm/seed_{seed}"
        assert runs[run] == (None if value is None else str(value))
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {run}")]
        assert ("–" if value is None else str(value).replace("-", "−")) in line
    assert runs["ntm/seed_0"] == runs["ntm/seed_5"] == runs["lstm/seed_0"]
    assert (folder / "report.html").stat().st_size > 1000
