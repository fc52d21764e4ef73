"""What the loops on a GPU can take; known without Triton.

Every value of a step is a tile that the threads of one program hold between them, so the tiles
decide what fits. They are as long as the next power of two in every direction.
"""

from __future__ import annotations

from collections.abc import Sequence

WARPS = 8
"""Of a program."""
WEIGHTS, MEMORY, HEADS, TURNS = 16384, 8192, 32768, 65536
"""Numbers of a tile, at most: of weights, used as they come; of memory, held from step to step with
its derivative, 32 registers of every thread each; of what all heads make of memory, and of masks
that turn weightings, both summed as they are made."""
LEAST_HIDDEN = 16
"""What H is padded to at least, so that products of blocks can be those of whole tiles."""
TOGETHER = 16
"""Sequences that share the weights they load where there are many; else each is on its own."""
MANY = 2048
"""From so many sequences on; below, a program for each keeps more of the device at work."""


def padded(H: int, N: int, M: int, R: int, W: int, shifts: int) -> dict[str, int]:
    """Lengths of the tiles, by their names in `ntm.kernels.cuda.loops`."""
    return {
        "HX": max(LEAST_HIDDEN, _power(H)),
        "NX": _power(N),
        "MX": _power(M),
        "RX": _power(R),
        "WX": _power(W),
        "SX": _power(shifts + 3),
    }


def hindrance(L: int, H: int, N: int, M: int, R: int, W: int, shifts: int) -> str | None:
    """What a machine of these sizes is too much for; None if it is not."""
    if L != 1:
        return f"is for controllers of one layer, got {L}"
    for name, tile, most in _tiles(padded(H, N, M, R, W, shifts)):
        if tile > most:
            return f"has room for {most} numbers of {name}, in powers of two, got {tile}"
    return None


def block(B: int, H: int, N: int, M: int, R: int, W: int, shifts: int) -> int:
    """Sequences that one program runs."""
    tiles = _tiles(padded(H, N, M, R, W, shifts))
    fits = all(TOGETHER * tile <= most for _, tile, most in tiles[1:])
    return TOGETHER if B >= MANY and fits else 1


def _tiles(lengths: dict[str, int]) -> Sequence[tuple[str, int, int]]:
    """What they are of, their numbers, and how many there may be; the weights' first."""
    HX, NX, MX, RX, WX, _ = lengths.values()
    heads = max(RX, WX)
    return [
        ("the controller's weights", HX * max(HX, heads * MX), WEIGHTS),
        ("memory", MX * NX, MEMORY),
        ("memory times heads", heads * MX * NX, HEADS),
        ("heads times locations squared", heads * NX * NX, TURNS),
    ]


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
