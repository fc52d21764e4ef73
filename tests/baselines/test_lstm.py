import io
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from ntm import LSTM

IN, OUT, H, T, B = 3, 2, 4, 5, 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(**kinds):
    net = LSTM(IN, OUT, **{"hidden_size": H, "num_layers": 2, **kinds}).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.7)
    return net


def random_inputs(steps=T, batch=B):
    return torch.randn(steps, batch, IN).double()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def linear(weight, bias, values):
    return [
        b + sum(w * v for w, v in zip(row, values, strict=True))
        for row, b in zip(weight, bias, strict=True)
    ]


def by_loops(net, inputs):
    """Logits and last (hidden, cell) of one sequence, a number at a time."""
    weights = {name: value.tolist() for name, value in net.state_dict().items()}
    layers = range(net.lstm.num_layers)
    hidden, cell = weights["initial_hidden"], weights["initial_cell"]
    logits = []
    for x in inputs.tolist():
        for k in layers:
            own = linear(weights[f"lstm.weight_ih_l{k}"], weights[f"lstm.bias_ih_l{k}"], x)
            back = linear(weights[f"lstm.weight_hh_l{k}"], weights[f"lstm.bias_hh_l{k}"], hidden[k])
            sums = [a + b for a, b in zip(own, back, strict=True)]
            enter, forget, candidate, leave = (sums[p * H : (p + 1) * H] for p in range(4))
            cell[k] = [
                sigmoid(f) * c + sigmoid(i) * math.tanh(g)
                for i, f, g, c in zip(enter, forget, candidate, cell[k], strict=True)
            ]
            hidden[k] = [sigmoid(o) * math.tanh(c) for o, c in zip(leave, cell[k], strict=True)]
            x = hidden[k]
        logits.append(linear(weights["output.weight"], weights["output.bias"], x))
    return logits, hidden, cell


@pytest.mark.parametrize("layers", [1, 3])
def test_forward(layers):
    net = network(num_layers=layers)
    inputs = random_inputs()
    logits, state = net(inputs)
    for b in range(B):
        expected = by_loops(net, inputs[:, b])
        for ours, theirs in zip((logits, *state), expected, strict=True):
            torch.testing.assert_close(ours[:, b], torch.tensor(theirs, dtype=torch.float64))


def test_gradient():
    net = network(hidden_size=2)
    keys = list(dict(net.named_parameters()))

    def run(inputs, *parameters):
        weights = dict(zip(keys, parameters, strict=True))
        logits, state = functional_call(net, weights, (inputs,))
        return logits, *state

    leaves = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert gradcheck(run, (random_inputs(3, 2).requires_grad_(), *leaves))


def test_count():
    # Four gates, each a map of the layer's input and one of its hidden state, both with bias.
    first, later = 4 * 256 * (9 + 256 + 2), 4 * 256 * (256 + 256 + 2)
    output, start = 8 * (256 + 1), 2 * 3 * 256
    net = LSTM(9, 8)
    assert sum(p.numel() for p in net.parameters()) == first + 2 * later + output + start
    assert first + 2 * later + output + start == 1_329_672
    net = LSTM(9, 8, initial_state="zeros")
    assert sum(p.numel() for p in net.parameters()) == first + 2 * later + output


@pytest.mark.parametrize("initial_state", ["learned", "zeros"])
def test_initial_state(initial_state):
    net = network(initial_state=initial_state)
    state = net.initial_state(B)
    learned = (net.initial_hidden, net.initial_cell)
    for part, vector in zip(state, learned, strict=True):
        assert part.shape == (2, B, H)
        if initial_state == "zeros":
            assert vector is None
            assert (part == 0).all()
        else:
            assert torch.equal(part, torch.stack([vector] * B, dim=1))
    inputs = random_inputs()
    torch.testing.assert_close(net(inputs), net(inputs, state), rtol=0, atol=0)


@pytest.mark.parametrize("cut", [1, 3])
def test_pieces_equal_the_whole(cut):
    net = network()
    inputs = random_inputs()
    first, state = net(inputs[:cut])
    second, state = net(inputs[cut:], state)
    torch.testing.assert_close((torch.cat([first, second]), state), net(inputs))


def test_sequences_do_not_mix():
    net = network()
    inputs = random_inputs()
    before, _ = net(inputs)
    inputs[1, 0] += 1
    after, _ = net(inputs.requires_grad_())
    assert torch.equal(after[:, 1:], before[:, 1:])
    after[:, 1].sum().backward()
    assert torch.equal(inputs.grad.abs().sum((0, 2)) > 0, torch.arange(B) == 1)


def test_batch_first():
    net, turned = network(), network(batch_first=True)
    turned.load_state_dict(net.state_dict())
    inputs = random_inputs()
    start = (torch.randn(2, B, H).double(), torch.randn(2, B, H).double())
    for given in (start, None):
        logits, state = turned(inputs.transpose(0, 1), given)
        assert logits.shape == (B, T, OUT)
        torch.testing.assert_close((logits.transpose(0, 1), state), net(inputs, given))


@pytest.mark.parametrize("initial_state", ["learned", "zeros"])
def test_checkpoint(initial_state):
    saved, loaded = network(initial_state=initial_state), network(initial_state=initial_state)
    inputs = random_inputs()
    assert not torch.equal(saved(inputs)[0], loaded(inputs)[0])
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(saved(inputs), loaded(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout(layers):
    net, whole = network(num_layers=layers, dropout=0.5), network(num_layers=layers)
    whole.load_state_dict(net.state_dict())
    inputs = random_inputs()
    assert not torch.equal(net(inputs)[0], net(inputs)[0])
    torch.testing.assert_close(net.eval()(inputs), whole(inputs), rtol=0, atol=0)


def test_two_calls_agree():
    net = network()
    inputs = random_inputs()
    first = net(inputs)
    net(random_inputs(2, 1))
    torch.testing.assert_close(net(inputs), first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_size", 0),
        ("output_size", 0),
        ("hidden_size", 0),
        ("num_layers", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("initial_state", "random"),
    ],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*got {value!r}$"):
        LSTM(**{"input_size": IN, "output_size": OUT, name: value})


@pytest.mark.parametrize(
    "shape",
    [(T, IN), (T, B, IN + 1), (0, B, IN), (T, 0, IN)],
    ids=["2d", "wide", "no_time", "no_batch"],
)
def test_inputs_of_wrong_shape(shape):
    with pytest.raises(ValueError, match=rf"^inputs must .*\(T, B, I\) with I={IN}.*got"):
        network()(torch.zeros(shape).double())
