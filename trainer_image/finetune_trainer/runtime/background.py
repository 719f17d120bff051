"""Run a function in a thread while the caller prepares something else."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def start_thread(load: Callable[[], T]) -> Callable[[], T]:
    """Start ``load`` in a thread and return a function that waits for its result.

    The returned function raises what ``load`` raised. Call it once: this module keeps no reference to the result,
    because it may be a model whose memory is needed later.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="load")
    futures: list[Future[T]] = [pool.submit(load)]
    pool.shutdown(wait=False)
    return lambda: futures.pop().result()
