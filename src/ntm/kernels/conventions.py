"""What the compiled functions and those who call them must agree on."""

STRIDE = 4
"""The forward pass keeps the memory of every so many steps."""

IDENTITY, TANH, SIGMOID, RELU = range(4)
ACTIVATIONS = {"identity": IDENTITY, "tanh": TANH, "sigmoid": SIGMOID, "relu": RELU}
"""Codes of the maps that keys and add vectors pass through."""
