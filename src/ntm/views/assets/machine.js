"use strict";
// The networks a third time, beside torch's loop and the compiled ones: G14 section 3, one sequence,
// in double precision. Vectors are arrays; a matrix is {rows, columns, values}, row by row.
// Symbols as in the legend of ntm's docstring.

const NORM_FLOOR = 1e-2;

const ACTIVATIONS = {
  identity: x => x,
  tanh: Math.tanh,
  sigmoid: x => 1 / (1 + Math.exp(-x)),
  relu: x => Math.max(x, 0),
};
const {sigmoid} = ACTIVATIONS;
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

function softmax(values) {
  const top = values.reduce((a, b) => Math.max(a, b));
  const powers = values.map(v => Math.exp(v - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(p => p / sum);
}

function matrix({shape, bytes, data}) {
  const raw = Uint8Array.from(atob(data), c => c.charCodeAt(0)), view = new DataView(raw.buffer);
  const values = new Float64Array(raw.length / bytes);
  const read = bytes === 4 ? view.getFloat32 : view.getFloat64;
  for (let i = 0; i < values.length; i++) values[i] = read.call(view, i * bytes, true);
  const columns = shape.length > 1 ? shape[shape.length - 1] : 1;
  return {rows: values.length / columns, columns, values};
}

const rowsOf = ({rows, columns, values}) =>
  Array.from({length: rows}, (_, i) => values.slice(i * columns, (i + 1) * columns));

function linear({weight, bias}, x) {
  const {rows, columns, values} = weight, result = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    let sum = bias.values[i];
    for (let j = 0, at = i * columns; j < columns; j++, at++) sum += values[at] * x[j];
    result[i] = sum;
  }
  return result;
}

function lstmCell(layer, x, hidden, cell) {
  const sums = linear({weight: layer.weight_ih, bias: layer.bias_ih}, x);
  linear({weight: layer.weight_hh, bias: layer.bias_hh}, hidden).forEach((v, i) => sums[i] += v);
  const H = hidden.length, newHidden = new Float64Array(H), newCell = new Float64Array(H);
  for (let j = 0; j < H; j++) {
    const enter = sigmoid(sums[j]), forget = sigmoid(sums[H + j]);
    newCell[j] = forget * cell[j] + enter * Math.tanh(sums[2 * H + j]);
    newHidden[j] = sigmoid(sums[3 * H + j]) * Math.tanh(newCell[j]);
  }
  return [newHidden, newCell];
}

// A function of the input, step after step, that keeps its state; it gives the output and the cells.
function controllerOf(described) {
  const parts = described.layers.map(layer =>
    Object.fromEntries(Object.entries(layer).map(([name, value]) => [name, matrix(value)])));
  if (described.kind === "feedforward") {
    const activation = ACTIVATIONS[described.activation];
    return x => [parts.reduce((seen, layer) => linear(layer, seen).map(activation), x), []];
  }
  let hidden = rowsOf(matrix(described.hidden)), cell = rowsOf(matrix(described.cell));
  return x => {
    parts.forEach((layer, k) => {
      [x, cell[k]] = lstmCell(layer, x, hidden[k], cell[k]);
      hidden[k] = x;
    });
    return [x, [...cell]];
  };
}

function decode(raw, layout) {
  const {word_size: M, num_read_heads: R, num_write_heads: W, shift_range: S} = layout;
  let at = 0;
  const take = count => raw.slice(at, at += count);
  const heads = Array.from({length: R + W}, () => ({
    key: take(M).map(ACTIVATIONS[layout.key_activation]),
    strength: softplus(take(1)[0]),
    gate: sigmoid(take(1)[0]),
    shift: softmax(take(2 * S + 1)),
    sharpening: 1 + softplus(take(1)[0]),
  }));
  for (const head of heads.slice(R)) head.erase = take(M).map(sigmoid);
  for (const head of heads.slice(R)) head.add = take(M).map(ACTIVATIONS[layout.add_activation]);
  return heads;
}

const norm = vector => Math.sqrt(Math.max(vector.reduce((s, v) => s + v * v, 0), NORM_FLOOR ** 2));
const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);

// The stages of addressing (G14 eq. 5 to 9), each kept.
function address(memory, former, head) {
  const N = memory.length, S = (head.shift.length - 1) / 2, length = norm(head.key);
  const similarity = Float64Array.from(memory, word => dot(head.key, word) / length / norm(word));
  const content = softmax(similarity.map(k => head.strength * k));
  const gated = content.map((c, i) => head.gate * c + (1 - head.gate) * former[i]);
  const shifted = gated.map((_, i) =>
    head.shift.reduce((sum, s, j) => sum + s * gated[(((i - j + S) % N) + N) % N], 0));
  const largest = shifted.reduce((a, b) => Math.max(a, b));
  const powers = shifted.map(w => (w / largest) ** head.sharpening);
  const sum = powers.reduce((a, b) => a + b);
  return {former, similarity, content, gated, shifted, sharpened: powers.map(p => p / sum)};
}

const read = (memory, w) =>
  memory[0].map((_, m) => memory.reduce((sum, word, i) => sum + w[i] * word[m], 0));

const write = (memory, heads) => memory.map((word, i) => word.map((element, m) => {
  const kept = heads.reduce((left, head) => left * (1 - head.sharpened[i] * head.erase[m]), element);
  return heads.reduce((sum, head) => sum + head.sharpened[i] * head.add[m], kept);
}));

function runMachine(network, inputs) {
  const {layout} = network, R = layout.num_read_heads;
  const step = controllerOf(network.controller);
  const emit = {weight: matrix(network.emit.weight), bias: matrix(network.emit.bias)};
  const output = {weight: matrix(network.output.weight), bias: matrix(network.output.bias)};
  let memory = rowsOf(matrix(network.memory)), reads = rowsOf(matrix(network.reads));
  let weightings = rowsOf(matrix(network.weightings));
  return inputs.map(x => {
    const [hidden, cells] = step([...x, ...reads.flatMap(r => [...r])]);
    const before = memory, heads = decode(linear(emit, hidden), layout);
    const obey = (head, h) => Object.assign(head, address(memory, weightings[h], head));
    heads.slice(R).forEach((head, w) => obey(head, R + w));
    if (layout.read_first) heads.slice(0, R).forEach(obey);
    memory = write(memory, heads.slice(R));
    if (!layout.read_first) heads.slice(0, R).forEach(obey);
    const seen = layout.read_first ? before : memory;
    heads.slice(0, R).forEach(head => { head.read = read(seen, head.sharpened); });
    reads = heads.slice(0, R).map(head => head.read);
    weightings = heads.map(head => head.sharpened);
    const logits = linear(output, [...hidden, ...reads.flatMap(r => [...r])]);
    return {outputs: logits.map(sigmoid), logits, cells, heads, before, memory};
  });
}

function runLstm(network, inputs) {
  const step = controllerOf(network.controller);
  const output = {weight: matrix(network.output.weight), bias: matrix(network.output.bias)};
  return inputs.map(x => {
    const [hidden, cells] = step(x), logits = linear(output, hidden);
    return {outputs: logits.map(sigmoid), logits, cells, heads: []};
  });
}

// What a network does at each step of a sequence, from its inputs alone.
const run = (network, inputs) => (network.kind === "ntm" ? runMachine : runLstm)(network, inputs);
