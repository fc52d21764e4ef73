"""The Neural Turing Machine: addressing, memory, heads, controllers, and the machine itself."""

from ntm.machine.controllers import FeedforwardController, LSTMController
from ntm.machine.ntm import NTM, NTMState, Trace
from ntm.machine.penalty import SharpeningPenalty

__all__ = [
    "NTM",
    "FeedforwardController",
    "LSTMController",
    "NTMState",
    "SharpeningPenalty",
    "Trace",
]
