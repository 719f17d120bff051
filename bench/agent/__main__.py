"""Benchmark the idle agent: it serves one adapter, and is probed each second. ``python -m bench.agent``.

The agent is a process of its own, apart from a double of vLLM and a real S3 service, so that only it is measured.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx

from bench.agent.engine import running_engine
from bench.agent.pod import publish_adapter, start_agent
from bench.process import cpu_seconds, memory_mib
from tools.testing.s3_server import running_s3
from tools.testing.waiting import free_port, wait_for

SETTLE_SECONDS = 10.0


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description="Measure an agent in whose pod nothing changes.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is watched")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        memory, percent = measure(Path(name), seconds)
    sys.stdout.write(f"idle agent: {memory:.0f} MiB, {percent:.2f} % of a core\n")


def measure(directory: Path, seconds: float) -> tuple[float, float]:
    """Return resident MiB, and the CPU time in percent of one core, of an agent that has proven its adapter."""
    port = free_port()
    with running_s3(directory / "s3") as s3, running_engine() as engine_port:
        version = publish_adapter(s3, s3.create_bucket("bench"), "adapter", directory / "adapter")
        agent = start_agent(directory / "pod", s3, engine_port, version, port)
        try:
            wait_for(lambda: _is_ready(port), 60, "the agent's proof")
            time.sleep(SETTLE_SECONDS)
            before, end = cpu_seconds(agent.pid), time.monotonic() + seconds
            while time.monotonic() < end:
                _is_ready(port)
                time.sleep(1)
            return memory_mib(agent.pid), 100 * (cpu_seconds(agent.pid) - before) / seconds
        finally:
            agent.terminate()
            agent.wait(20)


def _is_ready(port: int) -> bool:
    """Return whether the agent is ready, asked by a new connection as the kubelet does."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=20, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
