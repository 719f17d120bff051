"""The keyed queue: once per key, delayed, never with two workers."""

import asyncio

import pytest

from finetune_operator.queue import PATIENCE, KeyedQueue


async def ready(queue: KeyedQueue[str]) -> list[str]:
    """Take everything that is ready now."""
    keys = []
    while len(queue):
        keys.append(await queue.get())
    return keys


def test_a_key_is_there_once() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        for key in ("a", "b", "a"):
            queue.add(key)
        assert await ready(queue) == ["a", "b"]

    asyncio.run(run())


def test_a_key_is_never_with_two_workers_and_comes_back() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert await ready(queue) == ["a"]
        queue.done("a")
        assert len(queue) == 0

    asyncio.run(run())


def test_begun_work_comes_before_new_work() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        for key in ("new 1", "new 2", "new 3"):
            queue.add(key, is_new=True)
        queue.add("begun 1")
        queue.add("new 3")
        assert len(queue) == 4
        assert await ready(queue) == ["begun 1", "new 3", "new 1", "new 2"]

    asyncio.run(run())


def test_new_work_is_not_starved_by_begun_work() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add("new 1", is_new=True)
        queue.add("new 2", is_new=True)
        order = []
        for number in range(3 * PATIENCE):
            queue.add(f"begun {number}")
            order.append(await queue.get())
        assert [index for index, key in enumerate(order) if key.startswith("new")] == [PATIENCE, 2 * PATIENCE + 1]

    asyncio.run(run())


def test_a_delay_ends_in_the_queue_and_the_shorter_one_counts() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add_after("a", 60)
        queue.add_after("a", 0)
        queue.add_after("a", 60)
        assert len(queue) == 0
        assert await asyncio.wait_for(queue.get(), 5) == "a"

    asyncio.run(run())


def test_a_pass_cancels_the_delay_that_an_earlier_one_asked_for() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add_after("a", 0.01)
        queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.1)

    asyncio.run(run())


def test_failures_in_a_row_wait_longer_up_to_a_cap() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue(first_backoff=1, last_backoff=10)
        assert [queue.retry("a") for _ in range(6)] == [1, 2, 4, 8, 10, 10]
        assert queue.retry("b") == 1
        queue.forget("a")
        assert queue.retry("a") == 1

    asyncio.run(run())


def test_every_key_reaches_one_of_many_waiting_workers() -> None:
    async def run() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        keys: list[str] = []
        all_seen = asyncio.Event()

        async def work() -> None:
            while True:
                key = await queue.get()
                await asyncio.sleep(0)
                keys.append(key)
                queue.done(key)
                if len(keys) == 20:
                    all_seen.set()

        workers = [asyncio.create_task(work()) for _ in range(4)]
        await asyncio.sleep(0)
        for number in range(20):
            queue.add(f"key-{number}")
        await all_seen.wait()
        for worker in workers:
            worker.cancel()
        assert sorted(keys) == sorted(f"key-{number}" for number in range(20))

    asyncio.run(asyncio.wait_for(run(), 10))
