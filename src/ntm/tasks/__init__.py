"""What is to be learned: one file a task."""

from ntm.tasks.copy import Copy
from ntm.tasks.task import Batch, Task

__all__ = ["Batch", "Copy", "Task"]
