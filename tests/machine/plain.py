"""The machine a second time: loops over lists of floats, one sequence, one number at a time.

It shares nothing with the package but the documented order of weights and emissions.
"""

import math


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def linear(weight, bias, values):
    return [dot(row, values) + b for row, b in zip(weight, bias, strict=True)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def relu(x):
    return max(x, 0.0)


def identity(x):
    return x


def cosine(key, row, floor=0.0):
    """Eq. 6. The floor is added to each length, so that a zero vector is similar to nothing."""
    lengths = math.sqrt(dot(key, key) + floor**2) * math.sqrt(dot(row, row) + floor**2)
    return dot(key, row) / lengths


def content(memory, key, strength, floor=0.0):
    """Eq. 5."""
    return softmax([strength * cosine(key, row, floor) for row in memory])


def interpolate(content, previous, gate):
    """Eq. 7."""
    return [gate * c + (1 - gate) * p for c, p in zip(content, previous, strict=True)]


def shift(weighting, shifts):
    """Eq. 8, told from where the weight comes from: i sends s(j) of its weight on to i + j."""
    reach = len(shifts) // 2
    moved = [0.0] * len(weighting)
    for i, weight in enumerate(weighting):
        for j in range(-reach, reach + 1):
            moved[(i + j) % len(weighting)] += weight * shifts[j + reach]
    return moved


def sharpen(weighting, sharpening):
    """Eq. 9."""
    powers = [w**sharpening for w in weighting]
    return [p / sum(powers) for p in powers]


def address(memory, previous, key, strength, gate, shifts, sharpening, floor=0.0):
    focus = interpolate(content(memory, key, strength, floor), previous, gate)
    return sharpen(shift(focus, shifts), sharpening)


def read(memory, weighting):
    """Eq. 2."""
    result = [0.0] * len(memory[0])
    for weight, row in zip(weighting, memory, strict=True):
        for m, element in enumerate(row):
            result[m] += weight * element
    return result


def write(memory, weightings, erases, adds):
    """Eq. 3 for every head, then eq. 4 for every head."""
    memory = [list(row) for row in memory]
    for weighting, erase in zip(weightings, erases, strict=True):
        for i, row in enumerate(memory):
            for m in range(len(row)):
                row[m] *= 1 - weighting[i] * erase[m]
    for weighting, add in zip(weightings, adds, strict=True):
        for i, row in enumerate(memory):
            for m in range(len(row)):
                row[m] += weighting[i] * add[m]
    return memory


def lstm_cell(w_ih, w_hh, b_ih, b_hh, x, hidden, cell):
    size = len(hidden)
    sums = [a + b for a, b in zip(linear(w_ih, b_ih, x), linear(w_hh, b_hh, hidden), strict=True)]
    new_hidden, new_cell = [], []
    for j in range(size):
        enter, forget = sigmoid(sums[j]), sigmoid(sums[size + j])
        candidate, leave = math.tanh(sums[2 * size + j]), sigmoid(sums[3 * size + j])
        new_cell.append(forget * cell[j] + enter * candidate)
        new_hidden.append(leave * math.tanh(new_cell[j]))
    return new_hidden, new_cell


def lstm_controller(weights, layers):
    def step(x, state):
        hidden, cell = [], []
        for k in range(layers):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            own = [weights[f"controller.layers.{k}.{name}"] for name in names]
            x, c = lstm_cell(*own, x, state[0][k], state[1][k])
            hidden.append(x)
            cell.append(c)
        return x, (hidden, cell)

    return step


def feedforward_controller(weights, layers):
    def step(x, state):
        for k in range(layers):
            sums = linear(
                weights[f"controller.layers.{k}.weight"], weights[f"controller.layers.{k}.bias"], x
            )
            x = [math.tanh(s) for s in sums]
        return x, state

    return step


def emissions(raw, word, reads, writes, reach, key_map=math.tanh, add_map=math.tanh):
    """Cut the vector as documented: addressing of each head, then erases, then adds."""
    raw = list(raw)

    def take(count):
        taken = raw[:count]
        del raw[:count]
        return taken

    orders = []
    for _ in range(reads + writes):
        orders.append(
            {
                "key": [key_map(x) for x in take(word)],
                "strength": softplus(take(1)[0]),
                "gate": sigmoid(take(1)[0]),
                "shifts": softmax(take(2 * reach + 1)),
                "sharpening": 1 + softplus(take(1)[0]),
            }
        )
    erases = [[sigmoid(x) for x in take(word)] for _ in range(writes)]
    adds = [[add_map(x) for x in take(word)] for _ in range(writes)]
    assert not raw
    return orders, erases, adds


def machine(
    weights, controller, inputs, state, word, reads, writes, reach, read_first, floor, **maps
):
    """Run one sequence (a list of input lists); returns the logits and the last state."""
    memory, weightings, seen, inner = state
    logits = []
    for x in inputs:
        out, inner = controller(list(x) + [v for r in seen for v in r], inner)
        raw = linear(weights["emit.weight"], weights["emit.bias"], out)
        orders, erases, adds = emissions(raw, word, reads, writes, reach, **maps)
        old = memory
        writing = [
            address(old, weightings[h], **orders[h], floor=floor)
            for h in range(reads, reads + writes)
        ]
        memory = write(old, writing, erases, adds)
        looked_at = old if read_first else memory
        reading = [
            address(looked_at, weightings[h], **orders[h], floor=floor) for h in range(reads)
        ]
        seen = [read(looked_at, w) for w in reading]
        weightings = reading + writing
        flat = [v for r in seen for v in r]
        logits.append(linear(weights["output.weight"], weights["output.bias"], out + flat))
    return logits, (memory, weightings, seen, inner)
