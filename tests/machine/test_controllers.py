import functools

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from ntm import NTM, FeedforwardController, LSTMController
from ntm.machine.controllers import adapt

T, B, H = 4, 3, 6
SIZES = {"input_size": 3, "output_size": 2, "memory_size": 5, "word_size": 2}
WIDTH = 5  # 3 inputs and one read of 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def over_time(controller, inputs, state):
    outputs = []
    for x in inputs:
        output, state = controller(x, state)
        outputs.append(output)
    return torch.stack(outputs), state


# LSTM


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lstm_equals_torch(layers):
    controller = LSTMController(WIDTH, H, layers).double()
    expected = nn.LSTM(WIDTH, H, layers).double()
    with torch.no_grad():
        for k, layer in enumerate(controller.layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(expected, f"{name}_l{k}").copy_(getattr(layer, name))
    inputs = torch.randn(T, B, WIDTH).double()
    start = (torch.randn(layers, B, H).double(), torch.randn(layers, B, H).double())
    ours, end = over_time(controller, inputs, start)
    theirs, expected_end = expected(inputs, start)
    torch.testing.assert_close((ours, end), (theirs, expected_end))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, under vmap
@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_is_the_same_under_a_transform(layers):
    """Where torch's own cell, which it is otherwise, cannot be."""
    controller = LSTMController(WIDTH, H, layers).double()
    inputs = torch.randn(B, WIDTH).double()
    start = (torch.randn(layers, B, H).double(), torch.randn(layers, B, H).double())

    def one(x, hidden, cell):
        output, state = controller(x.unsqueeze(0), (hidden.unsqueeze(1), cell.unsqueeze(1)))
        return output[0], (state[0][:, 0], state[1][:, 0])

    apart = torch.func.vmap(one, in_dims=(0, 1, 1), out_dims=(0, (1, 1)))(inputs, *start)
    torch.testing.assert_close(apart, controller(inputs, start))


def test_a_hook_is_called_under_a_transform():
    controller = LSTMController(WIDTH, H)
    called = []
    controller.layers[0].register_forward_hook(lambda *_: called.append(True))
    start = controller.initial_state(B)
    torch.func.grad(lambda x: controller(x, start)[0].sum())(torch.randn(B, WIDTH))
    assert called == [True]


def test_lstm_layers_hand_on_what_comes_in():
    """How far outputs for random bits differ: by torch's own start a seventh is left a layer."""

    def spread(make):
        inputs = torch.rand(200, 29).round()
        return sum(make()(inputs).std(0).mean().item() for _ in range(10))

    def ours(layers):
        controller = LSTMController(29, 100, layers)
        return lambda inputs: controller(inputs, controller.initial_state(200))[0]

    def of_torch(layers):
        lstm = nn.LSTM(29, 100, layers)
        return lambda inputs: lstm(inputs.unsqueeze(0))[0][0]

    with torch.no_grad():
        one = spread(lambda: ours(1))
        assert spread(lambda: of_torch(1)) == pytest.approx(one, rel=0.1)
        assert spread(lambda: of_torch(2)) < one / 5
        assert spread(lambda: ours(2)) > one / 3
        assert spread(lambda: ours(3)) > one / 9


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_starts_at_zero(layers):
    controller = LSTMController(WIDTH, H, layers)
    for part in controller.initial_state(B):
        assert torch.equal(part, torch.zeros(layers, B, H))


def test_lstm_learned_start_is_one_vector_a_layer():
    controller = LSTMController(WIDTH, H, 2, initial_state="learned")
    hidden, cell = controller.initial_state(B)
    for part, vector in ((hidden, controller.initial_hidden), (cell, controller.initial_cell)):
        assert vector.shape == (2, H)
        assert vector.requires_grad
        assert torch.equal(part, torch.stack([vector] * B, dim=1))
    assert not torch.equal(hidden, cell)
    _, end = over_time(controller, torch.randn(T, B, WIDTH), (hidden, cell))
    end[0].sum().backward()
    assert controller.initial_hidden.grad.abs().min() > 0
    assert controller.initial_cell.grad.abs().min() > 0


def test_forget_bias_is_added_to_torchs_start():
    start = []
    for bias in ({}, {"forget_bias": -1.5}):
        torch.manual_seed(0)
        start.append(LSTMController(WIDTH, H, 2, **bias).state_dict())
    for name, plain in start[0].items():
        expected = plain.clone()
        if name.endswith("bias_ih"):
            expected[H : 2 * H] -= 1.5  # torch's order of gates: input, forget, cell, output
        torch.testing.assert_close(start[1][name], expected)


@pytest.mark.parametrize("kind", [LSTMController, FeedforwardController])
def test_one_unit_is_a_controller(kind):
    controller = kind(WIDTH, 1)
    outputs, _ = controller(torch.randn(B, WIDTH), controller.initial_state(B))
    assert outputs.shape == (B, 1)


def test_lstm_dropout():
    controller = LSTMController(WIDTH, 200, dropout=0.25)
    plain_copy = LSTMController(WIDTH, 200)
    plain_copy.load_state_dict(controller.state_dict())
    x, start = torch.randn(B, WIDTH), controller.initial_state(B)
    expected, expected_state = plain_copy(x, start)

    output, state = controller(x, start)
    dropped = output == 0
    assert 0.1 < dropped.float().mean() < 0.4
    torch.testing.assert_close(output[~dropped], expected[~dropped] / 0.75)
    # What is carried to the next step is whole.
    torch.testing.assert_close(state, expected_state)

    output, _ = controller.eval()(x, start)
    assert torch.equal(output, expected)


def test_lstm_dropout_between_layers():
    controller = LSTMController(WIDTH, H, 2, dropout=0.5)
    x, start = torch.randn(B, WIDTH), controller.initial_state(B)
    second = [controller(x, start)[1][0][1] for _ in range(2)]
    assert not torch.equal(*second)
    controller.eval()
    second = [controller(x, start)[1][0][1] for _ in range(2)]
    assert torch.equal(*second)


def test_lstm_gradient():
    controller = LSTMController(2, 2, 2).double()
    x = torch.randn(2, 2).double().requires_grad_()
    start = [torch.randn(2, 2, 2).double().requires_grad_() for _ in range(2)]

    def step(x, hidden, cell, *weights):
        names = dict(zip(dict(controller.named_parameters()), weights, strict=True))
        output, state = torch.func.functional_call(controller, names, (x, (hidden, cell)))
        return output, *state

    assert gradcheck(step, (x, *start, *controller.parameters()))


# Feedforward


def test_feedforward_equals_sequential():
    controller = FeedforwardController(WIDTH, H, 3)
    expected = nn.Sequential(
        nn.Linear(WIDTH, H), nn.Tanh(), nn.Linear(H, H), nn.Tanh(), nn.Linear(H, H), nn.Tanh()
    )
    for ours, theirs in zip(controller.layers, expected[::2], strict=True):
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, WIDTH)
    output, state = controller(x, controller.initial_state(B))
    torch.testing.assert_close(output, expected(x))
    assert state is None


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        pytest.param("identity", lambda x: x, id="identity"),
        pytest.param("tanh", torch.tanh, id="tanh"),
        pytest.param("sigmoid", torch.sigmoid, id="sigmoid"),
        pytest.param("relu", torch.relu, id="relu"),
        pytest.param(torch.nn.functional.gelu, torch.nn.functional.gelu, id="function"),
        pytest.param(nn.SiLU(), torch.nn.functional.silu, id="module"),
        pytest.param(lambda x: x.square() - 1, lambda x: x.square() - 1, id="lambda"),
    ],
)
def test_feedforward_activation(activation, expected):
    controller = FeedforwardController(WIDTH, H, activation=activation)
    x = torch.randn(B, WIDTH)
    torch.testing.assert_close(controller(x)[0], expected(controller.layers[0](x)))


def test_feedforward_dropout():
    controller = FeedforwardController(WIDTH, 200, dropout=0.25)
    x = torch.randn(B, WIDTH)
    expected = torch.tanh(controller.layers[0](x))
    output, _ = controller(x)
    dropped = output == 0
    assert 0.1 < dropped.float().mean() < 0.4
    torch.testing.assert_close(output[~dropped], expected[~dropped] / 0.75)
    assert torch.equal(controller.eval()(x)[0], expected)


# Modules of others


class Leaky(nn.Module):
    """A state with a first value."""

    def __init__(self, input_size):
        super().__init__()
        self.map = nn.Linear(input_size, H)

    def initial_state(self, batch_size):
        return torch.ones(batch_size, H)

    def forward(self, inputs, state):
        state = torch.tanh(self.map(inputs) + state / 2)
        return state, state


class Counting(nn.Module):
    """A state without a first value, and a nest of them."""

    def __init__(self, input_size):
        super().__init__()
        self.map = nn.Linear(input_size, H)

    def forward(self, inputs, state):
        count, (total,) = (0, (torch.zeros(len(inputs), H),)) if state is None else state
        total = total + self.map(inputs)
        return torch.sin(total), (count + 1, (total,))


def test_plain_module():
    net = NTM(**SIZES, controller=nn.Sequential(nn.Linear(WIDTH, H), nn.Tanh()))
    same = NTM(**SIZES, controller=FeedforwardController(WIDTH, H))
    same.controller.layers[0].load_state_dict(net.controller.module[0].state_dict())
    same.emit.load_state_dict(net.emit.state_dict())
    same.output.load_state_dict(net.output.state_dict())
    inputs = torch.randn(T, B, 3)
    logits, state = net(inputs)
    torch.testing.assert_close(logits, same(inputs)[0])
    assert state.controller is None


def test_module_with_first_state():
    net = NTM(**SIZES, controller=Leaky(WIDTH))
    start = net.initial_state(B)
    assert torch.equal(start.controller, torch.ones(B, H))
    inputs = torch.randn(1, B, 3)
    _, state = net(inputs)
    seen = torch.cat([inputs[0], torch.zeros(B, 2)], dim=-1)
    expected = torch.tanh(net.controller.module.map(seen) + 0.5)
    torch.testing.assert_close(state.controller, expected)


def test_module_without_first_state():
    net = NTM(**SIZES, controller=Counting(WIDTH))
    assert net.initial_state(B).controller is None
    _, state = net(torch.randn(T, B, 3))
    assert state.controller[0] == T
    assert state.controller[1][0].shape == (B, H)


@pytest.mark.parametrize("make", [Leaky, Counting])
def test_module_carries_its_state(make):
    net = NTM(**SIZES, controller=make(WIDTH))
    inputs = torch.randn(T, B, 3)
    whole, end = net(inputs)
    first, state = net(inputs[:2])
    second, state = net(inputs[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("make", [Leaky, Counting])
def test_module_is_trained(make):
    net = NTM(**SIZES, controller=make(WIDTH))
    net(torch.randn(T, B, 3))[0].sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(functools.partial(LSTMController, hidden_size=H), id="partial"),
        pytest.param(lambda input_size: LSTMController(input_size, H), id="function"),
        pytest.param(
            functools.partial(LSTMController, hidden_size=H, initial_state="learned"), id="learned"
        ),
        pytest.param(LSTMController(WIDTH, H), id="instance"),
        pytest.param(functools.partial(FeedforwardController, hidden_size=H), id="feedforward"),
        pytest.param(lambda input_size: nn.Linear(input_size, H), id="plain_function"),
        pytest.param(Counting, id="own_class"),
    ],
)
def test_controller_may_be_made_or_given(make):
    net = NTM(**SIZES, controller=make)
    if isinstance(make, nn.Module):
        assert net.controller is make
    assert net.controller.output_size == H
    assert net(torch.randn(T, B, 3))[0].shape == (T, B, 2)


def test_width_of_input():
    assert NTM.controller_input_size(9) == 29
    assert NTM.controller_input_size(3, 4, 2) == 11
    seen = []
    NTM(
        **SIZES,
        num_read_heads=3,
        controller=lambda input_size: seen.append(input_size) or nn.Linear(input_size, H),
    )
    assert seen == [3 + 3 * 2]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_trying_a_module_leaves_it_as_it_was(training):
    module = nn.Sequential(nn.Linear(WIDTH, H), nn.BatchNorm1d(H), nn.Dropout(0.5))
    module.train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(())
    torch.manual_seed(3)
    adapt(module, WIDTH)
    assert torch.rand(()) == drawn
    assert all(part.training == training for part in module.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_trying_a_module_leaves_a_frozen_part_frozen():
    module = nn.Sequential(nn.Linear(WIDTH, H), nn.BatchNorm1d(H))
    module[1].eval()
    NTM(**SIZES, controller=module)
    assert module[0].training
    assert not module[1].training


# Refusals


@pytest.mark.parametrize(
    "module",
    [
        nn.RNN(WIDTH, H),
        nn.LSTM(WIDTH, H),
        nn.GRU(WIDTH, H),
        nn.RNNCell(WIDTH, H),
        nn.LSTMCell(WIDTH, H),
        nn.GRUCell(WIDTH, H),
    ],
    ids=lambda module: type(module).__name__,
)
def test_recurrent_modules_of_torch_are_refused(module):
    with pytest.raises(
        ValueError, match=rf"^controller must .*torch\.nn\.{type(module).__name__},"
    ):
        NTM(**SIZES, controller=module)


@pytest.mark.parametrize(
    "module",
    [
        LSTMController(WIDTH - 1, H),
        LSTMController(WIDTH - 1, WIDTH, initial_state="learned"),
        FeedforwardController(WIDTH - 1, H),
        nn.Linear(WIDTH - 1, H),
        nn.Sequential(nn.Linear(WIDTH + 1, H), nn.Tanh()),
        Leaky(WIDTH - 1),
        Counting(WIDTH + 1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_wrong_width_is_refused(module):
    with pytest.raises(ValueError, match=rf"^controller must accept inputs of .*\b{WIDTH}\b"):
        NTM(**SIZES, controller=module)


class Returning(nn.Module):
    """Returns what a function makes of the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


class ReturningNoState(nn.Module):
    def forward(self, inputs, state):
        return inputs


@pytest.mark.parametrize(
    ("module", "got"),
    [
        pytest.param(Returning(lambda x: x.sum(-1)), r"\(2,\)", id="vector"),
        pytest.param(Returning(lambda x: x[None]), r"\(1, 2, 5\)", id="with_time"),
        pytest.param(Returning(lambda x: x[:1]), r"\(1, 5\)", id="one_sequence"),
        pytest.param(Returning(lambda x: (x, x)), "tuple", id="pair"),
        pytest.param(Returning(lambda _: None), "NoneType", id="nothing"),
        pytest.param(ReturningNoState(), "", id="no_state"),
    ],
)
def test_wrong_output_is_refused(module, got):
    with pytest.raises(ValueError, match=rf"^controller must return .*\(B, H\), got .*{got}"):
        NTM(**SIZES, controller=module)


def refusal(module):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        adapt(module, WIDTH)
    return str(refused.value)


def test_refusals_say_what_was_expected_what_came_and_what_to_do():
    assert refusal(nn.GRU(WIDTH, H)) == (
        "controller must map (inputs, state) to (output, state) one step at a time, got "
        "torch.nn.GRU, which has another convention; use ntm.LSTMController, or a module of your "
        "own around it"
    )
    for make in (LSTMController, FeedforwardController):
        assert refusal(make(4, H)) == (
            "controller must accept inputs of width 5, got one that accepts 4; see "
            "NTM.controller_input_size"
        )
    assert refusal(nn.Linear(4, H)).startswith(
        "controller must accept inputs of shape (B, 5), but Linear failed on them: mat1 and mat2"
    )
    returned = "controller must return an output of shape (B, H), got"
    assert refusal(Returning(lambda x: x.sum(-1))) == f"{returned} (2,) at B=2"
    assert refusal(Returning(lambda x: (x, x))) == f"{returned} tuple at B=2"


def test_by_default_a_layer_of_a_hundred():
    for make, kind in ((LSTMController, nn.LSTMCell), (FeedforwardController, nn.Linear)):
        controller = make(WIDTH)
        assert [type(layer) for layer in controller.layers] == [kind]
        assert controller.output_size == 100
        assert controller.dropout.p == 0
    assert controller.activation == "tanh"


def test_learned_starts_are_small():
    controller = LSTMController(WIDTH, 1000, initial_state="learned")
    for start in (controller.initial_hidden, controller.initial_cell):
        assert 0.099 < start.max() <= 0.1
        assert -0.1 <= start.min() < -0.099


def test_what_is_given_by_name_alone_is_no_state():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(WIDTH, H)

        def forward(self, inputs, *, scale=1.0):
            return scale * self.map(inputs)

    adapted = adapt(Named(), WIDTH)
    assert adapted.initial_state(B) is None
    output, state = adapted(torch.randn(B, WIDTH), None)
    assert output.shape == (B, H)
    assert state is None


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (LSTMController, "hidden_size", 0),
        (LSTMController, "num_layers", 0),
        (LSTMController, "dropout", 1.0),
        (LSTMController, "dropout", -0.1),
        (LSTMController, "initial_state", "random"),
        (FeedforwardController, "hidden_size", 0),
        (FeedforwardController, "num_layers", 0),
        (FeedforwardController, "dropout", 1.0),
        (FeedforwardController, "dropout", -0.1),
        (FeedforwardController, "activation", "swish"),
    ],
)
def test_arguments_out_of_range(make, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*got {value!r}$"):
        make(WIDTH, **{name: value})
    with pytest.raises(ValueError, match=rf"^controller\.{name} must .*got {value!r}$"):
        NTM(**SIZES, controller=functools.partial(make, **{name: value}))
