"""Work that is begun in a thread of its own, because what it is needed for has to wait for other things anyway."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def start_thread(load: Callable[[], T]) -> Callable[[], T]:
    """Begin at once; what is returned waits for the end and hands the result over, or raises what ``load`` raised.

    It can be called once: nothing here keeps the result, which may be a model whose memory is needed later.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="load")
    begun: list[Future[T]] = [pool.submit(load)]
    pool.shutdown(wait=False)
    return lambda: begun.pop().result()
