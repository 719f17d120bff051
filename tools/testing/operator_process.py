"""Run the operator as a process against a real API server."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tools.testing.kubernetes_api import Object
from tools.testing.waiting import free_port, until

ROOT = Path(__file__).parents[2]


@dataclass
class Operator:
    """A process of ``python -m finetune_operator``."""

    kubeconfig: Path
    namespace: str
    log: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> "Operator":
        """Start it, and wait until it is ready unless ``wait`` is False."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "operator"),
            "FINETUNE_OPERATOR_TRAINER_IMAGE": "trainer:1",
            "FINETUNE_OPERATOR_OPERATOR_IMAGE": "operator:1",
            "FINETUNE_OPERATOR_KUBECONFIG": str(self.kubeconfig),
            "FINETUNE_OPERATOR_NAMESPACES": self.namespace,
            "FINETUNE_OPERATOR_LISTEN_HOST": "127.0.0.1",
            "FINETUNE_OPERATOR_LISTEN_PORT": str(self.port),
            "FINETUNE_OPERATOR_RETRY_BACKOFF_SECONDS": "0.1",
            "FINETUNE_OPERATOR_PROGRESS_INTERVAL_SECONDS": "0.1",
            # The jobs of a test have one spec: each is to have a preflight of its own.
            "FINETUNE_OPERATOR_PREFLIGHT_REUSE_SECONDS": "0",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"], env=environment, stdout=log, stderr=log
            )
        if wait:
            until("the operator is ready", self._is_ready)
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        return self.get("/readyz")[0] == 200

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.stop(signal.SIGKILL)

    def end(self, signal_number: signal.Signals = signal.SIGKILL) -> None:
        """End it with a signal, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.stop(signal_number)

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=30)

    def get(self, path: str) -> tuple[int, str]:
        """Return HTTP status and body of a path; status 0 if the operator does not answer."""
        return self.request("GET", path)

    def post(self, path: str, body: Object | bytes, token: str | None) -> tuple[int, Object]:
        """Post a report, and return HTTP status and answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, text = self.request("POST", path, content, {"Authorization": f"Bearer {token}"} if token else {})
        return status, json.loads(text)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Send a request, and return HTTP status and body; status 0 if the operator does not answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total
