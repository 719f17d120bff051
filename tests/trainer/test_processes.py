"""The trainer as its pod runs it: killed, asked to stop, and run to the end, with its reports received."""

import http.server
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from finetune_api.messages import PROGRESS_PATH, ProgressReport, TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from tests.trainer.jobs import Workbench, train

LONG = {"maxSteps": 150, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 48, "learningRate": 1e-3}


@dataclass
class Listener:
    """What stands in for the operator's report endpoint: the reports that came, and with which token."""

    url: str
    reports: "queue.Queue[ProgressReport]"
    tokens: set[str]

    def wait_for(self, wanted: Callable[[ProgressReport], bool]) -> ProgressReport:
        """The next report that is as wanted."""
        while True:
            report = self.reports.get(timeout=240)
            if wanted(report):
                return report


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A report endpoint on loopback."""
    reports: queue.Queue[ProgressReport] = queue.Queue()
    tokens: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            tokens.add(self.headers["Authorization"])
            self.send_response(200 if self.path == PROGRESS_PATH else 404)
            self.end_headers()
            reports.put(ProgressReport.model_validate_json(body))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it so
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Listener(f"http://127.0.0.1:{server.server_port}", reports, tokens)
        server.shutdown()


class Pod:
    """One trainer process."""

    def __init__(self, bench: Workbench, job: dict[str, Any], listener: Listener, attempt: int) -> None:
        token = bench.directory / "token"
        token.write_text(f"token-{attempt}\n")
        self.termination_log = bench.directory / f"termination-log-{attempt}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "train"],
            env={
                "FINETUNE_JOB": json.dumps(job),
                "FINETUNE_ATTEMPT": str(attempt),
                "FINETUNE_MOUNTS": str(bench.mounts),
                "FINETUNE_SCRATCH": str(bench.directory / f"pod-{attempt}"),
                "FINETUNE_TERMINATION_LOG": str(self.termination_log),
                "FINETUNE_TOKEN_FILE": str(token),
                "FINETUNE_REPORT_URL": listener.url,
                "HOME": str(bench.directory),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and log."""
        output, _ = self.process.communicate(timeout=240)
        return self.process.returncode, output

    def result(self) -> TrainerResult:
        """Its termination message."""
        content = self.termination_log.read_bytes()
        assert len(content) <= 4096
        return TrainerResult.model_validate_json(content)


def test_killed_then_asked_to_stop_the_run_ends_bit_identical(
    workbench: Callable[[], Workbench], listener: Listener
) -> None:
    whole, pieces = workbench(), workbench()
    spec = {"training": LONG, "checkpoint": {"everySteps": 5}}
    job = pieces.job(**spec)

    killed = Pod(pieces, job, listener, 1)
    listener.wait_for(lambda report: report.checkpoint is not None)
    killed.process.kill()
    killed.end()
    assert not killed.termination_log.exists()

    stopped = Pod(pieces, job, listener, 2)
    report = listener.wait_for(lambda report: report.resumed_from_step is not None)
    assert report.resumed_from_step is not None
    stopped.process.send_signal(signal.SIGTERM)
    code, log = stopped.end()
    assert code == EXIT_CODES[Reason.PREEMPTED], log
    result = stopped.result()
    assert result.reason is Reason.PREEMPTED
    assert result.checkpoint is not None
    assert result.checkpoint.step > report.resumed_from_step
    assert f"the checkpoint of step {result.checkpoint.step} is saved" in result.message

    last, _ = train(pieces.settings_of(job))
    assert (last.reason, last.resumed_from_step) == ("Succeeded", result.checkpoint.step)
    train(whole.settings(**spec))
    assert pieces.weights() == whole.weights()
    assert listener.tokens == {"Bearer token-1", "Bearer token-2"}


def test_asked_to_stop_before_the_loop_it_ends_at_once(bench: Workbench, listener: Listener) -> None:
    pod = Pod(bench, bench.job(training=LONG), listener, 1)
    assert pod.process.stdout is not None
    line = next(line for line in pod.process.stdout if "importing torch" in line)
    pod.process.send_signal(signal.SIGTERM)
    code, log = pod.end()
    assert code == EXIT_CODES[Reason.PREEMPTED], line + log
    assert pod.result().reason is Reason.PREEMPTED
    assert "step 1 " not in log


def test_a_whole_pod_says_success_in_its_exit_code_and_a_readable_log(bench: Workbench, listener: Listener) -> None:
    pod = Pod(bench, bench.job(), listener, 1)
    code, log = pod.end()
    assert code == 0, log
    assert pod.result().reason == "Succeeded"
    assert "step 6 of 6 (100 %): loss " in log
    assert "held-out loss: base " in log
    assert "Traceback" not in log
    assert "Warning" not in log
    assert "test-secret-key" not in log
    report = listener.wait_for(lambda report: report.progress.step == 6)
    assert report.progress.total_steps == 6
