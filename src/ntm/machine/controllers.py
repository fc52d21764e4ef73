"""The network that drives the heads (G14 section 3.4).

A controller maps ((B, input_size), state) to ((B, H), state), one time step at a time; it says its
``output_size`` H, and ``initial_state(batch_size)`` gives the state before the first step. `adapt`
makes one of any module.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from ntm.checks import check_at_least, check_choice, check_dropout
from ntm.kernels.watching import transformed
from ntm.machine.heads import ACTIVATIONS

UPPER_LAYERS_START = 3.0
"""Times torch's own: what an LSTM layer first makes of the layer below."""


class LSTMController(nn.Module):
    """Layers of LSTM cells.

    The state is that of ``torch.nn.LSTM``: a pair (hidden, cell), each (num_layers, B, H).

    Args:
        input_size: Width of the input, see `ntm.NTM.controller_input_size`.
        hidden_size: H, of every layer.
        num_layers: Layers, at least 1.
        dropout: Share of each layer's outputs that is dropped in training, in [0, 1).
        initial_state: ``zeros``, or ``learned`` with one trained vector a layer.
        forget_bias: Added to the forget gates' biases at the start. Below 0 a cell forgets soon:
            what has to be kept goes to memory, and the controller is less inclined to count steps,
            which goes wrong beyond the lengths of training.

    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        num_layers: int = 1,
        dropout: float = 0.0,
        initial_state: str = "zeros",
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least("hidden_size", hidden_size, 1)
        check_at_least("num_layers", num_layers, 1)
        check_dropout(dropout)
        check_choice("initial_state", initial_state, ("zeros", "learned"))
        self.output_size = hidden_size
        # Cells, because torch.nn.LSTM costs several times as much when called a step at a time.
        sizes = [input_size] + [hidden_size] * num_layers
        self.layers = nn.ModuleList(map(nn.LSTMCell, sizes[:-1], sizes[1:]))
        # By torch's start each layer hands on a small part of what comes in; from two layers the
        # heads would hear next to nothing of the input (docs/recipe.md).
        with torch.no_grad():
            for layer in self.layers[1:]:
                cast(nn.LSTMCell, layer).weight_ih.mul_(UPPER_LAYERS_START)
            for layer in self.layers:
                _, forget, _, _ = cast(nn.LSTMCell, layer).bias_ih.chunk(4)
                forget += forget_bias
        self.dropout = nn.Dropout(dropout)
        learned = initial_state == "learned"
        self.initial_hidden = learned_vector(num_layers, hidden_size) if learned else None
        self.initial_cell = learned_vector(num_layers, hidden_size) if learned else None

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """The pair (hidden, cell), each (num_layers, B, H)."""
        shape = (len(self.layers), batch_size, self.output_size)
        if self.initial_hidden is None or self.initial_cell is None:
            like = next(self.parameters(), torch.empty(0))
            # Two tensors: a program exported from one in both places takes them for one.
            return like.new_zeros(shape), like.new_zeros(shape)
        hidden, cell = self.initial_hidden.unsqueeze(1), self.initial_cell.unsqueeze(1)
        return hidden.expand(shape), cell.expand(shape)

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step: (B, input_size) to (B, H)."""
        hidden, cell = [], []
        for layer, h, c in zip(self.layers, *state, strict=True):
            # torch's own cell takes no part in `torch.func.vmap`.
            by_hand = transformed() and is_plainly(nn.LSTMCell, layer) and not hooked(layer)
            h, c = _cell(layer, inputs, h, c) if by_hand else layer(inputs, (h, c))
            inputs = self.dropout(h)
            hidden.append(h)
            cell.append(c)
        return inputs, (torch.stack(hidden), torch.stack(cell))


def _cell(layer: nn.Module, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """What ``torch.nn.LSTMCell`` computes."""
    cell = cast(nn.LSTMCell, layer)
    gates = F.linear(inputs, cell.weight_ih, cell.bias_ih)
    i, f, g, o = (gates + F.linear(h, cell.weight_hh, cell.bias_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class FeedforwardController(nn.Module):
    """Layers of linear maps, each followed by an activation; no state.

    Args:
        input_size: Width of the input, see `ntm.NTM.controller_input_size`.
        hidden_size: H, of every layer.
        num_layers: Layers, at least 1.
        activation: One of ``identity, tanh, sigmoid, relu``, or any function of a tensor.
        dropout: Share of each layer's outputs that is dropped in training, in [0, 1).

    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        num_layers: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least("hidden_size", hidden_size, 1)
        check_at_least("num_layers", num_layers, 1)
        check_dropout(dropout)
        if isinstance(activation, str):
            check_choice("activation", activation, ACTIVATIONS)
        self.output_size = hidden_size
        self.activation = activation
        sizes = [input_size] + [hidden_size] * num_layers
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.dropout = nn.Dropout(dropout)

    def initial_state(self, batch_size: int) -> None:
        """There is none."""
        return

    def forward(self, inputs: Tensor, state: None = None) -> tuple[Tensor, None]:
        """One step: (B, input_size) to (B, H)."""
        named = self.activation
        activate = ACTIVATIONS[named] if isinstance(named, str) else named
        for layer in self.layers:
            inputs = self.dropout(activate(layer(inputs)))
        return inputs, None


class AdaptedController(nn.Module):
    """A user's own module as a controller.

    A module whose ``forward`` takes one argument is stateless. One that takes two is called as
    ``module(inputs, state)`` and returns (output, state); its first state comes from
    ``module.initial_state(batch_size)`` where it has that method, and is None otherwise.

    Raises:
        ValueError: The module does not take inputs of this width one step at a time.

    """

    def __init__(self, module: nn.Module, input_size: int) -> None:
        super().__init__()
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            raise ValueError(
                f"controller must map (inputs, state) to (output, state) one step at a time, got "
                f"torch.nn.{type(module).__name__}, which has another convention; use "
                "ntm.LSTMController, or a module of your own around it"
            )
        self.module = module
        self.stateful = len(_positional(module.forward)) > 1
        self.output_size = self._probe(input_size)

    def _probe(self, input_size: int) -> int:
        like = next(self.module.parameters(), torch.empty(0))
        try:
            with torch.no_grad():  # a copy, so that nothing of the user's module changes
                tried = copy.deepcopy(self).eval()
                outputs, _ = tried(like.new_zeros(2, input_size), tried.initial_state(2))
        except Exception as error:
            raise ValueError(
                f"controller must accept inputs of shape (B, {input_size}), but "
                f"{type(self.module).__name__} failed on them: {error}"
            ) from error
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != 2:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"controller must return an output of shape (B, H), got {got} at B=2")
        return outputs.shape[1]

    def initial_state(self, batch_size: int) -> Any:
        """The module's own first state, or None."""
        make = getattr(self.module, "initial_state", None)
        return make(batch_size) if self.stateful and make is not None else None

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of the module."""
        return self.module(inputs, state) if self.stateful else (self.module(inputs), None)


def adapt(
    module: nn.Module, input_size: int
) -> LSTMController | FeedforwardController | AdaptedController:
    """The module itself where it already is one of our controllers, else an adapter around it.

    Raises:
        ValueError: The module does not take inputs of this width one step at a time.

    """
    if isinstance(module, (LSTMController, FeedforwardController)):
        accepted = next(module.layers.parameters()).shape[1]
        if accepted != input_size:
            raise ValueError(
                f"controller must accept inputs of width {input_size}, got one that accepts "
                f"{accepted}; see NTM.controller_input_size"
            )
        return module
    return AdaptedController(module, input_size)


def learned_vector(*shape: int) -> nn.Parameter:
    """A trained initial state, first uniform in ±0.1."""
    return nn.Parameter(torch.empty(*shape).uniform_(-0.1, 0.1))


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def is_plainly(kind: type[nn.Module], module: nn.Module) -> bool:
    """Whether a module does what its kind does; whether there are hooks is for `hooked` to say.

    A parametrised one does: its class is another, and its weights are what they come to.
    """
    return getattr(type(module), "forward", None) is kind.forward and not is_patched(module)


def is_patched(module: nn.Module) -> bool:
    """Whether calling a module runs something that was put in the place of its own."""
    return type(module).__call__ is not nn.Module.__call__ or not vars(module).keys().isdisjoint(
        ("forward", "_call_impl", "__call__")
    )


def hooked(*modules: nn.Module) -> bool:
    """Whether something of a module's happens only when it is called."""
    return bool(_has_any_global_hook()) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )
