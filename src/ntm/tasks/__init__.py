"""What is to be learned: one file a task."""

from ntm.tasks.associative_recall import AssociativeRecall
from ntm.tasks.copy import Copy
from ntm.tasks.dynamic_ngrams import DynamicNGrams
from ntm.tasks.priority_sort import PrioritySort
from ntm.tasks.repeat_copy import RepeatCopy
from ntm.tasks.task import Batch, Goal, Point, Ranges, Task

__all__ = [
    "AssociativeRecall",
    "Batch",
    "Copy",
    "DynamicNGrams",
    "Goal",
    "Point",
    "PrioritySort",
    "Ranges",
    "RepeatCopy",
    "Task",
]
