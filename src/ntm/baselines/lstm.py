"""The baseline of G14: layers of LSTM and a linear map, with the contract of `ntm.NTM`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ntm.checks import check_at_least, check_choice, check_dropout, check_inputs, no_tensor

LSTMState = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """An LSTM network with the calling convention of ``torch.nn.LSTM``.

    Args:
        input_size: I, width of the inputs.
        output_size: O, width of the logits.
        hidden_size: H, of every layer (G14: 256).
        num_layers: Layers, at least 1 (G14: 3).
        dropout: Share of each layer's outputs that is dropped in training, in [0, 1).
        initial_state: ``learned`` with one trained vector a layer, or ``zeros``.
        batch_first: Inputs and logits are (B, T, ·) instead of (T, B, ·).

    Inputs:
        inputs: (T, B, I).
        state: A pair (hidden, cell), each (num_layers, B, H); absent, the sequences start afresh.

    Outputs:
        logits: (T, B, O).
        state: After the last step; pass it in again to go on.

    Raises:
        ValueError: A size or name is out of range; the message begins with the argument's name.

    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 256,
        num_layers: int = 3,
        dropout: float = 0.0,
        initial_state: str = "learned",
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("input_size", input_size, 1)
        check_at_least("output_size", output_size, 1)
        check_at_least("hidden_size", hidden_size, 1)
        check_at_least("num_layers", num_layers, 1)
        check_dropout(dropout)
        check_choice("initial_state", initial_state, ("zeros", "learned"))
        self.input_size = input_size
        self.output_size = output_size
        self.batch_first = batch_first
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, output_size)
        shape = (num_layers, hidden_size)
        learned = initial_state == "learned"
        self.initial_hidden = nn.Parameter(torch.zeros(shape)) if learned else None
        self.initial_cell = nn.Parameter(torch.zeros(shape)) if learned else None

    def initial_state(self, batch_size: int) -> LSTMState:
        """The state before the first step of ``batch_size`` sequences."""
        shape = (self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        if self.initial_hidden is None or self.initial_cell is None:
            weight = self.output.weight
            # Two tensors: a program exported from one in both places takes them for one.
            return weight.new_zeros(shape), weight.new_zeros(shape)
        hidden, cell = self.initial_hidden.unsqueeze(1), self.initial_cell.unsqueeze(1)
        return hidden.expand(shape).contiguous(), cell.expand(shape).contiguous()

    def is_fast_on(self, device: str, dtype: torch.dtype) -> bool:
        """Whether there is a kernel for whole sequences: cuDNN's, or that of the CPU."""
        return device in ("cuda", "cpu")

    def forward(self, inputs: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Run over whole sequences; see the class for shapes."""
        if not isinstance(inputs, Tensor):
            raise no_tensor(inputs)
        lowered = torch.is_autocast_enabled(inputs.device.type)
        own = inputs.dtype if lowered else self.output.weight.dtype
        check_inputs(inputs.shape, self.input_size, self.batch_first, inputs.dtype, own)
        if self.batch_first:
            inputs = inputs.transpose(0, 1)
        if state is None:
            state = self.initial_state(inputs.shape[1])
        outputs, state = self.lstm(inputs, state)
        logits = self.output(self.dropout(outputs))
        return (logits.transpose(0, 1) if self.batch_first else logits), state
