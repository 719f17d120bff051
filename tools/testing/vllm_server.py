"""Run the real vLLM on loopback: a process that a test may kill and start again."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from devcluster.model import smollm2
from devcluster.serving import NEWEST, PYTHON, engine_arguments, engine_variables, vllm_environment
from tools.testing.waiting import free_port, wait_for

START_SECONDS = 900


class RealVllm:
    """A vLLM that serves a model as ``base``, by default SmolLM2 with adapters."""

    def __init__(
        self,
        directory: Path,
        scratch: Path,
        model: Path | None = None,
        *,
        lora: bool = True,
        version: str = NEWEST,
        arguments: Sequence[str] = (),
        packages: Path | None = None,
    ) -> None:
        """Choose a port; nothing runs yet.

        Args:
            directory: Receives its log.
            scratch: Its temporary files. The path is short: those of sockets have at most 107 characters.
            model: The model; None: SmolLM2.
            lora: Whether it takes adapters.
            version: Its version, a directory of `devcluster/vllm`.
            arguments: Further arguments.
            packages: A directory with further packages.
        """
        self.version, self.arguments, self.packages = version, arguments, packages
        self.scratch = scratch
        self.model = model
        self.lora = lora
        self.port = free_port()
        self.log = directory / "vllm.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the URL of its HTTP interface."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it without waiting."""
        assert sys.version.startswith(PYTHON), f"vLLM's packages are those of Python {PYTHON}"
        keep = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TMPDIR": str(self.scratch)}
        variables = engine_variables(str(vllm_environment(self.version)))
        if self.packages:
            variables["PYTHONPATH"] = f"{self.packages}:{variables['PYTHONPATH']}"
        arguments = engine_arguments(str(self.model or smollm2()), port=self.port, lora=self.lora)
        # one group: vLLM may have children, and all of them must end with it
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-S", *arguments, *self.arguments],
                env={**keep, **variables, "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                return httpx.get(f"{self.url}/v1/models", timeout=5, trust_env=False).is_success
            except httpx.TransportError:
                return False

        wait_for(answers, START_SECONDS, "vLLM")

    def kill(self) -> None:
        """Kill it as the kernel kills a process that is out of memory."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def complete(self, model: str, prompt: str, tokens: int) -> httpx.Response:
        """Request greedy tokens, which come as a stream of server-sent events."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=300, trust_env=False)


@contextmanager
def running_vllm(directory: Path, model: Path | None = None, **options: Any) -> Iterator[RealVllm]:
    """Run a vLLM that answers, for the length of a ``with`` block. The options are those of ``RealVllm``."""
    with tempfile.TemporaryDirectory(prefix="vllm-") as scratch:
        engine = RealVllm(directory, Path(scratch), model, **options)
        try:
            engine.start()
            engine.wait()
            yield engine
        finally:
            engine.kill()
