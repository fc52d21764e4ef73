"""The same time loop for GPUs, in Triton; only `bounds` is loaded where it does not run."""
