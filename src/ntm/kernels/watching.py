"""Whether somebody looks on while torch works."""

from __future__ import annotations

import torch


def watched() -> bool:
    """Whether a compiler, a mode or a transform of torch is to see which operators are called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
