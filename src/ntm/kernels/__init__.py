"""Faster ways to run the machine's time loop; plain tensors in, plain tensors out."""
