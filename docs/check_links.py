"""Whether what the site and the Markdown files link to is there; asks no network.

python docs/check_links.py                       # docs/_build/html, and all Markdown
python docs/check_links.py README.md docs        # files, and folders with all that is in them

A page of the site may link to the network, but must not load anything from there.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).parent.parent
USUAL = (ROOT / "docs/_build/html", *ROOT.glob("*.md"), ROOT / "docs")
LOADED = {"audio", "embed", "iframe", "img", "link", "script", "source", "video"}
"""Elements that a browser fetches without being asked."""
READER = MarkdownIt("gfm-like", {"html": True}).use(anchors_plugin, max_level=6)


class Link(NamedTuple):
    """Where an element points to."""

    element: str
    target: str


class Page(HTMLParser):
    """What can be linked to in a page, and what it links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[Link] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src", "data") and value:
                self.links.append(Link(tag, value))


@cache
def page(path: Path) -> Page:
    """A page as a browser, or the code host, has it."""
    text = path.read_text()
    return Page(READER.render(text) if path.suffix == ".md" else text)


def broken(path: Path) -> list[str]:
    """What is wrong with the links of a page, a line each."""
    found = (_wrong(path, link) for link in page(path).links)
    return [f"{path}: {wrong}" for wrong in found if wrong]


def _wrong(path: Path, link: Link) -> str | None:
    target = urlsplit(link.target)
    if target.scheme == "data":
        return None
    if target.scheme or target.netloc:
        outside = path.suffix == ".html" and link.element in LOADED
        return f"loads {link.target} from outside" if outside else None
    goal = path.parent / unquote(target.path) if target.path else path
    if not goal.exists():
        return f"links to {link.target}, which is not there"
    fragment = unquote(target.fragment)
    if not fragment or goal.suffix not in (".html", ".md"):
        return None
    if fragment not in page(goal.resolve()).anchors:
        return f"links to {link.target}, where there is no such heading"
    return None


def pages(places: list[Path]) -> list[Path]:
    """Files that are named, and those in folders that are."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = (*place.rglob("*.html"), *place.rglob("*.md"))
            built = any(part.startswith("_") for part in place.parts)
            found += [p for p in inside if built or "_build" not in p.parts]
        else:
            found.append(place)
    return sorted(path for path in found if path.name != "notes.md")  # a part of another page


def main() -> None:
    """Check what is given, or all there is."""
    places = [Path(name) for name in sys.argv[1:]] or list(USUAL)
    for place in places:
        if not place.exists():
            print(
                f"{place} is not there; CONTRIBUTING.md says how to build the site", file=sys.stderr
            )
            sys.exit(2)
    given = pages(places)
    wrong = [line for path in given for line in broken(path)]
    print("\n".join(wrong) or f"every link of {len(given)} pages is good")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
