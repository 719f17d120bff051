"""Train with this process and a second one, which is kept between attempts: to import torch takes long."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_trainer import attempt
from finetune_trainer.data.sources import Inputs
from finetune_trainer.distributed import process_group
from finetune_trainer.runtime.process import Process, library_variables
from finetune_trainer.runtime.settings import Settings

TIMEOUT = timedelta(minutes=2)
"""How long one of the two waits for the other: pytest's own limit can't end a wait in torch's C++."""


def run_second_process(pipe: Connection) -> None:
    """Run the second process."""
    import torch.distributed as dist

    from finetune_trainer.runtime import logs
    from finetune_trainer.workers import train_in_worker

    process_group.TIMEOUT = TIMEOUT
    logs.configure(worker="the second")
    while (request := pipe.recv()) is not None:
        if callable(request):
            request()
        else:
            code = train_in_worker(*request)
            if dist.is_initialized():  # after a failure; a worker of a pod ends, which closes its connections too
                dist.destroy_process_group()
            pipe.send(code)


class SecondProcess:
    """The second process, in place of ``workers.Workers``."""

    pipe: Connection

    def __init__(self, *_: Any) -> None:
        """Begin without a part in an attempt."""
        self.is_started = False
        self.failure_file = Path()

    def start(self, settings: Settings, inputs: Inputs, patience_seconds: float) -> None:
        """Let the second process take part in an attempt, if the job has two GPUs."""
        local_workers = settings.process.local_workers()
        assert len(local_workers) < 2
        if local_workers:
            self.failure_file = settings.scratch / "run" / "failure.json"
            self.pipe.send((settings, inputs, local_workers[0], self.failure_file, patience_seconds))
            self.is_started = True

    def failure(self, seconds: float = 0.0) -> tuple[Reason, str] | None:
        """Return why it has failed, if it has."""
        if not self.is_started or not self.pipe.poll(seconds) or not self.failure_file.is_file():
            return None
        failure = json.loads(self.failure_file.read_text())
        return Reason(failure["reason"]), f"process 2 of 2: {failure['message']}"

    def stop_watching(self) -> None:
        """Go on whatever happens to it: it is never watched."""

    def close(self) -> None:
        """Wait for its end, and leave the process group."""
        if self.is_started and not self.pipe.poll(60):
            raise AssertionError("the second process does not come to its end")
        if self.is_started:
            self.pipe.recv()
        leave_process_group()


def leave_process_group() -> None:
    """Take back what makes this process one of two."""
    from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

    for name in library_variables(Process(world_size=2, local_world_size=2)):
        os.environ.pop(name, None)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@contextmanager
def second_process() -> Iterator[None]:
    """Let a job with two GPUs train in two processes within this block."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_second_process, args=(theirs,), daemon=True)
    process.start()
    SecondProcess.pipe = ours
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "Workers", SecondProcess)
        patch.setattr(process_group, "TIMEOUT", TIMEOUT)
        try:
            yield
        finally:
            ours.send(None)
            process.join(5)
            process.kill()
