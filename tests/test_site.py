"""The documentation site: built without a warning, and held against the configurations."""

from __future__ import annotations

import html
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runners import ROOT

from ntm.commands import command, configuration

pytestmark = pytest.mark.pages
pytest.importorskip("sphinx")

DOCS = ROOT / "docs"
SIDEBAR = [
    "Start", "Concepts", "Settings", "How to", "Walkthrough", "Results", "What is promised",
    "What did not work", "API", "Contributing", "Changelog",
]  # fmt: skip


def run(*arguments: str | Path) -> tuple[int, str]:
    """Run Python: exit status, and all it said."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    status, said = run("-m", "sphinx", "-W", "--keep-going", DOCS, folder / "html")
    assert status == 0, said
    return folder / "html"


def test_the_sidebar_has_every_part_in_order(site):
    pages = re.findall(r'toctree-l1[^"]*"><a class="reference internal" href="([\w/.]+)">(.*?)<',
                       (site / "index.html").read_text())  # fmt: skip
    there = (ROOT / "notebooks/walkthrough.ipynb").exists()
    assert len(pages) == len(SIDEBAR) - (not there)
    titles = [title for page, title in pages if page != "walkthrough.html"]
    assert titles == [title for title in SIDEBAR if title != "Walkthrough"]


def rows(page: Path) -> list[list[str]]:
    """Cells of every table's rows, as text."""
    found = re.findall(r"<tr.*?>(.*?)</tr>", page.read_text(), re.DOTALL)
    cells = (re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in found)
    return [[html.unescape(re.sub("<.*?>", "", cell)).strip() for cell in row] for row in cells]


def composed() -> set[str]:
    """The keys that the commands really have, whatever is chosen of their groups."""
    configs = ROOT / "configs"
    groups = ("task", "model", "optimizer", "curriculum", "logger", "callbacks", "trainer")
    choices = [f"{group}={path.stem}" for group in groups for path in (configs / group).iterdir()]
    recipes = [
        [f"task={path.parent.name}", *given(path.stem)]
        for path in (configs / "recipe").glob("*/*.yaml")
    ]
    keys: set[str] = set()
    for overrides in [*([choice] for choice in choices), *recipes]:
        config = command.compose(configs, "train", overrides)
        keys |= set(configuration.flatten(configuration.plain(config)))
    for name in (path.stem for path in configs.glob("*.yaml")):
        config = command.compose(configs, name, [])
        keys |= set(configuration.flatten(configuration.plain(config)))
    return keys


def given(recipe: str) -> list[str]:
    optimizers = [path.stem for path in (ROOT / "configs/optimizer").iterdir()]
    optimizer = max((one for one in optimizers if recipe.endswith(f"_{one}")), key=len)
    return [f"model={recipe.removesuffix(f'_{optimizer}')}", f"optimizer={optimizer}"]


def test_every_key_there_is_has_its_meaning_in_settings(site):
    pages = ("index", "recipes", "experiments")
    found = [row for page in pages for row in rows(site / f"settings/{page}.html")]
    told = {row[0] for row in found if len(row) == 3 and row[2]}
    keys = composed() - {"logger"}  # where logger=none: a group without keys
    keys = {re.sub(r"^(curriculum\.grow\.start)\..*", r"\1", key) for key in keys}
    assert len(keys) > 100
    assert keys - told == set()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    return importlib.import_module("settings")


@pytest.mark.parametrize("key", ["train.yaml: seed", "copy.yaml: task.bits", "model.penalty.free"])
def test_a_key_without_a_comment_ends_the_build(settings, tmp_path, key):
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    places = {"seed": "train.yaml", "bits": "task/copy.yaml", "free": "recipe/copy/ntm_adamw.yaml"}
    name = key.split(".")[-1].split()[-1]
    file = configs / places[name]
    bare = re.sub(rf"(?m)^( *{name}: \S+) +#.*$", r"\1", file.read_text())
    assert bare != file.read_text()
    file.write_text(bare)
    with pytest.raises(settings.ExtensionError, match=rf"without a comment .*: .*{key}$"):
        settings.parts(configs)


def test_a_comment_of_several_lines_is_read_whole(settings, tmp_path):
    (tmp_path / "one.yaml").write_text(
        "# What it is\na: '#1'   # first\n          # second\n"
        "# of b\nb:       # has keys\n  c: [1, 2]\n"
    )
    head, keys = settings.read(tmp_path / "one.yaml")
    assert head == ["What it is"]
    assert keys == [("a", "'#1'", "first second"), ("b", None, "has keys"), ("b.c", "[1, 2]", "")]


def check_links(*places: Path) -> tuple[int, str]:
    return run(DOCS / "check_links.py", *places)


def test_every_link_is_good(site):
    status, said = check_links(site, *ROOT.glob("*.md"), DOCS)
    assert status == 0, said


def test_a_place_that_is_not_there_is_one_line(tmp_path):
    status, said = check_links(tmp_path / "html")
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"{tmp_path / 'html'} is not there")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/recipe.md"])
@pytest.mark.parametrize("target", ["nowhere.md", "#nowhere", "{docs}scaling.md#nowhere"])
def test_a_broken_link_in_markdown_is_found(tmp_path, page, target):
    for file in (*ROOT.glob("*.md"), ROOT / "LICENSE"):
        shutil.copy(file, tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    for folder in ("configs", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    places = (*tmp_path.glob("*.md"), tmp_path / "docs")
    assert check_links(*places)[0] == 0
    target = target.format(docs="" if "/" in page else "docs/")
    with (tmp_path / page).open("a") as file:
        file.write(f"\nSee [this]({target}).\n")
    status, said = check_links(*places)
    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith(f"{tmp_path / page}: links to {target}, ")


@pytest.mark.parametrize(
    ("page", "element", "complaint"),
    [
        ("howto/gpu.html", '<a href="../nowhere.html">', "which is not there"),
        ("index.html", '<img src="_images/nowhere.png">', "which is not there"),
        ("api/ntm.html", '<a href="machine.html#nowhere">', "where there is no such heading"),
        ("concepts.html", '<a href="#nowhere">', "where there is no such heading"),
        ("start.html", '<script src="https://example.org/x.js">', "loads https://example.org/x.js"),
        ("start.html", '<link href="//example.org/x.css">', "loads //example.org/x.css"),
        ("start.html", '<a href="https://example.org">', None),
    ],
)
def test_what_is_wrong_in_a_page_is_found(site, tmp_path, page, element, complaint):
    copy = shutil.copytree(site, tmp_path / "_site")
    with (copy / page).open("a") as file:
        file.write(element)
    status, said = check_links(copy)
    assert status == (complaint is not None), said
    if complaint:
        (line,) = said.splitlines()
        assert line.startswith(f"{copy / page}: ")
        assert complaint in line


def test_in_a_browser_no_page_asks_for_anything_outside_or_is_wider_than_a_phone(site, browser):
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    assert len(pages) > 30
    asked, said, wide = [], [], []
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda told: said.append(told.text) if told.type == "error" else None)
    for path in pages:
        tab.goto(path.as_uri())
        page = "document.documentElement"
        if tab.evaluate(f"{page}.scrollWidth > {page}.clientWidth"):
            wide.append(path.name)
    tab.goto((site / "concepts.html").as_uri())
    drawn = tab.evaluate("Array.from(document.querySelectorAll('math'), m => m.clientHeight)")
    tab.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    assert wide == []
    blocks = (DOCS / "concepts.md").read_text().count("$$") // 2
    assert sum(height > 15 for height in drawn) >= blocks > 5
