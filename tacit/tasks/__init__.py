"""What is trained: the `Task` protocol and the built-in tasks."""

from tacit.tasks.task import Records, Summarises, Task, load_task, names_of_metrics

__all__ = ["Records", "Summarises", "Task", "load_task", "names_of_metrics"]
