"""What is trained: the `Task` protocol and the built-in tasks."""

from tacit.tasks.task import Augments, Follows, Records, Summarises, Task, load_task, names_of_metrics

__all__ = ["Augments", "Follows", "Records", "Summarises", "Task", "load_task", "names_of_metrics"]
