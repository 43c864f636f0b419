"""A bounded pool of threads that serves groups in turn.

A group is a sink (or a source): however many tasks one group has and however long they block, it holds at most
`per_group` threads, and the other groups' tasks go round it. Within a group tasks are served in the order of asking.
A task is a short step of a longer work, so nobody holds a thread for long by plan; it returns whether it is to be
queued again for its next step, which wakes no other thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

import structlog

_logger = structlog.get_logger(__name__)
Task = Callable[[], bool | None]


class Workers:
    """Threads are started when there is work for them, up to `count`."""

    def __init__(self, name: str, count: int, *, per_group: int | None = None) -> None:
        self._name = name
        self._count = count
        self._per_group = per_group if per_group is not None else count
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._active: dict[str, int] = {}
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def submit(self, group: str, task: Task) -> None:
        """Do `task` when it is the group's turn; nothing once stopped."""
        with self._changed:
            if self._stopped:
                return
            self._waiting.setdefault(group, deque()).append(task)
            waiting = sum(map(len, self._waiting.values()))
            if waiting > self._idle and len(self._threads) < self._count:
                thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            else:
                self._changed.notify()

    def stop(self) -> None:
        """Take no more tasks and forget those that wait; `join`, behind it, waits for the ones being done."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()

    def join(self, timeout_seconds: float) -> bool:
        """Whether every task has ended within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active, timeout_seconds)

    def _run(self) -> None:
        while (found := self._next()) is not None:
            group, task = found
            again = None
            try:
                again = task()
            except Exception:  # a task that lets an error out is a defect; the thread serves the others
                _logger.exception("defect_in_task", group=group)
            finally:
                self._done(group, task if again else None)

    def _next(self) -> tuple[str, Task] | None:
        with self._changed:
            while not self._stopped:
                for group, tasks in self._waiting.items():
                    if self._active.get(group, 0) < self._per_group:
                        task = tasks.popleft()
                        if tasks:
                            self._waiting.move_to_end(group)
                        else:
                            del self._waiting[group]
                        self._active[group] = self._active.get(group, 0) + 1
                        return group, task
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
        return None

    def _done(self, group: str, again: Task | None) -> None:
        """The place in the group is free; the thread that was in it takes the next task itself."""
        with self._changed:
            self._active[group] -= 1
            if not self._active[group]:
                del self._active[group]
            if self._stopped:
                self._changed.notify_all()
            elif again is not None:
                self._waiting.setdefault(group, deque()).append(again)
