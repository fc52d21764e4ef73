"""The notebook runs from top to bottom, and what is kept in it is what it says when it runs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from runners import ROOT

NOTEBOOK = ROOT / "notebooks" / "walkthrough.ipynb"
MEASURED = "measured"
"""Tag of cells whose numbers follow a training or a clock: they round otherwise elsewhere."""

Cell = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kept() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def written(cell: Cell) -> str:
    """All text that a cell wrote to its outputs."""
    text = ""
    for output in cell["outputs"]:
        part = output.get("text") or output.get("data", {}).get("text/plain", "")
        text += "".join(part)
    return text


def forms(cell: Cell) -> list[str]:
    """What else than streams a cell's outputs are: pictures, text."""
    return sorted(form for output in cell["outputs"] for form in output.get("data", ()))


def test_every_cell_is_kept_as_run_in_order():
    counts = [cell["execution_count"] for cell in code_cells(kept())]
    assert counts == list(range(1, len(counts) + 1))


def test_it_keeps_pictures_and_is_small():
    pictures = [cell for cell in code_cells(kept()) if "image/png" in forms(cell)]
    assert len(pictures) > 12
    assert NOTEBOOK.stat().st_size < 2_000_000


def test_it_holds_no_trace_of_the_machine_that_ran_it():
    notebook = kept()
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
    for cell in code_cells(notebook):
        assert not re.search(r"0x[0-9a-f]{6}|site-packages|(?<!\w)/\w+/|\w:\\", written(cell))
        assert all(output.get("name") != "stderr" for output in cell["outputs"])


def test_its_links_lead_somewhere():
    prose = [cell for cell in kept()["cells"] if cell["cell_type"] == "markdown"]
    text = "".join("".join(cell["source"]) for cell in prose)
    links = re.findall(r"\]\(([^)#]+)", text)
    inside = [link for link in links if "://" not in link]
    assert len(inside) > 4
    assert [link for link in inside if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.pages
@pytest.mark.slow
def test_it_runs_and_says_what_is_kept():
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(fresh):
        cell["outputs"], cell["execution_count"] = [], None
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(fresh, timeout=1800, resources=where).execute()  # raises on an error
    for old, new in zip(code_cells(kept()), code_cells(fresh), strict=True):
        assert all(output.get("name") != "stderr" for output in new["outputs"]), written(new)
        assert forms(new) == forms(old), new["source"]
        if MEASURED not in new["metadata"].get("tags", ()):
            assert written(new) == written(old), new["source"]
