"""report.html: one file with tables and charts that opens without a server or a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ntm.views.figures import COLOURS, DASHES, Curve, Map, Panel, log_ticks
from ntm.views.standalone import policy, script_json

PLOTLY_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


class Tabular(Protocol):
    """What the page asks of a table."""

    @property
    def title(self) -> str:
        """Its heading."""

    @property
    def caption(self) -> str:
        """What stands below it; may be empty."""

    @property
    def headings(self) -> list[str]:
        """One a column."""

    @property
    def rows(self) -> list[list[str]]:
        """Cells as text."""


class Section(NamedTuple):
    """What the page says of one task."""

    heading: str
    """Empty where the page is of one task alone."""
    notes: Sequence[str]
    """What a reader should know of single runs."""
    tables: Sequence[Tabular]
    """In their order; the first stands above the charts."""
    panels: Sequence[Panel]
    """Charts against sequences seen, then those against the task's number."""
    maps: Sequence[Map]
    """Of tasks with two numbers."""


def page(title: str, shown: str, sections: Sequence[Section]) -> str:
    """The whole file as text. Everything given is escaped here.

    Args:
        title: Of the page.
        shown: What the thick lines and bands are.
        sections: One a task.

    """
    from plotly.offline import get_plotlyjs

    charts: list[dict[str, Any]] = []
    body = [f"<h1>{html.escape(title)}</h1>"]
    if len(sections) > 1:
        links = (f'<a href="#task{n}">{html.escape(s.heading)}</a>' for n, s in enumerate(sections))
        body.append(f"<p>{' · '.join(links)}</p>")
    body.append(
        f"<p>Thick: {html.escape(shown)}. Thin: single seeds. Drag to zoom, double-click to zoom "
        "out, point at a line for its values.</p>"
    )
    for place, section in enumerate(sections):
        drawn = [_chart(panel, place) for panel in section.panels] + list(map(_map, section.maps))
        boxes = range(len(charts), len(charts) + len(drawn))
        charts += drawn
        body += _body(section, place, boxes)
    plotly = get_plotlyjs()
    return TEMPLATE.format(
        policy=policy(plotly, SCRIPT),
        title=html.escape(title),
        style=STYLE,
        body="\n".join(body),
        axes=AXES,
        plotly=plotly,
        data=script_json({"charts": charts}),
        script=SCRIPT,
    )


def _body(section: Section, place: int, boxes: range) -> list[str]:
    lines: dict[str, Curve] = {}
    for panel in section.panels:
        for curve in panel.curves:
            lines.setdefault(_key(curve, place), curve)
    drawn = "".join(f'<div class="chart" id="chart{box}"></div>' for box in boxes)
    heading = f'<h1 id="task{place}">{html.escape(section.heading)}</h1>'
    return [
        *([heading] if section.heading else []),
        *map(_table, section.tables[:1]),
        _notes(section.notes),
        "<h2>Curves</h2>",
        _switches(lines),
        f'<div class="charts">{drawn}</div>',
        *map(_table, section.tables[1:]),
    ]


def _chart(panel: Panel, place: int) -> dict[str, Any]:
    return {
        "title": html.escape(panel.title),
        "x": html.escape(panel.x_name),
        "y": html.escape(panel.y_name),
        "scale": panel.scale,
        "bound": panel.bound,
        "logX": panel.log_x,
        "ticks": log_ticks(panel),
        "marked": panel.marked,
        "lines": [_line(curve, place) for curve in panel.curves],
    }


def _map(one: Map) -> dict[str, Any]:
    return {
        "title": html.escape(one.title),
        "x": html.escape(one.x_name),
        "y": html.escape(one.y_name),
        "name": html.escape(one.value_name),
        "bound": one.bound,
        "columns": [str(x) for x in one.x],
        "rows": [str(y) for y in one.y],
        "values": [_numbers(row) for row in one.values],
        "lines": [],
    }


def _line(curve: Curve, place: int) -> dict[str, Any]:
    return {
        "key": _key(curve, place),
        "name": html.escape(f"{curve.name}, {curve.run}" if curve.run else curve.name),
        "colour": COLOURS[curve.colour % len(COLOURS)],
        "dash": PLOTLY_DASHES[DASHES[curve.dashes % len(DASHES)]],
        "thick": curve.weight == "thick",
        "thinFrom": curve.thin_from,
        "brokenOff": curve.broken_off,
        "x": _numbers(curve.x),
        "y": _numbers(curve.y),
        "lower": _numbers(curve.lower),
        "upper": _numbers(curve.upper),
    }


def _key(curve: Curve, place: int) -> str:
    """What a switch turns on and off: a group's thick lines, or one run."""
    return f"{place}/{curve.colour}/{curve.run}"


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    if values is None:
        return None
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _switches(lines: dict[str, Curve]) -> str:
    """Checkboxes, a row a group."""
    by_group: dict[int, list[str]] = {}
    for key, curve in sorted(lines.items(), key=lambda item: item[1].colour):
        colour = COLOURS[curve.colour % len(COLOURS)]
        label = html.escape(curve.run or curve.name)
        strong = f'<b style="color:{colour}">{label}</b>' if not curve.run else label
        box = f'<input type="checkbox" checked data-key="{html.escape(key)}">'
        by_group.setdefault(curve.colour, []).append(f"<label>{box} {strong}</label>")
    rows = [f"<div>{' '.join(boxes)}</div>" for boxes in by_group.values()]
    return f'<div class="switches">{"".join(rows)}</div>'


def _table(table: Tabular) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.headings)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in table.rows
    )
    caption = f"<p>{html.escape(table.caption)}</p>" if table.caption else ""
    return (
        f"<h2>{html.escape(table.title)}</h2>\n<div class='table'><table><thead><tr>{head}</tr>"
        f"</thead>\n<tbody>{rows}</tbody></table></div>\n{caption}"
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>"


TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{axes}
{body}
<script>{plotly}</script>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""

AXES = """<div class="axes">
<label><input type="checkbox" checked id="seeds"> single seeds</label>
<label><input type="checkbox" checked id="log"> logarithmic axes</label>
</div>"""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1280px; margin: 24px auto;
  padding: 0 20px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin: 28px 0 8px; }
p { color: #555; margin: 8px 0; max-width: 900px; }
.table { overflow-x: auto; content-visibility: auto; contain-intrinsic-size: auto 400px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #888; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.axes, .switches { background: #f6f6f6; padding: 6px 10px; border: 1px solid #ddd; }
.axes { position: sticky; top: 0; z-index: 5; }
.switches { max-height: 30vh; overflow-y: auto; }
.axes label, .switches label { display: inline-block; margin-right: 10px; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); }
.chart { height: 400px; min-width: 0; }
"""

SCRIPT = """
const report = JSON.parse(document.getElementById("data").textContent);
const switches = [...document.querySelectorAll("[data-key]")];
const logBox = document.getElementById("log"), seedsBox = document.getElementById("seeds");
const TICKS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100,
  200, 500, 1000, 2000, 5000, 10000];

const NUMBER = new Intl.NumberFormat("en");  // made once: one a number takes longer than the chart
const BUTTONS = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "toImage"]];

// Some metrics reach 0, which a logarithm does not: below the bound the axis is linear.
function place(value, chart) {
  if (value === null || !logBox.checked || chart.scale !== "to 0") return value;
  return bend(value, chart.bound);
}

function bend(value, bound) {
  return value < bound ? Math.max(value, 0) / bound : 1 + Math.log10(value / bound);
}

function heat(chart) {
  const bent = chart.values.map(row => row.map(v => v === null ? null : bend(v, chart.bound)));
  const text = chart.values.map(row => row.map(v => v === null ? "" : Number(v.toPrecision(3))));
  return [{type: "heatmap", x: chart.columns, y: chart.rows, z: bent, text, texttemplate: "%{text}",
    hovertemplate: `${chart.x} %{x}<br>${chart.y} %{y}<br>${chart.name}: %{text}<extra></extra>`,
    zmin: 0, zmax: 5, colorscale: "Cividis", showscale: false, xgap: 2, ygap: 2}];
}

function heatLayout(chart) {
  return {title: {text: chart.title + ": " + chart.name, font: {size: 15}, x: 0.01,
      xanchor: "left"},
    xaxis: {title: {text: chart.x}, type: "category"},
    yaxis: {title: {text: chart.y}, type: "category"}, margin: {l: 64, r: 16, t: 44, b: 48}};
}

// Every line of its own has its price: thin ones that look alike are one, with gaps.
function join(found, alike, trace) {
  const key = JSON.stringify([trace.mode, trace.line, trace.marker]);
  const first = alike.get(key);
  if (first === undefined) {
    alike.set(key, trace);
    found.push(trace);
    return;
  }
  for (const part of ["x", "y", "text"]) {
    first[part].push(null);
    for (const one of trace[part]) first[part].push(one);
  }
}

function traces(chart, shown) {
  const found = [], alike = new Map();
  const least = Math.min(...chart.lines.map(l => Math.min(...l.y.filter(y => y > 0))));
  const low = y => logBox.checked && chart.scale === "log" ? Math.max(y, least / 2) : y;
  for (const line of chart.lines) {
    if (!shown.has(line.key)) continue;
    if (line.lower) {
      const at = line.x.map((x, i) => i).filter(i => line.lower[i] !== null);
      const back = [...at].reverse();
      found.push({
        x: [...at.map(i => line.x[i]), ...back.map(i => line.x[i])],
        y: [...at.map(i => place(low(line.lower[i]), chart)),
            ...back.map(i => place(line.upper[i], chart))],
        fill: "toself", fillcolor: line.colour + "2e", line: {width: 0}, mode: "lines",
        hoverinfo: "skip",
      });
    }
    const add = trace => line.thick ? found.push(trace) : join(found, alike, trace);
    const few = line.x.length <= 12;
    const text = i => `<b>${line.name}</b><br>${chart.x}: ${NUMBER.format(line.x[i])}`
      + `<br>${chart.y}: ${line.y[i] === null ? "" : Number(line.y[i].toPrecision(4))}`;
    const stretch = (at, width) => add({
      x: at.map(i => line.x[i]), y: at.map(i => place(line.y[i], chart)),
      mode: few ? "lines+markers" : "lines",
      line: {color: line.colour, dash: line.dash, width},
      marker: {size: line.thick ? 6 : 4}, opacity: line.thick ? 1 : 0.55,
      hoverinfo: "text", text: at.map(text),
    });
    const all = line.x.map((x, i) => i), end = line.thinFrom ?? Infinity;
    stretch(all.filter(i => line.x[i] <= end), line.thick ? 2.5 : 1);
    if (line.thinFrom !== null) stretch(all.filter(i => line.x[i] >= end), 1.2);
    if (line.brokenOff) {
      add({
        x: line.x.slice(-1), y: line.y.slice(-1).map(y => place(y, chart)),
        mode: "markers", marker: {symbol: "x", size: 9, color: line.colour},
        hoverinfo: "text", text: [`<b>${line.name}</b><br>unfinished`],
      });
    }
  }
  return found;
}

function layout(chart) {
  const yaxis = {title: {text: chart.y}, zeroline: false, rangemode: "tozero"};
  const shapes = [];
  if (chart.scale === "to 0" && logBox.checked) {
    const ticks = TICKS.filter(y => y === 0 || y >= chart.bound / 5);
    yaxis.tickvals = ticks.map(y => place(y, chart));
    yaxis.ticktext = ticks.map(String);
  }
  if (chart.scale === "log" && logBox.checked) {
    const ticks = TICKS.slice(1);
    Object.assign(yaxis, {type: "log", tickvals: ticks, ticktext: ticks.map(String)});
  }
  if (chart.scale === "share") Object.assign(yaxis, {tickformat: ".0%", range: [-0.03, 1.03]});
  if (chart.scale === "to 0") {
    const solved = place(chart.bound, chart);
    shapes.push({type: "line", xref: "paper", x0: 0, x1: 1, y0: solved, y1: solved,
      line: {color: "grey", width: 1, dash: "dot"}});
  }
  if (chart.marked) {
    shapes.push({type: "rect", yref: "paper", x0: chart.marked[0], x1: chart.marked[1], y0: 0,
      y1: 1, fillcolor: "grey", opacity: 0.15, line: {width: 0}, layer: "below",
      label: {text: "range in training", textposition: "top left"}});
  }
  const xaxis = {title: {text: chart.x}, zeroline: false};
  if (chart.logX && logBox.checked) {
    Object.assign(xaxis, {type: "log", tickvals: chart.ticks, ticktext: chart.ticks.map(String)});
  }
  return {title: {text: chart.title, font: {size: 15}, x: 0.01, xanchor: "left"},
    xaxis, yaxis, shapes, showlegend: false, hovermode: "closest",
    margin: {l: 64, r: 16, t: 44, b: 48}, uirevision: String(logBox.checked)};
}

const seen = new Set();  // charts that came into view; the others are not drawn yet

function draw(places) {
  const shown = new Set(switches.filter(box => box.checked).map(box => box.dataset.key)
    .filter(key => seedsBox.checked || key.endsWith("/")));
  const settings = {displaylogo: false, responsive: true, modeBarButtons: BUTTONS};
  for (const i of places) {
    const chart = report.charts[i];
    Plotly.react("chart" + i, chart.values ? heat(chart) : traces(chart, shown),
      chart.values ? heatLayout(chart) : layout(chart), settings);
  }
}

function see(boxes) {
  const fresh = boxes.map(box => Number(box.id.slice(5))).filter(i => !seen.has(i));
  fresh.forEach(i => seen.add(i));
  draw(fresh);
}

[...switches, logBox, seedsBox].forEach(box => box.addEventListener("change", () => draw(seen)));
const boxes = [...document.querySelectorAll(".chart")];
const watcher = new IntersectionObserver(
  entries => see(entries.filter(entry => entry.isIntersecting).map(entry => entry.target)),
  {rootMargin: "100px"});
boxes.forEach(box => watcher.observe(box));
addEventListener("beforeprint", () => see(boxes));
"""
