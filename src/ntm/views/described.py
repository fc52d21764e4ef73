"""A trained network as plain numbers, for what runs it without torch."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor, nn

from ntm.baselines import LSTM
from ntm.commands.configuration import ConfigurationError
from ntm.machine import NTM, FeedforwardController, LSTMController

LAYERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""Of an LSTM's layer, as torch names and orders them: gates i, f, g, o below one another."""


@torch.no_grad()
def describe(network: nn.Module) -> dict[str, Any]:
    """Sizes, names and weights of a network: all that ``assets/machine.js`` needs to run it.

    Raises:
        ConfigurationError: It is none of this project's networks, or parts of it were replaced.

    """
    if type(network) is LSTM:
        return _lstm(network)
    if type(network) is NTM:
        return _machine(network)
    raise _refused(f"a {type(network).__name__}")


def _machine(network: NTM) -> dict[str, Any]:
    start = network.initial_state(1)
    layout = network.layout
    return {
        "kind": "ntm",
        "locations": network.memory_size,
        "layout": layout._asdict(),
        "controller": _controller(network.controller, start.controller),
        "emit": _linear(network.emit),
        "output": _linear(network.output),
        "memory": _numbers(start.memory[0]),
        "weightings": _numbers(start.weightings[0]),
        "reads": _numbers(start.reads[0]),
    }


def _controller(controller: nn.Module, state: Any) -> dict[str, Any]:
    if type(controller) is LSTMController:
        layers = [_cell(layer, "") for layer in controller.layers]
        hidden, cell = (_numbers(part[:, 0]) for part in state)
        return {"kind": "lstm", "layers": layers, "hidden": hidden, "cell": cell}
    if type(controller) is FeedforwardController and isinstance(controller.activation, str):
        layers = [_linear(layer) for layer in controller.layers]
        return {"kind": "feedforward", "layers": layers, "activation": controller.activation}
    raise _refused(f"a controller of the kind {type(controller).__name__}")


def _lstm(network: LSTM) -> dict[str, Any]:
    layers = [_cell(network.lstm, f"_l{k}") for k in range(network.lstm.num_layers)]
    hidden, cell = (_numbers(part[:, 0]) for part in network.initial_state(1))
    return {
        "kind": "lstm",
        "controller": {"kind": "lstm", "layers": layers, "hidden": hidden, "cell": cell},
        "output": _linear(network.output),
    }


def _cell(layer: nn.Module, ending: str) -> dict[str, Any]:
    if type(layer) not in (nn.LSTM, nn.LSTMCell):
        raise _refused(f"a layer of the kind {type(layer).__name__}")
    return {name: _numbers(getattr(layer, name + ending)) for name in LAYERS}


def _linear(layer: nn.Module) -> dict[str, Any]:
    if type(layer) is not nn.Linear:
        raise _refused(f"a layer of the kind {type(layer).__name__}")
    return {"weight": _numbers(layer.weight), "bias": _numbers(layer.bias)}


def _numbers(values: Tensor) -> dict[str, Any]:
    """A tensor's shape, and its elements in their order as little-endian bytes in base 64."""
    size = 8 if values.dtype == torch.float64 else 4
    array = values.detach().cpu().to(torch.float64).numpy()  # NumPy has no bfloat16
    content = array.astype(f"<f{size}").tobytes()
    return {
        "shape": list(array.shape),
        "bytes": size,
        "data": base64.b64encode(content).decode(),
    }


def _refused(what: str) -> ConfigurationError:
    return ConfigurationError(
        "run must be of ntm.NTM with a controller of this project, or of ntm.LSTM, for a page that "
        f"runs the network itself; got {what}"
    )
