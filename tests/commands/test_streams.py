"""Tables in a terminal that is narrower than they are."""

from __future__ import annotations

import pytest
from rich.table import Table

from ntm.commands.streams import show

HEADINGS = ("length", "sequences", "wrong bits per sequence", "share")
VALUES = [("120", "1,000", "1.25 ± 0.5", "100%"), ("20", "200", "12.5 ± 0.5", "[99]%")]


def table(no_wrap: bool) -> Table:
    made = Table(title="copy, [bold] as it is")
    for heading in HEADINGS:
        made.add_column(heading, justify="right", no_wrap=no_wrap)
    for row in VALUES:
        made.add_row(*row)
    return made


@pytest.mark.parametrize("no_wrap", [False, True])
@pytest.mark.parametrize("columns", [10, 30, 40, 60, 200])
def test_every_value_is_shown_whole(columns, no_wrap, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    show(table(no_wrap))
    lines = capsys.readouterr().out.splitlines()
    for row in VALUES:
        (line,) = [line for line in lines if all(value in line for value in row)]
        assert [cell.strip() for cell in line.strip("│ ").split("│")] == list(row)
    # Headings are folded, none of their letters is lost.
    top = "".join(line for line in lines if "┃" in line)
    for letter in set("".join(HEADINGS)) - {" "}:
        assert top.count(letter) == "".join(HEADINGS).count(letter)
    assert "…" not in "".join(lines)
