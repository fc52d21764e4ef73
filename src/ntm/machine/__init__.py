"""The Neural Turing Machine: addressing, memory, heads, controllers, and the machine itself."""

from ntm.machine.controllers import FeedforwardController, LSTMController
from ntm.machine.ntm import NTM, NTMState, Trace
from ntm.machine.penalty import EffortPenalty

__all__ = [
    "NTM",
    "EffortPenalty",
    "FeedforwardController",
    "LSTMController",
    "NTMState",
    "Trace",
]
