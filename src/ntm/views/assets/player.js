"use strict";
// Plays what the networks of machine.js do over one sequence, and takes the reader's own bits.

const page = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const T = page.inputs.length, COLOUR = "#0072B2", WRONG = "#D55E00";
const STAGES = ["former", "similarity", "content", "gated", "shifted", "sharpened"];
const WEIGHTS = [[0, "#f7fbff"], [0.1, "#c6dbef"], [0.5, "#4292c6"], [1, "#08306b"]];
const SETTINGS = {displayModeBar: false, responsive: true, doubleClick: "reset"};
const FONT = {family: "system-ui, sans-serif", size: 12, color: "#222"};
const fixed = (value, digits = 4) => value.toFixed(digits);
const largest = values => values.reduce((best, v, i) => v > values[best] ? i : best, 0);

let bits = [...page.bits], inputs, targets, step = 0, looked = null, playing = null;

const filled = (base, places) => base.map((row, t) =>
  row.map((value, c) => places[t][c] < 0 ? value : bits[places[t][c]]));

// ---- machines ------------------------------------------------------------------------------------

const headNames = network => {
  if (network.kind !== "ntm") return [];
  const {num_read_heads: R, num_write_heads: W} = network.layout;
  const name = (kind, of, h) => of > 1 ? `${kind} head ${h + 1}` : `${kind} head`;
  return [...Array(R).keys()].map(h => name("read", R, h))
    .concat([...Array(W).keys()].map(h => name("write", W, h)));
};

const machines = page.machines.map(({name, network}) => {
  const article = $("machine").content.firstElementChild.cloneNode(true);
  article.querySelector("h2").textContent = name;
  for (const part of article.querySelectorAll("[role=region]")) {
    part.setAttribute("aria-label", `${name}: ${part.getAttribute("aria-label")}`);
  }
  article.querySelector(".orders").parentElement.hidden = network.kind !== "ntm";
  $("machines").append(article);
  return {name, network, article, heads: headNames(network), find: s => article.querySelector(s)};
});
$("machines").classList.toggle("two", machines.length > 1);

// Locations that some head uses, in the order of the ring, with one more at either end.
function usedLocations({trace, network}) {
  const N = network.locations, used = [];
  for (let i = 0; i < N; i++) {
    if (trace.some(now => now.heads.some(head => head.sharpened[i] > 0.1))) used.push(i);
  }
  const all = [...Array(N).keys()];
  if (!used.length) return all;
  const gap = i => (used[(i + 1) % used.length] - used[i] + N - 1) % N + 1;
  const widest = largest(used.map((_, i) => gap(i)));
  const count = N - gap(widest) + 3, start = used[(widest + 1) % used.length] - 1;
  return count > N ? all : all.slice(0, count).map(i => (start + i + N) % N);
}

function compute() {
  inputs = filled(page.inputs, page.inputPlaces);
  targets = filled(page.targets, page.targetPlaces);
  for (const machine of machines) {
    machine.trace = run(machine.network, inputs);
    machine.places = machine.network.kind !== "ntm" ? []
      : $("all").checked ? [...Array(machine.network.locations).keys()] : usedLocations(machine);
    machine.wrong = machine.trace.map((now, t) => Array.from(now.logits,
      (logit, o) => page.mask[t] > 0 && (logit > 0) !== (targets[t][o] > 0.5)));
    const parts = machine.trace.flatMap(now => now.memory ?? []);
    machine.scale = parts.reduce((high, word) =>
      word.reduce((best, v) => Math.max(best, Math.abs(v)), high), 1e-6);
    drawTimeline(machine);
  }
}

// ---- charts --------------------------------------------------------------------------------------

const columnsOf = (rows, width, at) => [...Array(width).keys()].map(c => rows.map(row => at(row, c)));

function timelineRows(machine) {
  const {trace, network, places, wrong} = machine;
  const answer = (values, t) => page.mask[t] > 0 ? values : null;
  const rows = [
    {name: "input", unit: "channel", height: 9 * inputs[0].length,
      z: columnsOf(inputs, inputs[0].length, (row, c) => row[c])},
    {name: "target", unit: "bit", height: 9 * targets[0].length,
      z: columnsOf(targets, targets[0].length, (row, c) => row[c])
        .map(row => row.map((v, t) => answer(v, t)))},
    {name: "output", unit: "bit", height: 9 * targets[0].length,
      z: columnsOf(trace, targets[0].length, (now, c) => now.outputs[c])
        .map(row => row.map((v, t) => answer(v, t))),
      crosses: wrong.flatMap((row, t) => row.flatMap((bad, o) => bad ? [[t, o]] : []))},
  ];
  const R = network.kind === "ntm" ? network.layout.num_read_heads : 0;
  const order = machine.heads.map((_, h) => h).sort((a, b) => (a < R) - (b < R) || a - b);
  for (const h of order) {
    rows.push({name: machine.heads[h], unit: "location", height: 150, places: places.map(String),
      z: places.map(i => trace.map(now => now.heads[h].sharpened[i]))});
  }
  if (network.kind === "lstm") {
    trace[0].cells.forEach((_, k) => rows.push({name: `cells of layer ${k + 1}`, unit: "cell",
      height: 130, signed: 1, z: columnsOf(trace, trace[0].cells[k].length, (now, c) =>
        Math.tanh(now.cells[k][c]))}));
  }
  return rows;
}

function drawTimeline(machine) {
  const rows = timelineRows(machine), gap = 26, bottom = 40;
  const heights = rows.map(row => Math.max(row.height, 40));
  const whole = heights.reduce((a, b) => a + b + gap, 0);
  const layout = {height: whole + bottom + 8, margin: {l: 52, r: 8, t: 8, b: bottom}, font: FONT,
    hovermode: "closest", annotations: [], showlegend: false,
    xaxis: {title: {text: "step"}, range: [-0.5, T - 0.5], zeroline: false,
      anchor: `y${rows.length}`}};
  const data = [];
  let top = 1;
  rows.forEach((row, r) => {
    const axis = r ? `y${r + 1}` : "y", low = top - (heights[r] + gap) / whole;
    const low0 = Math.max(low, 0), high = low0 + heights[r] / whole;
    layout[r ? `yaxis${r + 1}` : "yaxis"] = {domain: [low0, high], autorange: "reversed",
      zeroline: false, title: {text: row.unit, font: {size: 11}}, type: row.places ? "category" : "-",
      nticks: 5, fixedrange: !row.places};
    layout.annotations.push({text: `<b>${row.name}</b>`, xref: "paper", yref: "paper", x: 0, y: high,
      xanchor: "left", yanchor: "bottom", showarrow: false, font: {size: 12}});
    const shown = row.signed ? "tanh of the cell" : row.places ? "weight" : "value";
    data.push({type: "heatmap", z: row.z, y: row.places, yaxis: axis, showscale: false,
      zmin: row.signed ? -1 : 0, zmax: 1, hoverongaps: false, meta: row.name,
      colorscale: row.signed ? "RdBu" : row.places ? WEIGHTS : "Cividis",
      hovertemplate: `step %{x}<br>${row.unit} %{y}<br>${shown} %{z:.4f}<extra>${row.name}</extra>`});
    if (row.crosses) {
      data.push({type: "scatter", mode: "markers", yaxis: axis, x: row.crosses.map(c => c[0]),
        y: row.crosses.map(c => c[1]), hoverinfo: "skip",
        marker: {symbol: "x", size: 7, color: WRONG, line: {color: "#fff", width: 1}}});
    }
    top = low;
  });
  const chart = machine.find(".timeline"), first = !chart.data;
  layout.shapes = cursor();
  const names = rows.map(row => row.name).join(", ");
  chart.setAttribute("aria-label", `${machine.name} over time: ${names}`);
  Plotly.react(chart, data, layout, SETTINGS);
  if (first) {
    chart.on("plotly_click", ({points: [point]}) => {
      if (point.data.meta === "input") toggle(page.inputPlaces[point.x][point.y]);
      go(point.x);
    });
  }
}

const cursor = () => [{type: "rect", xref: "x", yref: "paper", x0: step - 0.5, x1: step + 0.5,
  y0: 0, y1: 1, line: {color: WRONG, width: 2}, fillcolor: "rgba(0,0,0,0)"}];

// A row of the list of stages: words at the left, a chart at the right. Made once, then redrawn.
function stage(machine, name, title) {
  const list = machine.find(".stages");
  let row = list.querySelector(`[data-stage=${name}]`);
  if (!row) {
    const words = $("equations").content.querySelector(`[data-stage=${name}]`).cloneNode(true);
    words.removeAttribute("data-stage");
    words.className = "words";
    words.append(document.createElement("output"));
    row = document.createElement("div");
    row.className = "stage";
    row.dataset.stage = name;
    const chart = document.createElement("div");
    chart.className = "chart";
    chart.setAttribute("role", "img");
    row.append(words, chart);
    list.append(row);
  }
  row.querySelector(".chart").setAttribute("aria-label", title);
  return [row.querySelector(".chart"), row.querySelector("output")];
}

function drawStage(machine, head, name) {
  const values = head[name], at = largest(values), {places} = machine;
  const [chart, told] = stage(machine, name, `${name} at each location`);
  told.textContent = [
    {content: `β = ${fixed(head.strength)}`, gated: `g = ${fixed(head.gate)}`,
      shifted: `s = ${Array.from(head.shift, s => fixed(s)).join(", ")}`,
      sharpened: `γ = ${fixed(head.sharpening)}`}[name],
    `largest ${fixed(values[at])} at ${at}`].filter(Boolean).join("; ");
  const similar = name === "similarity";
  const x = places.map(String), y = places.map(i => values[i]);
  if (chart.places === places) return Plotly.restyle(chart, {y: [y]});
  chart.places = places;
  Plotly.newPlot(chart, [{type: "scatter", mode: "lines", x, y, fill: "tozeroy",
    line: {shape: "hvh", color: COLOUR, width: 1.5},
    hovertemplate: "location %{x}<br>%{y:.4f}<extra></extra>"}],
  {height: 92, margin: {l: 36, r: 8, t: 6, b: 20}, font: FONT, hovermode: "x",
    xaxis: {type: "category", nticks: 12},
    yaxis: {range: similar ? [-1.05, 1.05] : [-0.02, 1.05], fixedrange: true, nticks: 3}}, SETTINGS);
}

function drawWords(machine, name, words, title) {
  const {places, scale, network: {layout: {word_size: M}}} = machine;
  const [chart, told] = stage(machine, name, title);
  told.textContent = `red above 0, blue below, darkest at ${fixed(scale, 2)}`;
  const z = columnsOf(places, M, (i, m) => words(i)[m]), x = places.map(String);
  if (chart.places === places) return Plotly.restyle(chart, {z: [z]});
  chart.places = places;
  Plotly.newPlot(chart, [{type: "heatmap", z, x, zmin: -scale, zmax: scale, colorscale: "RdBu",
    showscale: false,
    hovertemplate: "location %{x}, element %{y}<br>%{z:.4f}<extra></extra>"}],
  {height: 150, margin: {l: 36, r: 8, t: 6, b: 34}, font: FONT,
    xaxis: {type: "category", nticks: 12, title: {text: "location", font: {size: 11}}},
    yaxis: {fixedrange: true, nticks: 5}}, SETTINGS);
}

function drawVectors(machine, head) {
  const shown = head.read ? {key: head.key, read: head.read}
    : {key: head.key, erase: head.erase, add: head.add};
  const names = Object.keys(shown);
  const [chart, told] = stage(machine, "vectors", `${names.join(", ")} vectors of the head`);
  const rows = names.map(name => Array.from(shown[name]));
  const high = rows.flat().reduce((best, v) => Math.max(best, Math.abs(v)), 1);
  told.textContent = `${names.join(", ")}; darkest at ${fixed(high, 2)}`;
  Plotly.react(chart, [{type: "heatmap", z: rows, y: names, zmin: -high, zmax: high,
    colorscale: "RdBu", ygap: 3, showscale: false,
    hovertemplate: "%{y}, element %{x}<br>%{z:.4f}<extra></extra>"}],
  {height: 40 + 24 * rows.length, margin: {l: 46, r: 8, t: 6, b: 20}, font: FONT,
    xaxis: {nticks: 10}, yaxis: {autorange: "reversed", fixedrange: true}}, SETTINGS);
}

function drawCells(machine) {
  const {cells} = machine.trace[step];
  const [chart] = stage(machine, "cells", "cell state of each layer");
  Plotly.react(chart, cells.map((layer, k) => ({type: "scatter", mode: "lines", y: Array.from(layer),
    name: `layer ${k + 1}`, line: {width: 1.2, dash: ["solid", "dash", "dot"][k % 3]}})),
  {height: 220, margin: {l: 40, r: 8, t: 6, b: 34}, font: FONT, legend: {orientation: "h", y: 1.15},
    xaxis: {title: {text: "cell"}}}, SETTINGS);
}

// ---- the chosen step -----------------------------------------------------------------------------

const text = (tag, content, attributes = {}) =>
  Object.assign(document.createElement(tag), {textContent: content}, attributes);

function fill(table, headings, rows) {
  const line = (cells, heading) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell, c) => text(heading || !c ? "th" : "td", cell,
      heading || !c ? {scope: heading ? "col" : "row"} : {})));
    return row;
  };
  table.tHead.replaceChildren(line(headings, true));
  table.tBodies[0].replaceChildren(...rows.map(cells => line(cells, false)));
}

function showOrders(machine, h) {
  const {heads} = machine.trace[step], S = (heads[0].shift.length - 1) / 2;
  const shifts = Array.from(heads[0].shift, (_, j) => `s(${j - S})`.replace("-", "−"));
  fill(machine.find(".orders"), ["head", "β", "g", ...shifts, "γ", "location", "weight"],
    heads.map((head, i) => {
      const at = largest(head.sharpened);
      return [machine.heads[i], fixed(head.strength), fixed(head.gate),
        ...Array.from(head.shift, s => fixed(s)), fixed(head.sharpening), String(at),
        fixed(head.sharpened[at])];
    }));
  machine.find(".orders").tBodies[0].rows[h].className = "looked";
}

function showAnswer(machine) {
  const {outputs} = machine.trace[step], due = page.mask[step] > 0;
  fill(machine.find(".answer"), ["bit", ...Array.from(outputs, (_, o) => String(o))], [
    ["target", ...Array.from(outputs, (_, o) => due ? String(targets[step][o]) : "–")],
    ["output", ...Array.from(outputs, o => fixed(o))],
    ["wrong", ...machine.wrong[step].map(bad => bad ? "✕" : "")],
  ]);
}

const sum = rows => rows.reduce((total, row) => total + row.filter(Boolean).length, 0);

function tell(machine) {
  const {heads, outputs} = machine.trace[step];
  const due = page.mask.filter(m => m > 0).length * targets[0].length;
  const where = heads.map((head, h) =>
    `${machine.heads[h]} at location ${largest(head.sharpened)}`).join(", ");
  const said = Array.from(outputs, o => o > 0.5 ? 1 : 0).join("");
  const now = page.mask[step] > 0
    ? `says ${said}, ${sum([machine.wrong[step]])} wrong` : "no answer due";
  const heard = inputs[step].map(v => Number.isInteger(v) ? v : fixed(v, 2)).join(" ");
  machine.find(".told").textContent = `Step ${step}: hears ${heard}; ${now}`
    + `${where ? "; " + where : ""}. Whole sequence: ${sum(machine.wrong)} of ${due} bits wrong.`;
}

function show() {
  $("step").value = step;
  $("at").textContent = `${step} of ${T - 1}`;
  document.querySelectorAll(".told").forEach(p =>
    p.setAttribute("aria-live", playing ? "off" : "polite"));
  for (const machine of machines) {
    Plotly.relayout(machine.find(".timeline"), {shapes: cursor()});
    tell(machine);
    showAnswer(machine);
    if (machine.network.kind === "lstm") { drawCells(machine); continue; }
    const now = machine.trace[step], h = Math.max(machine.heads.indexOf(looked), 0);
    showOrders(machine, h);
    STAGES.forEach(name => drawStage(machine, now.heads[h], name));
    drawVectors(machine, now.heads[h]);
    drawWords(machine, "memory", i => now.memory[i], "memory after the step");
    drawWords(machine, "change", i => now.memory[i].map((v, m) => v - now.before[i][m]),
      "change of memory in the step");
  }
  showChannels();
  remember();
}

// ---- time ----------------------------------------------------------------------------------------

function go(to) {
  step = Math.min(Math.max(Math.round(to), 0), T - 1);
  show();
}

function play(on) {
  playing = on ? {from: step === T - 1 ? 0 : step, since: performance.now()} : null;
  $("play").textContent = on ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(on));
  if (on) requestAnimationFrame(tick); else show();
}

function tick(now) {
  if (!playing) return;
  const at = playing.from + Math.floor((now - playing.since) / 1000 * Number($("speed").value));
  if (at !== step) go(at);
  if (at >= T - 1) play(false); else requestAnimationFrame(tick);
}

const halt = to => { if (playing) play(false); go(to); };

// ---- the reader's bits ---------------------------------------------------------------------------

function set(values) {
  bits = values;
  compute();
  show();
}

function toggle(place) {
  if (place >= 0) set(bits.map((bit, i) => i === place ? 1 - bit : bit));
}

function showChannels() {
  const places = page.inputPlaces[step], box = $("channels");
  box.hidden = !places.some(place => place >= 0);
  const known = [...box.querySelectorAll("input")];
  if (known.length === places.length) {
    known.forEach((input, c) => Object.assign(input,
      {disabled: places[c] < 0, checked: inputs[step][c] === 1}));
    return;
  }
  box.replaceChildren(...places.map((_, c) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), {type: "checkbox"});
    input.addEventListener("change", () => toggle(page.inputPlaces[step][c]));
    label.append(input, ` ${c}`);
    return label;
  }));
  showChannels();
}

// ---- a link that opens here ----------------------------------------------------------------------

// Four bits a letter, so that a link stays short.
const packed = () => bits.length
  ? bits.join("").padEnd(Math.ceil(bits.length / 4) * 4, "0").match(/.{4}/g)
    .map(four => parseInt(four, 2).toString(16)).join("") : "";
const unpacked = hex => [...hex].flatMap(letter =>
  [...parseInt(letter, 16).toString(2).padStart(4, "0")].map(Number)).slice(0, bits.length);

function remember() {
  const parts = new URLSearchParams({step: String(step)});
  if (looked) parts.set("head", looked);
  if (bits.some((bit, i) => bit !== page.bits[i])) parts.set("bits", packed());
  $("link").href = `#${parts}`;
  if (!playing) history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const hex = parts.get("bits") ?? "", asked = Number(parts.get("step"));
  if (/^[0-9a-f]+$/.test(hex) && hex.length === Math.ceil(bits.length / 4)) bits = unpacked(hex);
  if (Number.isFinite(asked)) step = Math.min(Math.max(Math.round(asked), 0), T - 1);
  const names = machines.flatMap(machine => machine.heads);
  const first = names.find(name => name.startsWith("write")) ?? null;
  looked = names.includes(parts.get("head")) ? parts.get("head") : first;
}

// ---- start ---------------------------------------------------------------------------------------

function offerHeads() {
  const names = [...new Set(machines.flatMap(machine => machine.heads))];
  $("heads").hidden = !names.length;
  for (const name of names) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"),
      {type: "radio", name: "head", value: name, checked: name === looked});
    input.addEventListener("change", () => { looked = name; show(); });
    label.append(input, ` ${name}`);
    $("everywhere").before(label);
  }
  $("all").addEventListener("change", () => { compute(); show(); });
}

function listen() {
  $("step").max = T - 1;
  $("step").addEventListener("input", event => halt(Number(event.target.value)));
  const to = {first: () => 0, back: () => step - 1, forward: () => step + 1, last: () => T - 1};
  for (const [id, where] of Object.entries(to)) $(id).addEventListener("click", () => halt(where()));
  $("play").addEventListener("click", () => play(!playing));
  $("speed").addEventListener("change", () => playing && play(true));
  const values = {drawn: () => [...page.bits], zeros: () => bits.map(() => 0),
    ones: () => bits.map(() => 1), random: () => bits.map(() => Number(Math.random() < 0.5))};
  for (const [id, bitsOf] of Object.entries(values)) {
    $(id).addEventListener("click", () => set(bitsOf()));
  }
  $("drawing").hidden = !bits.length;
  document.addEventListener("keydown", event => {
    if (event.target.closest("input, select, a") || event.ctrlKey || event.metaKey) return;
    const keys = {ArrowLeft: () => halt(step - 1), ArrowRight: () => halt(step + 1),
      Home: () => halt(0), End: () => halt(T - 1)};
    if (event.key === " " && !event.target.closest("button")) keys[" "] = () => play(!playing);
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  window.addEventListener("hashchange", () => { recall(); compute(); show(); });
}

recall();
offerHeads();
listen();
compute();
show();
