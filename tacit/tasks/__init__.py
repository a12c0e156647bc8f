"""What is trained: the `Task` protocol and the built-in tasks."""

from tacit.tasks.task import Augments, Records, Summarises, Task, load_task, names_of_metrics

__all__ = ["Augments", "Records", "Summarises", "Task", "load_task", "names_of_metrics"]
