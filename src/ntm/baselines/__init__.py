"""Networks to compare with, each with the contract of `ntm.NTM`."""

from ntm.baselines.lstm import LSTM

__all__ = ["LSTM"]
