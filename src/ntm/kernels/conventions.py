"""What the compiled functions and those who call them must agree on."""

from __future__ import annotations

from collections.abc import Sequence

STRIDE = 4
"""The forward pass keeps the memory of every so many steps."""

IDENTITY, TANH, SIGMOID, RELU = range(4)
ACTIVATIONS = {"identity": IDENTITY, "tanh": TANH, "sigmoid": SIGMOID, "relu": RELU}
"""Codes of the maps that keys and add vectors pass through."""

FIELDS = (
    "claimed", "workers", "block", "B", "T", "L", "I", "H", "N", "M", "R", "W", "shifts", "key",
    "add", "read_first", "activation", "kept", "step", "least", "room", "scratch",
)  # fmt: skip
"""What a job begins with: the row of whole numbers that tells a compiled function what to do.

After them come the addresses of dense tensors; then address and strides of loose ones, of three
dimensions, which may lie anyhow or be missing (address 0).

Workers is how many threads have taken their part of the scratch. Where its address is 0, the
function only notes how much room a thread needs, in bytes.
"""
CLAIMED, WORKERS, BLOCK, BATCH_SIZE = range(4)
ACTIVATION, KEPT, STEP, LEAST, ROOM, SCRATCH = range(len(FIELDS) - 6, len(FIELDS))
DENSE = len(FIELDS)

LONGEST_BLOCK = 4
"""Sequences that share a product with the controller's weights, at most."""


def kept_shapes(
    controller: str, sizes: Sequence[int], layout: Sequence[int], memories: int
) -> list[tuple[int, ...]]:
    """Of what is kept of a run for the backward pass, one after the other.

    Of an LSTM gates, hidden, reads, cells, weightings and memories; of a feedforward network
    values, reads, weightings and memories. What is kept of T + 1 moments has the state before the
    first step in front.

    Args:
        controller: ``lstm`` or ``feedforward``.
        sizes: B, T, L, I, H, N, M.
        layout: R, W and what follows.
        memories: How many are kept: of every `STRIDE`-th step, or none.

    """
    B, T, L, _, H, N, M = sizes
    R, W = layout[:2]
    reads, after = (T + 1, B, R * M), [(T + 1, B, R + W, N), (memories, B, M, N)]
    if controller == "lstm":
        passing = L, T + 1, B, H
        return [(L, T, B, 4 * H), passing, reads, passing, *after]
    return [(L, T, B, H), reads, *after]
