"""Run the trainer as its pod does, and a fake of the operator's report endpoint."""

import http.server
import json
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune_api.messages import PROGRESS_PATH, ProgressReport, TrainerResult
from tools.testing.http_server import serving
from tools.testing.trainer_jobs import Workbench


@dataclass
class Listener:
    """A fake report endpoint: the reports that came, and their tokens."""

    url: str
    reports: "queue.Queue[ProgressReport]"
    tokens: set[str]

    def wait_for(self, condition: Callable[[ProgressReport], bool]) -> ProgressReport:
        """Return the next report for which the condition holds."""
        while True:
            report = self.reports.get(timeout=240)
            if condition(report):
                return report


@contextmanager
def listening() -> Iterator[Listener]:
    """Run a report endpoint on loopback for the length of a ``with`` block."""
    reports: queue.Queue[ProgressReport] = queue.Queue()
    tokens: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            tokens.add(self.headers["Authorization"])
            self.send_response(200 if self.path == PROGRESS_PATH else 404)
            self.end_headers()
            reports.put(ProgressReport.model_validate_json(body))

    with serving(Handler) as url:
        yield Listener(url, reports, tokens)


class Pod:
    """A trainer process."""

    def __init__(self, bench: Workbench, job: dict[str, Any], listener: Listener, attempt: int) -> None:
        """Start the process of an attempt, with its termination log and token in the bench's directory."""
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
                "FINETUNE_SIMULATED_GPUS": "true",
                "HOME": str(bench.directory),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Wait for its end, and return exit code and log."""
        output, _ = self.process.communicate(timeout=240)
        return self.process.returncode, output

    def result(self) -> TrainerResult:
        """Return its termination message."""
        content = self.termination_log.read_bytes()
        assert len(content) <= 4096
        return TrainerResult.model_validate_json(content)
