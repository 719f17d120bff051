"""Start and watch the worker processes of a node: one for each GPU except the main process's own."""

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NoReturn

from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.data.sources import Inputs
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.process import Process
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session import tracking
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.session import Session

FINISH_SECONDS = 90.0
"""How long the main process may run on after a worker has failed, for example to complete an upload.

Then it is ended, because it may wait for the dead process forever.
"""
CAUSE_SECONDS = 10.0
"""How long the main process waits for a worker to write why it failed."""


class Workers:
    """The processes that the main process of a node has started."""

    def __init__(self, fail_attempt: Callable[[Reason, str], None], interruption: Interruption) -> None:
        """Create the object; ``start`` starts the processes.

        Args:
            fail_attempt: Ends this process with a reason and a message; must not return.
            interruption: Tells whether the pod is asked to stop.
        """
        self._fail_attempt, self._interruption = fail_attempt, interruption
        self._processes: list[tuple[Process, SpawnProcess, Path]] = []
        self._unwatched = threading.Event()

    def start(self, settings: Settings, inputs: Inputs, patience_seconds: float) -> None:
        """Start one process for each further GPU of the node. They wait in ``process_group.init`` for this one."""
        context = multiprocessing.get_context("spawn")
        for process in settings.process.local_workers():
            failure_file = settings.scratch / "run" / f"process-{process.rank}.json"
            worker = context.Process(
                target=_run_worker,
                args=(settings, inputs, process, failure_file, patience_seconds),
                name=process.name,
                daemon=True,
            )
            worker.start()
            self._processes.append((process, worker, failure_file))
        if self._processes:
            threading.Thread(target=self._watch, name="workers", daemon=True).start()

    def failure(self, seconds: float = 0.0) -> tuple[Reason, str] | None:
        """Return why a worker failed; None if no failure is known.

        A worker that only lost its connection to another one may end first, so wait up to ``seconds`` for the cause.
        """
        deadline = time.monotonic() + seconds
        while self._processes:
            failures = [
                _explain_exit(process, worker.exitcode, failure_file)
                for process, worker, failure_file in self._processes
                if worker.exitcode
            ]
            cause = next((failure for failure in failures if failure[0] is not Reason.NCCL_ERROR), None)
            if cause:
                return cause
            if time.monotonic() >= deadline or all(worker.exitcode is not None for _, worker, _ in self._processes):
                return failures[0] if failures else None
            time.sleep(0.1)
        return None

    def stop_watching(self) -> None:
        """Let this process go on whatever happens to the workers from now on."""
        self._unwatched.set()

    def close(self) -> None:
        """Kill the workers that are left."""
        self.stop_watching()
        for _, worker, _ in self._processes:
            worker.kill()
            worker.join()
        self._processes = []

    def _watch(self) -> None:
        """End this process some time after a worker has failed, because it may wait for that worker forever."""
        while (failure := self.failure()) is None:
            if self._unwatched.wait(0.2):
                return
        if failure[0] is Reason.NCCL_ERROR:
            failure = self.failure(CAUSE_SECONDS) or failure
        seconds = self._interruption.seconds_left() if self._interruption.requested else FINISH_SECONDS
        if not self._unwatched.wait(seconds):
            self._fail_attempt(*failure)


def _explain_exit(process: Process, code: int, failure_file: Path) -> tuple[Reason, str]:
    """Return the reason and the message that the worker wrote or, if there are none, those for its exit status."""
    if failure_file.is_file():
        failure = json.loads(failure_file.read_text(encoding="utf-8"))
        return Reason(failure["reason"]), f"{process.name}: {failure['message']}"
    if code == -signal.SIGKILL:
        return (
            Reason.HOST_OUT_OF_MEMORY,
            f"{process.name} was killed, most likely because the trainer container ran out of memory: raise "
            "spec.resources.limits.memory",
        )
    status = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
    if code == -signal.SIGABRT and process.world_size > 1:
        return Reason.NCCL_ERROR, f"{process.name} ended {status}: see NCCL's message in the log"
    return Reason.TRAINER_ERROR, f"{process.name} ended {status} and left no message: see the log"


def _run_worker(
    settings: Settings, inputs: Inputs, process: Process, failure_file: Path, patience_seconds: float
) -> NoReturn:
    """Run a worker process from its start to its exit."""
    # the main process receives a request to stop, and all processes then agree on the step
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    logs.configure(worker=process.name)
    code = train_in_worker(settings, inputs, process, failure_file, patience_seconds)
    logging.shutdown()
    os._exit(code)


def train_in_worker(
    settings: Settings, inputs: Inputs, process: Process, failure_file: Path, patience_seconds: float
) -> int:
    """Do this process's part of the training; return the exit code, and write a failure to ``failure_file``."""
    try:
        from finetune_trainer import recipe

        run, reporter = Run(), Reporter(None, Path())
        interruption = Interruption(settings.job.spec.pod_template.termination_grace_period_seconds, _exit_preempted)
        output, trackers = settings.output_storage(patience_seconds), tracking.Trackers(settings)
        recipe.train_adapter(
            Session(
                settings, inputs, output, run, interruption, reporter, trackers, process, _abandon_worker, lambda: None
            )
        )
        return 0
    except BaseException as error:  # noqa: BLE001 -- every end has a reason
        reason, message = classify(error)
        if reason is Reason.TRAINER_ERROR and not isinstance(error, Failure):
            log.exception("the trainer failed")
        elif not isinstance(error, Preempted):
            log.error("%s: %s", reason, message)
        failure_file.write_text(json.dumps({"reason": str(reason), "message": message}), encoding="utf-8")
        return EXIT_CODES.get(reason, EXIT_CODES[Reason.TRAINER_ERROR])


def _exit_preempted() -> NoReturn:
    """End this process after a request to stop, at a point where nothing is lost."""
    os._exit(EXIT_CODES[Reason.PREEMPTED])


def _abandon_worker(reason: Reason, message: str) -> NoReturn:
    """End this process with the reason's exit code."""
    log.error("%s: %s", reason, message)
    os._exit(EXIT_CODES[reason])


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(EXIT_CODES[Reason.TRAINER_ERROR])
