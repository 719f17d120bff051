"""Run tasks side by side, each in a thread; the first failure ends the others."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, TypeVar

from devcluster import commands
from devcluster.progress import waiting

MAX_TASKS = 64
T = TypeVar("T")


class TaskGroup:
    """Tasks that run side by side, each in a thread of its own, as in asyncio.TaskGroup.

    The block ends when all tasks have ended. When one fails, `commands.cancel` ends the programs of the others, and
    the first error is raised.
    """

    def __init__(self) -> None:
        """Make an empty group."""
        self._threads = ThreadPoolExecutor(MAX_TASKS)
        self._futures: list[Future[Any]] = []

    def __enter__(self) -> "TaskGroup":
        """Begin the group."""
        return self

    def start(self, title: str, action: Callable[[], T], after: Sequence[Future[Any]] = ()) -> Future[T]:
        """Run an action as soon as the tasks of `after` have succeeded, and return its future result.

        Args:
            title: Title of the task in the display while it waits.
            action: Runs in a thread of its own.
            after: Tasks that must succeed first.
        """
        if len(self._futures) == MAX_TASKS:
            raise ValueError(f"a group has at most {MAX_TASKS} tasks, each in a thread of its own")

        def run() -> T:
            with waiting(title):
                for needed in after:
                    needed.result()
            return action()

        future = self._threads.submit(run)
        self._futures.append(future)
        return future

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for all tasks, and raise the error of the first that failed."""
        try:
            if error is None:
                wait(self._futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            self._end_others()
            raise
        failure = next((task.exception() for task in self._futures if task.done() and task.exception()), None)
        if error is not None or failure is not None:
            self._end_others()
        self._threads.shutdown()
        if error is None and failure is not None:
            raise failure

    def _end_others(self) -> None:
        commands.cancel()
        wait(self._futures)
        commands.resume()
