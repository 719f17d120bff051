"""Train with this process and a second one, which is kept between attempts: to import torch takes long."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_trainer import attempt
from finetune_trainer.data.sources import Inputs
from finetune_trainer.runtime.process import Process, library_variables
from finetune_trainer.runtime.settings import Settings


def follow_for_ever(pipe: Connection) -> None:
    """The life of the second process."""
    from finetune_trainer.runtime import logs
    from finetune_trainer.workers import train_in_worker

    logs.configure(worker="the second")
    while (request := pipe.recv()) is not None:
        pipe.send(train_in_worker(*request))


class Second:
    """In the place of ``workers.Workers``."""

    pipe: Connection

    def __init__(self, *_: Any) -> None:
        """Begin without a request to stop."""
        self.asked = False

    def start(self, settings: Settings, inputs: Inputs, patience_seconds: float) -> None:
        """Have it follow along."""
        others = settings.process.local_workers()
        assert len(others) < 2
        if others:
            self.pipe.send((settings, inputs, others[0], settings.scratch / "run" / "said.json", patience_seconds))
            self.asked = True

    def failure(self, seconds: float = 0.0) -> tuple[Reason, str] | None:
        """Nobody asks: it is waited for."""
        return None

    def close(self) -> None:
        """Wait for its part."""
        if self.asked and not self.pipe.poll(60):
            raise AssertionError("the second process does not come to its end")
        if self.asked:
            self.pipe.recv()
        forget()


def forget() -> None:
    """Let this process be one by itself again."""
    from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

    for name in library_variables(Process(world_size=2, local_world_size=2)):
        os.environ.pop(name, None)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@contextmanager
def second_process() -> Iterator[None]:
    """Within this block a job with two GPUs trains in two processes."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=follow_for_ever, args=(theirs,), daemon=True)
    process.start()
    Second.pipe = ours
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "Workers", Second)
        try:
            yield
        finally:
            ours.send(None)
            process.join(5)
            process.kill()
