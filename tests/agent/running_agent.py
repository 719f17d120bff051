"""Run the agent in this process with what a pod has: mounted desired state, volume, Secret, probes, report endpoint."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn

from finetune_agent.agent import Agent
from finetune_agent.loop import run_loop
from finetune_agent.reporting import build_report, send_reports
from finetune_agent.server import build_application
from finetune_agent.settings import Settings
from finetune_api.manifest import AdapterManifest, Origin
from finetune_api.messages import AgentAdapter, AgentReport, DesiredAdapter, DesiredState, DesiredVersion
from finetune_api.uris import S3Uri
from finetune_artifacts.upload import put_manifest, upload_directory
from tools.testing.s3_server import S3Server
from tools.testing.waiting import free_port, wait_for

POD = "web-1"
SECRET = "s3-credentials"


def publish(server: S3Server, bucket: str, name: str, directory: Path) -> DesiredVersion:
    """Put an adapter's files and their manifest into S3, as the trainer does."""
    uri = S3Uri(bucket, f"jobs/{name}/adapter")
    store = server.store()
    manifest = AdapterManifest(
        job=Origin(namespace="default", name=name, uid="0"),
        created_at="2026-01-01T00:00:00Z",
        base_model="test",
        peft_type="LORA",
        servable_by=["vllm"],
        files=upload_directory(store, uri, directory),
    )
    return DesiredVersion(uri=str(uri), digest=put_manifest(store, uri, manifest))


class RunningAgent:
    """The agent's loop, probes and reports, on a thread with its own event loop."""

    def __init__(self, directory: Path, s3: S3Server, engine_port: int, **settings: object) -> None:
        """Choose a port and write the mounts; nothing runs yet."""
        self.directory = directory
        self.s3 = s3
        self.engine_port = engine_port
        secrets = directory / "secrets"
        if not (secrets / SECRET).exists():
            secrets.mkdir(parents=True)
            shutil.copytree(s3.secret, secrets / SECRET)
        environment: dict[str, Any] = {
            "pod": POD,
            "host": "127.0.0.1",
            "port": free_port(),
            "desired_file": directory / "desired" / "desired.json",
            "adapters_directory": directory / "adapters",
            "secrets_directory": secrets,
            "token_file": directory / "token",
            "tick_seconds": 0.05,
            "idle_seconds": 0.5,
            "propagation_seconds": 0.2,
            "probe_seconds": 1.0,
            "drain_seconds": 20.0,
            "removal_seconds": 1.0,
            "download_patience_seconds": 2.0,
            **settings,
        }
        self.settings = Settings(**environment)
        self.settings.adapters_directory.mkdir(parents=True, exist_ok=True)
        self.settings.token_file.write_text("the-token")
        self.agent: Agent | None = None
        self._stop: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None

    def want(self, *adapters: DesiredAdapter, **state: object) -> None:
        """Write the desired state as the kubelet does: a new directory, then an atomic change of a link."""
        text = DesiredState(port=self.engine_port, adapters=list(adapters), **state)
        mount = self.settings.desired_file.parent
        mount.mkdir(exist_ok=True)
        data = mount / f"..{time.monotonic_ns()}"
        data.mkdir()
        (data / "desired.json").write_text(text.model_dump_json(by_alias=True))
        (mount / "..new").symlink_to(data.name)
        (mount / "..new").rename(mount / "..data")
        if not self.settings.desired_file.is_symlink():
            self.settings.desired_file.symlink_to("..data/desired.json")

    def adapter(self, name: str, version: DesiredVersion, **fields: object) -> DesiredAdapter:
        """Return a desired adapter in the test's S3."""
        defaults = {
            "deployment": f"{name}-adp",
            "served_name": name,
            "endpoint": self.s3.endpoint,
            "region": "us-east-1",
            "secret": SECRET,
        }
        return DesiredAdapter(version=version, **{**defaults, **fields})

    def probe(self) -> tuple[int, str]:
        """Return HTTP status and body of the readiness probe."""
        answer = httpx.get(f"http://127.0.0.1:{self.settings.port}/readyz", timeout=20, trust_env=False)
        return answer.status_code, answer.text

    def ready(self) -> bool:
        """Return whether the readiness probe passes."""
        return self.probe()[0] == 200

    def report(self) -> AgentReport:
        """Return what the agent reports now."""
        assert self.agent is not None
        return build_report(self.agent)

    def adapter_report(self, name: str) -> AgentAdapter:
        """Return the report of one adapter; wait for it, for the agent may not have read its desired state yet."""

        def look() -> AgentAdapter | None:
            return next((adapter for adapter in self.report().adapters if adapter.served_name == name), None)

        return wait_for(look, 10, f"{name} in the report")

    def wait_state(self, name: str, state: str, seconds: float = 30) -> AgentAdapter:
        """Wait until an adapter is in this state."""

        def look() -> AgentAdapter | None:
            adapters = self.report().adapters
            return next(
                (adapter for adapter in adapters if adapter.served_name == name and adapter.state == state), None
            )

        try:
            return wait_for(look, seconds, f"{name} {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.report()}") from None

    def wait_active(self, name: str, version: DesiredVersion, seconds: float = 30) -> AgentAdapter:
        """Wait until this version is proven under its served name."""
        return wait_for(
            lambda: self.adapter_report(name) if self.adapter_report(name).active_digest == version.digest else None,
            seconds,
            f"{name} {version.digest}",
        )

    def wait_ready(self, seconds: float = 30) -> None:
        """Wait until the readiness probe passes."""
        wait_for(self.ready, seconds, "ready")

    def start(self) -> Self:
        """Start the agent. It begins without memory; the volume keeps its files."""
        ready = threading.Event()

        async def main() -> None:
            agent = Agent(self.settings)
            agent.heartbeat = time.monotonic()
            self.agent = agent
            config = uvicorn.Config(
                build_application(agent), host="127.0.0.1", port=self.settings.port, log_config=None, lifespan="off"
            )
            server = uvicorn.Server(config)
            running = asyncio.get_running_loop()

            def stop() -> None:
                server.should_exit = True

            self._stop = partial(running.call_soon_threadsafe, stop)
            tasks = [asyncio.create_task(run_loop(agent)), asyncio.create_task(send_reports(agent))]
            ready.set()
            await server.serve()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if agent.driver is not None:
                await agent.driver.close()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        wait_for(self._answers, 10, "the agent's probes")
        return self

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.settings.port)) == 0

    def stop(self) -> None:
        """Stop the agent, and wait for its end."""
        if self._stop is not None and self._thread is not None:
            self._stop()
            self._thread.join(20)
            self._stop = None

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()
