"""Several processes of one pod: the first starts the others, and whatever happens to one, the pod gives one reason."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed

from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer import workers as workers_module
from finetune_trainer.distributed import process_group
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.process import Process
from finetune_trainer.workers import Workers, _explain_exit
from tools.testing.trainer_jobs import Workbench
from tools.testing.trainer_pods import Listener, Pod, listening

LONG = {"maxSteps": 2000, "perDeviceBatchSize": 2, "maxLength": 48, "learningRate": 1e-3}


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Yield a report endpoint on loopback."""
    with listening() as listener:
        yield listener


def children(parent: int) -> list[int]:
    """Return the processes that the trainer has started, without Python's own helper."""
    ranks = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            status, command = path.read_text(), path.with_name("cmdline").read_text()
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and "spawn_main" in command:
            ranks.append(int(path.parent.name))
    return ranks


@pytest.mark.exhaustive  # tests/e2e/test_job_two_gpus.py has a real pod of two processes
def test_a_pod_of_two_processes_saves_and_continues_and_outlives_none_of_them(
    bench: Workbench, listener: Listener
) -> None:
    job = bench.job(training=LONG, resources={"gpusPerNode": 2}, checkpoint={"everySteps": 500})
    pod = Pod(bench, job, listener, 1)
    listener.wait_for(lambda report: report.progress.step >= 2)
    (worker,) = children(pod.process.pid)
    pod.process.send_signal(signal.SIGTERM)
    code, log = pod.end()
    assert code == EXIT_CODES[Reason.PREEMPTED], log
    result = pod.result()
    assert result.checkpoint is not None
    assert f"the checkpoint of step {result.checkpoint.step} is saved" in result.message
    assert "Traceback" not in log
    assert "Warning" not in log

    stopped_at = result.checkpoint.step
    pod = Pod(bench, job, listener, 2)
    report = listener.wait_for(lambda report: report.progress.step >= stopped_at + 2)
    assert report.resumed_from_step == stopped_at
    (worker,) = children(pod.process.pid)
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    code, log = pod.end()
    assert time.monotonic() - began < 60, log
    assert code == EXIT_CODES[Reason.HOST_OUT_OF_MEMORY], log
    assert pod.result().message.startswith("process 1 of 2 was killed, most likely because")
    assert pod.result().checkpoint is not None, "what is saved is still said"


def test_the_one_that_failed_by_itself_is_told_of_many_that_only_lost_it(tmp_path: Path) -> None:
    def ended(rank: int, code: int | None, reason: str) -> Any:
        result_file = tmp_path / f"process-{rank}.json"
        result_file.write_text(json.dumps({"reason": reason, "message": "why"}))
        return (
            Process(rank=rank, world_size=4, local_rank=rank, local_world_size=4),
            SimpleNamespace(exitcode=code),
            result_file,
        )

    workers = Workers(lambda *_: None, Interruption(60, lambda: None))
    lost, full = ended(1, 35, "NcclError"), ended(3, 31, "OutOfMemory")
    workers._processes = [lost, ended(2, 35, "NcclError"), full]
    assert workers.failure() == (Reason.OUT_OF_MEMORY, "process 3 of 4: why")
    workers._processes = [lost, ended(2, None, "")]
    assert workers.failure(0.1) == (Reason.NCCL_ERROR, "process 1 of 4: why"), "nobody has said more in time"
    workers._processes = [ended(1, 0, ""), ended(2, 0, "")]
    assert workers.failure(60) is None


@pytest.mark.parametrize("watched", [True, False])
def test_a_worker_that_fails_ends_the_attempt_only_while_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(workers_module, "FINISH_SECONDS", 0.0)
    reasons: list[Reason] = []
    workers = Workers(lambda reason, _: reasons.append(reason), Interruption(60, lambda: None))
    process = Process(rank=1, world_size=2, local_rank=1, local_world_size=2)
    killed: Any = SimpleNamespace(exitcode=-signal.SIGKILL)
    workers._processes = [(process, killed, tmp_path / "message.json")]
    if not watched:
        workers.stop_watching()
    workers._watch()
    assert reasons == ([Reason.HOST_OUT_OF_MEMORY] if watched else [])


def test_a_process_waits_for_the_data_however_long_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined_ranks: list[int] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, rank, **__: joined_ranks.append(rank))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    second = threading.Thread(
        target=process_group.init, args=(Process(rank=1, world_size=2, local_rank=1, local_world_size=2), tmp_path)
    )
    second.start()
    second.join(0.5)
    assert not joined_ranks
    process_group.init(Process(rank=0, world_size=2, local_world_size=2), tmp_path)
    second.join(10)
    assert sorted(joined_ranks) == [0, 1]


def test_the_exit_status_explains_a_process_that_left_no_message(tmp_path: Path) -> None:
    process, result_file = Process(rank=1, world_size=2, local_rank=1, local_world_size=2), tmp_path / "said.json"
    assert _explain_exit(process, -signal.SIGABRT, result_file)[0] is Reason.NCCL_ERROR
    assert _explain_exit(process, -signal.SIGSEGV, result_file) == (
        Reason.TRAINER_ERROR,
        "process 1 of 2 ended by SIGSEGV and left no message: see the log",
    )
    result_file.write_text('{"reason": "OutOfMemory", "message": "the GPU has too little memory"}')
    assert _explain_exit(process, 31, result_file) == (
        Reason.OUT_OF_MEMORY,
        "process 1 of 2: the GPU has too little memory",
    )
