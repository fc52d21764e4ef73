"""What people do to a network that computes otherwise then: held against the plain loop.

Under ``auto`` the result is that of the plain loop; asked for by name, the fused engine gives the
same or says what it cannot do. There is no third outcome.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from ntm import LSTM, NTM
from ntm.machine import FeedforwardController, LSTMController

WIDTH, OUT, N, M, H = 3, 2, 6, 4, 5
CONTROLLERS: dict[str, Callable[..., nn.Module]] = {
    "lstm": lambda input_size: LSTMController(input_size, H),
    "lstm_2": lambda input_size: LSTMController(input_size, H, 2),
    "feedforward": lambda input_size: FeedforwardController(input_size, H),
}


def network(controller: str = "lstm", engine: str = "auto") -> NTM:
    torch.manual_seed(0)
    make = CONTROLLERS[controller]
    return NTM(WIDTH, OUT, N, M, controller=make, engine=engine).double()


def both(net: NTM) -> tuple[NTM, NTM]:
    """A network, and the same on the plain loop."""
    plain = copy.deepcopy(net)
    plain.engine = "reference"
    return net, plain


def inputs(T: int = 4, B: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(T, B, WIDTH, dtype=torch.float64)


def leaves(value) -> list[Tensor]:
    return [part for part in pytree.tree_leaves(value) if isinstance(part, Tensor)]


# --- Transforms


def along_inputs(net: NTM):
    return jvp(lambda x: net(x)[0], (inputs(),), (torch.ones_like(inputs()),))


def along_weights(net: NTM):
    weights = {name: weight.detach() for name, weight in net.named_parameters()}
    ones = {name: torch.ones_like(weight) for name, weight in weights.items()}
    return jvp(lambda w: functional_call(net, w, (inputs(),))[0], (weights,), (ones,))


def dual_inputs(net: NTM):
    with fwd.dual_level():
        logits, _ = net(fwd.make_dual(inputs(), torch.ones_like(inputs())))
        return fwd.unpack_dual(logits)


def dual_weights(net: NTM):
    weights = dict(net.named_parameters())
    with fwd.dual_level(), torch.no_grad():
        duals = {
            name: fwd.make_dual(weight, torch.ones_like(weight)) for name, weight in weights.items()
        }
        return fwd.unpack_dual(functional_call(net, duals, (inputs(),))[0])


def dual_state(net: NTM):
    state = net.initial_state(2)
    with fwd.dual_level():
        dual = fwd.make_dual(state.memory.clone(), torch.ones_like(state.memory))
        return fwd.unpack_dual(net(inputs(), state._replace(memory=dual))[0])


def gradient(net: NTM):
    weights = {name: weight.detach() for name, weight in net.named_parameters()}
    return grad(lambda w: functional_call(net, w, (inputs(),))[0].square().sum())(weights)


def per_sequence(net: NTM):
    weights = {name: weight.detach() for name, weight in net.named_parameters()}

    def loss(w, x):
        return functional_call(net, w, (x.unsqueeze(1),))[0].square().sum()

    return vmap(grad(loss), in_dims=(None, 1))(weights, inputs())


def reverse_jacobian(net: NTM):
    return jacrev(lambda x: net(x)[0])(inputs(2))


def forward_jacobian(net: NTM):
    return jacfwd(lambda x: net(x)[0])(inputs(2))


def second_derivatives(net: NTM):
    return hessian(lambda x: net(x)[0].square().sum())(inputs(2, 1))


def many_networks(net: NTM):
    weights = {
        name: torch.stack([weight.detach(), 0.5 * weight.detach()])
        for name, weight in net.named_parameters()
    }
    x = inputs()
    return vmap(lambda w: functional_call(net, w, (x,))[0])(weights)


TRANSFORMS = [
    along_inputs, along_weights, dual_inputs, dual_weights, dual_state, gradient, per_sequence,
    reverse_jacobian, forward_jacobian, second_derivatives, many_networks,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, under vmap
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: one.__name__)
def test_a_transform_gives_what_the_plain_loop_gives(transform, controller):
    net, plain = both(network(controller))
    got, expected = leaves(transform(net)), leaves(transform(plain))
    assert len(got) == len(expected) > 0
    assert any(part.abs().max() > 0 for part in expected[1:] or expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: one.__name__)
def test_the_fused_engine_by_name_says_that_it_cannot(transform):
    why = "it has no derivatives for torch.func and forward mode"
    with pytest.raises(
        ValueError, match=f"^engine fused cannot run: {why}; use auto or reference$"
    ):
        transform(network(engine="fused"))


# --- Second derivatives on the tape: by the time they are asked for, the engine has run


def squared(net: NTM, x: Tensor) -> Tensor:
    return net(x)[0].square().sum()


def of_weights(net: NTM):
    weights = [*net.parameters()]
    first = torch.autograd.grad(squared(net, inputs()), weights, create_graph=True)
    return torch.autograd.grad(sum(part.square().sum() for part in first), weights)


def gradient_penalty(net: NTM):
    x = inputs().requires_grad_()
    (first,) = torch.autograd.grad(squared(net, x), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), [*net.output.parameters()])


def backward_twice(net: NTM):
    squared(net, inputs()).backward(create_graph=True)
    sum(weight.grad.square().sum() for weight in net.parameters()).backward()
    return [weight.grad for weight in net.parameters()]


def times_a_vector(net: NTM):
    x = inputs()
    return torch.autograd.functional.hvp(lambda x: squared(net, x), x, torch.ones_like(x))


def all_of_them(net: NTM):
    return torch.autograd.functional.hessian(lambda x: squared(net, x), inputs(2, 1))


SECOND = [of_weights, gradient_penalty, backward_twice, times_a_vector, all_of_them]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("engine", ["auto", "fused"])
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("way", SECOND, ids=lambda one: one.__name__)
def test_second_derivatives_on_the_tape_are_refused(way, controller, engine):
    assert leaves(way(network(controller, "reference")))
    with pytest.raises(NotImplementedError, match=r"set net\.engine = 'reference' before"):
        way(network(controller, engine))


@pytest.mark.parametrize("way", SECOND, ids=lambda one: one.__name__)
def test_and_those_through_a_controller_of_ones_own(way):
    def make(input_size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(input_size, H), nn.Tanh())

    net = NTM(WIDTH, OUT, N, M, controller=make, engine="auto").double()
    with pytest.raises(NotImplementedError, match="first derivatives alone"):
        way(net)


# --- Parts that were replaced


class Doubled(nn.LSTMCell):
    def forward(self, x, state=None):
        hidden, cell = super().forward(x, state)
        return 2 * hidden, cell


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Adapted(nn.Module):
    """Low-rank adaptation: what was there, frozen, and a small map beside it."""

    def __init__(self, base: nn.Module, width: int, made: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(width, 2, bias=False).double()
        self.up = nn.Linear(2, made, bias=False).double()

    def forward(self, x, *state):
        change = self.up(self.down(x))
        if not state:
            return self.base(x) + change
        hidden, cell = self.base(x, *state)
        return hidden + change, cell


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


def subclassed(cell: nn.Module) -> nn.Module:
    kind = Doubled if isinstance(cell, nn.LSTMCell) else Scaled
    sizes = (
        (cell.input_size, cell.hidden_size)
        if isinstance(cell, nn.LSTMCell)
        else (cell.in_features, cell.out_features)
    )
    made = kind(*sizes).double()
    made.load_state_dict(cell.state_dict())
    return made


def adapted(part: nn.Module) -> nn.Module:
    if isinstance(part, nn.LSTMCell):
        return Adapted(part, part.input_size, part.hidden_size)
    return Adapted(part, part.in_features, part.out_features)


def doubled(made: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    """Twice what a layer gives; of an LSTM's cell, its output."""
    return (2 * made[0], made[1]) if isinstance(made, tuple) else 2 * made


def hooked(part: nn.Module) -> nn.Module:
    part.register_forward_hook(lambda _, __, made: doubled(made))
    return part


def parametrised(part: nn.Module) -> nn.Module:
    name = "weight_hh" if isinstance(part, nn.LSTMCell) else "weight"
    return parametrize.register_parametrization(part, name, Negated())


def patched(part: nn.Module) -> nn.Module:
    original = type(part).forward
    part.forward = lambda *arguments: doubled(original(part, *arguments))
    return part


def other_call(part: nn.Module) -> nn.Module:
    """`__call__` itself is another, as profilers and wrappers have it."""
    base = type(part)

    class Called(base):
        def __call__(self, *arguments):
            return doubled(super().__call__(*arguments))

    part.__class__ = Called
    return part


def inner_call(part: nn.Module) -> nn.Module:
    """What `__call__` hands on to is another."""
    original = part._call_impl
    part._call_impl = lambda *arguments: doubled(original(*arguments))
    return part


CHANGES = [subclassed, adapted, hooked, parametrised, patched, other_call, inner_call]
PLACES = {
    "lstm": ("controller.layers.0", "emit", "output"),
    "lstm_2": ("controller.layers.0", "controller.layers.1"),
    "feedforward": ("controller.layers.0", "emit", "output"),
}


def with_change(controller: str, place: str, change: Callable, engine: str) -> NTM:
    net = network(controller, engine)
    torch.manual_seed(2)
    parent, _, name = place.rpartition(".")
    setattr(net.get_submodule(parent), name, change(net.get_submodule(place)))
    return net


@pytest.mark.parametrize("engine", ["auto", "fused"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("controller", "place"),
    [(controller, place) for controller, places in PLACES.items() for place in places],
)
def test_what_replaces_a_layer_is_run_and_trained(controller, place, change, engine):
    original = network(controller)(inputs())[0]
    got = []
    for used in (engine, "reference"):
        net = with_change(controller, place, change, used)
        logits, _ = net(inputs())
        logits.square().sum().backward()
        wanted = [weight for weight in net.parameters() if weight.requires_grad]
        assert all(weight.grad is not None for weight in wanted)
        got.append([logits, *(weight.grad for weight in wanted)])
    for one, other in zip(*got, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(got[0][0], original)


@pytest.mark.parametrize("engine", ["auto", "fused"])
def test_a_hook_on_every_module_is_called(engine):
    seen = []
    net = network(engine=engine)
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        net(inputs())
    finally:
        hook.remove()
    assert seen.count(net.controller.layers[0]) == len(inputs())
    assert seen.count(net.emit) == len(inputs())


# --- Parts of another shape or kind


def no_bias(net: NTM) -> None:
    cell = net.controller.layers[0]
    net.controller.layers[0] = nn.LSTMCell(cell.input_size, H, bias=False).double()


def wider(net: NTM) -> None:
    net.controller.layers[0] = nn.LSTMCell(net.controller.layers[0].input_size, 9).double()


def narrower_inputs(net: NTM) -> None:
    net.controller.layers[0] = nn.LSTMCell(2, H).double()


def gru(net: NTM) -> None:
    net.controller.layers[0] = nn.GRUCell(net.controller.layers[0].input_size, H).double()


def half_a_bias(net: NTM) -> None:
    net.controller.layers[0].bias_ih = nn.Parameter(torch.zeros(2 * H, dtype=torch.float64))


def single_precision(net: NTM) -> None:
    net.controller.layers[0].float()


def one_weight_in_single_precision(net: NTM) -> None:
    cell = net.controller.layers[0]
    cell.weight_hh = nn.Parameter(cell.weight_hh.detach().float())


def on_meta(net: NTM) -> None:
    net.controller.layers[0].to("meta")


def one_weight_on_meta(net: NTM) -> None:
    cell = net.controller.layers[0]
    cell.weight_hh = nn.Parameter(cell.weight_hh.detach().to("meta"))


def freed(net: NTM) -> None:
    net.controller.layers[0].weight_hh.untyped_storage().resize_(0)


def emits_more(net: NTM) -> None:
    net.emit = nn.Linear(H, net.layout.size + 3).double()


def no_layers(net: NTM) -> None:
    net.controller.layers = nn.ModuleList()


def spread_weights(net: NTM) -> None:
    cell = net.controller.layers[0]
    twice = torch.stack([cell.weight_hh.detach(), cell.weight_hh.detach()], -1)
    cell.weight_hh = nn.Parameter(twice[..., 0])


def sparse_weights(net: NTM) -> None:
    cell = net.controller.layers[0]
    cell.weight_hh = nn.Parameter(cell.weight_hh.detach().to_sparse())


def ends_freed(net: NTM) -> None:
    weight = net.controller.layers[0].weight_hh
    weight.untyped_storage().resize_(weight.untyped_storage().nbytes() // 2)


OTHERS = [
    no_bias, wider, narrower_inputs, gru, half_a_bias, single_precision, on_meta,
    one_weight_in_single_precision, one_weight_on_meta, emits_more, no_layers, spread_weights,
    sparse_weights,
]  # fmt: skip


def outcome(net: NTM) -> Tensor | Exception:
    try:
        logits, _ = net(inputs())
        logits.square().sum().backward()
    except Exception as error:
        return error
    return logits


@pytest.mark.parametrize("engine", ["auto", "fused"])
@pytest.mark.parametrize("controller", ["lstm", "lstm_2"])
@pytest.mark.parametrize("change", OTHERS, ids=lambda one: one.__name__)
def test_another_layer_runs_as_in_the_plain_loop_or_is_an_error(change, controller, engine):
    got = []
    for used in (engine, "reference"):
        net = network(controller, used)
        change(net)
        got.append(outcome(net))
    fused, plain = got
    if isinstance(plain, Exception):
        assert isinstance(fused, Exception)
        assert str(fused)
    elif not isinstance(fused, Exception):
        torch.testing.assert_close(fused, plain)
        assert torch.isfinite(plain).all()
    else:
        assert engine == "fused"


@pytest.mark.parametrize("free", [freed, ends_freed])
def test_memory_that_was_given_back_is_refused(free):
    net = network()
    free(net)
    with pytest.raises((ValueError, RuntimeError), match="storage"):
        net(inputs())


@pytest.mark.parametrize("controller", ["lstm", "lstm_2", "feedforward"])
def test_one_weight_on_another_device_is_refused_before_any_number(controller):
    """With one on ``meta`` torch would only work out shapes, and hand out what memory held."""
    names = [name for name, _ in network(controller).named_parameters() if "output" not in name]
    for name in names:
        net = network(controller)
        module = net.get_submodule(name.rpartition(".")[0])
        weight = module.get_parameter(name.rpartition(".")[2])
        setattr(module, name.rpartition(".")[2], nn.Parameter(weight.detach().to("meta")))
        with pytest.raises((ValueError, RuntimeError), match="meta"), torch.no_grad():
            net(inputs())


def test_a_tensor_left_over_from_a_transform_is_one_like_any_other():
    kept = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(x)
        return x.square().sum()

    net = network()
    torch.func.grad(keeps)(inputs())
    assert torch.equal(net(kept[0])[0], net(inputs())[0])


# --- What people do with modules


def test_a_dropout_that_was_replaced_is_called():
    for part in (nn.Identity(), nn.AlphaDropout(0.0)):
        net, plain = both(network())
        net.controller.dropout, plain.controller.dropout = part, part
        torch.testing.assert_close(net(inputs())[0], plain(inputs())[0])


def test_shapes_without_data():
    net = network().to("meta")
    logits, state = net(inputs().to("meta"))
    assert logits.device.type == state.memory.device.type == "meta"
    assert logits.shape == (4, 2, OUT)


@pytest.mark.parametrize("engine", ["auto", "reference", "fused"])
def test_inputs_of_another_precision_are_refused(engine):
    net = network(engine=engine)
    for given in (inputs().float(), inputs().half(), inputs().long(), inputs().bool()):
        with pytest.raises(
            (ValueError, TypeError), match=r"inputs must be in torch\.float64, .* got"
        ):
            net(given)


def test_a_packed_sequence_is_refused_with_what_to_do():
    packed = nn.utils.rnn.pack_sequence([inputs()[:, 0], inputs()[:2, 0]])
    with pytest.raises(TypeError, match=r"inputs must be a tensor, got PackedSequence: .*mask"):
        network()(packed)


@pytest.mark.parametrize("given", [[[1.0]], None, "inputs", 3.0], ids=repr)
def test_what_is_no_tensor_is_refused(given):
    with pytest.raises(TypeError, match="inputs must be a tensor, got"):
        network()(given)


@pytest.mark.filterwarnings("ignore")  # torch's, that quantisation moves to another package
def test_dynamic_quantisation_runs():
    net = network().float().eval()
    kinds = {nn.Linear, nn.LSTMCell}
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), kinds)
    exact, rough = net(inputs().float())[0], quantised(inputs().float())[0]
    assert 0 < (exact - rough).abs().max() < 0.1


# --- The state


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


STATES: dict[str, Callable] = {
    "itself": lambda state: state,
    "a tuple": tuple,
    "a list": lambda state: [*state[:3], list(state[3])],
    "saved": saved,
    "copied": copy.deepcopy,
    "flattened": lambda state: pytree.tree_unflatten(*reversed(pytree.tree_flatten(state))),
    "moved": lambda state: pytree.tree_map(torch.clone, state),
}


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("way", STATES)
@torch.no_grad()
def test_a_state_goes_on_whatever_it_went_through(way, engine):
    net, x = network("lstm_2", engine), inputs(6)
    whole, end = net(x)
    _, state = net(x[:2])
    logits, after = net(x[2:], STATES[way](state))
    torch.testing.assert_close(logits, whole[2:])
    torch.testing.assert_close(after.memory, end.memory)
    assert type(after) is type(end)


@pytest.mark.parametrize(
    ("given", "got"), [((1, 2), "tuple of 2"), (3.0, "float"), ([], "list of 0")]
)
def test_what_is_no_state_is_refused(given, got):
    parts = r"\(memory, weightings, reads, controller\)"
    said = rf"^state must be an NTMState or a tuple {parts}, got {got}$"
    with pytest.raises(ValueError, match=said):
        network()(inputs(), given)


@pytest.mark.parametrize("engine", ["auto", "reference", "fused"])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_network_is_copied_exported_saved_and_compiled(controller, engine):
    net, x = network(controller, engine), inputs()
    state = net(x)[1]
    expected, end = net(x, state)
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, (x, state)), file)
    file.seek(0)
    for made in (
        copy.deepcopy(net),
        torch.export.load(file).module(),
        torch.compile(net, backend="eager"),
    ):
        logits, after = made(x, state)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(after.weightings, end.weightings)


@pytest.mark.parametrize(
    "net",
    [network("lstm"), network("lstm_2", "reference"), LSTM(WIDTH, OUT, H, initial_state="zeros")],
    ids=["fused", "reference", "baseline"],
)
def test_a_program_exported_from_the_first_state_goes_on_from_any(net):
    net.double()
    state, answers = net.initial_state(2), []
    expected, _ = net(inputs())
    step = torch.export.export(net, (inputs()[:1], state)).module()
    for x in inputs().split(1):
        logits, state = step(x, state)
        answers.append(logits)
    torch.testing.assert_close(torch.cat(answers), expected)
