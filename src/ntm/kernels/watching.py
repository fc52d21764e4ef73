"""Whether somebody looks on while torch works, or keeps its things."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of `torch.func` is at work, or derivatives are taken forward.

    Compiled functions have neither: such a derivative would come out as zero.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def watched() -> bool:
    """Whether a compiler, a mode or a transform of torch is to see which operators are called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def kept_elsewhere() -> bool:
    """Whether what is saved for the backward pass passes through hooks.

    They may put it elsewhere, or drop it and have the steps run again (`torch.utils.checkpoint`).
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
