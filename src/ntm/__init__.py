"""Neural Turing Machines and an LSTM baseline, with the experiments around them.

Symbols in all docstrings:

=====  ==============================================
T      time steps
B      sequences in a batch
I, O   width of inputs and of logits
H      size of the controller's output
N, M   memory: N locations of M elements
R, W   read heads and write heads
S      shift range: heads may shift by −S … S
=====  ==============================================

G14 is Graves, Wayne, Danihelka 2014, arXiv 1410.5401; CB18 is Collier, Beel 2018, arXiv 1807.08518.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntm.baselines import LSTM
    from ntm.machine import NTM, FeedforwardController, LSTMController, NTMState, Trace
    from ntm.views.evaluation import load

__all__ = ["LSTM", "NTM", "FeedforwardController", "LSTMController", "NTMState", "Trace", "load"]

_HOMES = {"LSTM": "ntm.baselines", "load": "ntm.views.evaluation"}


def __getattr__(name: str) -> Any:
    """Import on first use: a wrong command is answered before torch is loaded."""
    if name not in __all__:
        raise AttributeError(f"module 'ntm' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "ntm.machine")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
