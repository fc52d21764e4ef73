"""The Neural Turing Machine: addressing, memory, heads, controllers, and the machine itself."""

from ntm.machine.controllers import FeedforwardController, LSTMController
from ntm.machine.ntm import NTM, NTMState, Trace

__all__ = ["NTM", "FeedforwardController", "LSTMController", "NTMState", "Trace"]
