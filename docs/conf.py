"""The documentation site: python -m sphinx -W --keep-going docs docs/_build."""

import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))

project = "ntm"
author = "the authors of ntm"
html_title = "Neural Turing Machines"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "settings"]
exclude_patterns = ["_build", "results/*/notes.md"]
nitpicky = True
# What others document, on pages that are not at hand without a network; and code in docstrings
# that is no name of the interface.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|numpy|omegaconf|collections|typing|pathlib|Tensor|Optimizer)\b.*"),
    ("py:exc", ".*"),  # in docstrings by their bare names
    ("py:obj", ".*"),
]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
highlight_language = "none"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js = {}

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "params_style")]

PAGES = {"README": "start", "CONTRIBUTING": "contributing", "CHANGELOG": "changelog"}
"""Files beside docs/ that pages include, and those pages."""


def to_pages(text: str) -> str:
    """Markdown whose links to files beside docs/, and from them into it, go to pages."""
    for file, page in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)*{file}\.md", f"](/{page}.md", text)
    return text.replace("](docs/", "](/")


def bring_walkthrough() -> bool:
    """Copy the notebook in, for Sphinx reads its own folder alone; whether there is one."""
    notebook, copy = DOCS.parent / "notebooks" / "walkthrough.ipynb", DOCS / "walkthrough.ipynb"
    copy.unlink(missing_ok=True)
    if notebook.exists():
        copy.write_text(notebook.read_text().replace("](../docs/", "]("))
        shutil.copystat(notebook, copy)
    return copy.exists()


def setup(app) -> None:
    """What Sphinx calls."""
    there = bring_walkthrough()
    app.add_config_value("walkthrough", there, "env")  # pages are read again where it changes

    def read(*given) -> None:
        text = to_pages(given[-1][0])
        if there:
            text = text.replace(
                "`notebooks/walkthrough.ipynb`", "[Walkthrough](/walkthrough.ipynb)"
            )
        else:
            text = text.replace("\nwalkthrough\n", "\n")
        given[-1][0] = text

    def as_prose(_, what, *given) -> None:
        if what in ("attribute", "data", "property"):
            # What is before a colon in the first line would be a type to napoleon.
            given[-1][:0] = ["..", ""]

    app.connect("autodoc-process-docstring", as_prose, priority=400)
    app.connect("source-read", read)
    app.connect("include-read", read)
