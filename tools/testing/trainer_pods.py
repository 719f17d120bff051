"""The trainer as its pod runs it, and what stands in for the operator that it reports to."""

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


@contextmanager
def listening() -> Iterator[Listener]:
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

    with serving(Handler) as url:
        yield Listener(url, reports, tokens)


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
                "FINETUNE_SIMULATED_GPUS": "true",
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
