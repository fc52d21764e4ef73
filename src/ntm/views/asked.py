"""What an evaluation is asked for: the points and kinds of a task, as configurations have them."""

from __future__ import annotations

from typing import Any

from ntm.commands.configuration import ConfigurationError, plain
from ntm.tasks import Task


def evaluation_points(task: Task, given: Any, key: str) -> list[Any]:
    """Points as a configuration holds them: numbers by name, or bare where there is one.

    Args:
        task: Whose points they are.
        given: A list of what `Task.point` takes; None for those that the task itself shows.
        key: What they were given for.

    Raises:
        ConfigurationError: They are no such list; the message begins with the key.

    """
    wanted = list(task.shown) if given is None else plain(given)
    if not isinstance(wanted, list) or not wanted:
        raise ConfigurationError(f"{key} must be a list of one point or more, got {wanted!r}")
    if given is not None:
        try:
            wanted = [task.point(point) for point in wanted]
        except ValueError as error:
            raise ConfigurationError(f"{key}: {error}") from error
    named = [task.named(point) for point in wanted]
    return [next(iter(point.values())) if len(point) == 1 else point for point in named]


def evaluation_kinds(task: Task, given: Any, key: str) -> list[str]:
    """Kinds of sequence as a configuration holds them: ``all``, or a list of the task's.

    Raises:
        ConfigurationError: They are none; the message begins with the key.

    """
    kinds = plain(given)
    if kinds == "all":
        return list(task.kinds)
    if not isinstance(kinds, list) or not kinds or any(kind not in task.kinds for kind in kinds):
        raise ConfigurationError(
            f"{key} must be all or a list of {', '.join(task.kinds)}, which {task.name} has, "
            f"got {kinds!r}"
        )
    return list(dict.fromkeys(kinds))
