"""What is trained: the `Task` protocol and the built-in tasks."""

from tacit.tasks.task import Follows, Records, Summarises, Task, load_task, names_of_metrics

__all__ = ["Follows", "Records", "Summarises", "Task", "load_task", "names_of_metrics"]
