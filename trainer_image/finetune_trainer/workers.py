"""The other processes of a pod or a workstation: started by the first one, watched by it, and never outliving it."""

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

AFTERMATH_SECONDS = 90.0
"""How long the first process may still need for its own end, its last upload included, when another one has failed; one that waits for the dead in vain has none."""
ANSWER_SECONDS = 10.0
"""How long the first process waits, when the others are gone, for one of them to say why."""


class Workers:
    """The processes that this one has started. ``abandon`` ends this process with a reason; it must not return."""

    def __init__(self, abandon: Callable[[Reason, str], None], interruption: Interruption) -> None:
        self._abandon, self._interruption = abandon, interruption
        self._processes: list[tuple[Process, SpawnProcess, Path]] = []
        self._closed = threading.Event()

    def start(self, settings: Settings, inputs: Inputs, patience_seconds: float) -> None:
        """Start one process for each further GPU of the node. They wait in ``together.meet`` for this one."""
        spawning = multiprocessing.get_context("spawn")
        for process in settings.process.local_workers():
            said = settings.scratch / "run" / f"process-{process.rank}.json"
            worker = spawning.Process(
                target=_work, args=(settings, inputs, process, said, patience_seconds), name=process.name, daemon=True
            )
            worker.start()
            self._processes.append((process, worker, said))
        if self._processes:
            threading.Thread(target=self._watch, name="workers", daemon=True).start()

    def failure(self, seconds: float = 0.0) -> tuple[Reason, str] | None:
        """Why they failed; waits a while for one to fail by itself, for those that only lost another one end first. None: as far as is known they all do well."""
        deadline = time.monotonic() + seconds
        while self._processes:
            failed = [
                _cause(process, worker.exitcode, said) for process, worker, said in self._processes if worker.exitcode
            ]
            cause = next((found for found in failed if found[0] is not Reason.NCCL_ERROR), None)
            if cause:
                return cause
            if time.monotonic() >= deadline or all(worker.exitcode is not None for _, worker, _ in self._processes):
                return failed[0] if failed else None
            time.sleep(0.1)
        return None

    def close(self) -> None:
        """End those that are left."""
        self._closed.set()
        for _, worker, _ in self._processes:
            worker.kill()
            worker.join()
        self._processes = []

    def _watch(self) -> None:
        """A process that waits for one that has died may wait for long, and cannot be woken: then it ends here."""
        while (found := self.failure()) is None:
            if self._closed.wait(0.2):
                return
        if found[0] is Reason.NCCL_ERROR:
            found = self.failure(ANSWER_SECONDS) or found
        left = self._interruption.seconds_left() if self._interruption.requested else AFTERMATH_SECONDS
        if not self._closed.wait(left):
            self._abandon(*found)


def _cause(process: Process, code: int, said: Path) -> tuple[Reason, str]:
    """What a process said itself or, where it could not, what its exit status tells."""
    if said.is_file():
        words = json.loads(said.read_text(encoding="utf-8"))
        return Reason(words["reason"]), f"{process.name}: {words['message']}"
    if code == -signal.SIGKILL:
        return (
            Reason.HOST_OUT_OF_MEMORY,
            f"{process.name} was killed, most likely because the trainer container ran out of memory: raise spec.resources.limits.memory",
        )
    ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
    if code == -signal.SIGABRT and process.world_size > 1:
        return Reason.NCCL_ERROR, f"{process.name} ended {ended}: the log has what NCCL says"
    return Reason.TRAINER_ERROR, f"{process.name} ended {ended}, and left no message: see the log"


def _work(settings: Settings, inputs: Inputs, process: Process, said: Path, patience_seconds: float) -> NoReturn:
    """The whole life of such a process."""
    # the first process hears of a request to stop, and they agree on the step
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    logs.configure(worker=process.name)
    code = follow_along(settings, inputs, process, said, patience_seconds)
    logging.shutdown()
    os._exit(code)


def follow_along(settings: Settings, inputs: Inputs, process: Process, said: Path, patience_seconds: float) -> int:
    """Its part of the training; the exit code, and in ``said`` why it failed, if it did."""
    try:
        from finetune_trainer import recipe

        run, reporter = Run(), Reporter(None, Path())
        interruption = Interruption(settings.job.spec.pod_template.termination_grace_period_seconds, _leave)
        output, trackers = settings.output_place(patience_seconds), tracking.Trackers(settings)
        recipe.train_adapter(Session(settings, inputs, output, run, interruption, reporter, trackers, process))
        return 0
    except BaseException as error:  # noqa: BLE001 -- every end has a reason
        reason, message = classify(error)
        if reason is Reason.TRAINER_ERROR and not isinstance(error, Failure):
            log.exception("the trainer failed")
        elif not isinstance(error, Preempted):
            log.error("%s: %s", reason, message)
        said.write_text(json.dumps({"reason": str(reason), "message": message}), encoding="utf-8")
        return EXIT_CODES.get(reason, EXIT_CODES[Reason.TRAINER_ERROR])


def _leave() -> NoReturn:
    """Asked to stop where nothing is lost by it."""
    os._exit(EXIT_CODES[Reason.PREEMPTED])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(EXIT_CODES[Reason.TRAINER_ERROR])
