"""A pod whose template carries the version: the engine starts with it, and the pod is ready only with its proof."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri
from finetune_api.version_paths import version_directory
from finetune_artifacts.digests import digest_of
from tests.agent.clients import BOT, answer
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """An engine that has not started, and loads no adapter at run time."""
    fake = FakeEngine()
    fake.lora_routes = False
    try:
        yield fake
    finally:
        fake.finish()
        fake.kill()


@pytest.fixture
def wait(agent: RunningAgent) -> Iterator["subprocess.Popen[str]"]:
    """The init container that waits, as a process."""
    environment = {**os.environ, "FINETUNE_AGENT_PORT": str(agent.settings.port)}
    command = [sys.executable, "-m", "finetune_agent.wait"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def start_with(engine: FakeEngine, agent: RunningAgent, version: DesiredVersion) -> None:
    """Start the engine with the arguments that name the version's directory."""
    root = agent.settings.adapters_directory
    engine.lora_modules = {BOT: str(version_directory(root, BOT, version.digest))}
    engine.start()


def read_log(process: "subprocess.Popen[str]") -> str:
    """Read what the ended process has logged."""
    assert process.stderr is not None
    return process.stderr.read()


def test_the_engine_starts_with_the_version_and_the_pod_is_ready_when_it_is_proven(
    agent: RunningAgent, engine: FakeEngine, make: Make, wait: "subprocess.Popen[str]"
) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version), rolling=True)
    assert wait.wait(30) == 0
    assert read_log(wait).endswith("ok\n")
    assert not agent.ready()
    start_with(engine, agent, version)
    agent.wait_ready()
    assert agent.wait_state(BOT, "Active").active_digest == version.digest
    assert answer(engine, BOT) == 0.7
    assert engine.calls == []  # nothing was loaded at run time


def test_the_engine_waits_for_a_version_that_is_not_what_its_digest_says(
    agent: RunningAgent, make: Make, wait: "subprocess.Popen[str]", s3_server: S3Server, tmp_path: Path
) -> None:
    version = make(0.7)
    bucket, _, key = version.uri.removeprefix("s3://").partition("/")
    (tmp_path / "other").write_bytes(b"another file")
    uri = S3Uri(bucket, f"{key}/adapter_model.safetensors")
    s3_server.store().put_file(uri, tmp_path / "other", digest_of(b"another file"))
    agent.want(agent.adapter(BOT, version), rolling=True)
    assert agent.wait_state(BOT, "Refused").reason is Reason.DIGEST_MISMATCH
    assert wait.stderr is not None
    assert any("adapter_model.safetensors" in line for line in wait.stderr)  # reads until it comes
    assert wait.poll() is None
    assert not agent.ready()


def test_a_pod_whose_version_fails_its_proof_takes_no_traffic(
    agent: RunningAgent,
    engine: FakeEngine,
    make: Make,
    wait: "subprocess.Popen[str]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = make(0.7, applied=0.1)
    agent.want(agent.adapter(BOT, version), rolling=True)
    assert wait.wait(30) == 0
    start_with(engine, agent, version)
    assert agent.wait_state(BOT, "Refused").reason is Reason.PROOF_FAILED
    time.sleep(1)
    assert agent.probe() == (503, f"not proven on this run of the engine: {BOT}\n")
    assert agent.adapter_report(BOT).reason is Reason.PROOF_FAILED
    assert sum("unload" in line and "failed" in line for line in caplog.messages) == 1  # the engine cannot, ever


def test_a_pod_that_refuses_its_version_at_run_time_takes_no_traffic_either(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.lora_routes = True
    engine.start()
    agent.want(agent.adapter(BOT, make(0.7, applied=0.1)), rolling=True)
    assert agent.wait_state(BOT, "Refused").reason is Reason.PROOF_FAILED
    wait_for(lambda: engine.loaded == {}, 10, "the candidate is taken out")
    assert not agent.ready()  # with Hot the base, or the version before, goes on serving


def test_a_name_that_the_engine_gives_to_something_else_takes_no_traffic(
    agent: RunningAgent, engine: FakeEngine, make: Make, wait: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version), rolling=True)
    assert wait.wait(30) == 0
    other = tmp_path / "other"
    version_directory(agent.settings.adapters_directory, BOT, version.digest).rename(other)
    engine.lora_modules = {BOT: str(other)}
    engine.start()
    assert agent.wait_state(BOT, "Refused").reason is Reason.SERVED_NAME_TAKEN
    assert not agent.ready()


def test_an_engine_that_loses_the_weights_it_started_with_must_be_restarted(
    agent: RunningAgent, engine: FakeEngine, make: Make, wait: "subprocess.Popen[str]"
) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version, prove_every_seconds=0.1), rolling=True)
    assert wait.wait(30) == 0
    start_with(engine, agent, version)
    agent.wait_ready()
    engine.effects[BOT] = 0.0
    standing = agent.wait_state(BOT, "Failed")
    assert standing.reason is Reason.RESTART_REQUIRED
    assert not agent.ready()
    url = f"http://127.0.0.1:{agent.settings.port}/enginez"
    assert httpx.get(url, trust_env=False).status_code == 503
    engine.kill()
    engine.start()
    agent.wait_ready()
    wait_for(lambda: httpx.get(url, trust_env=False).status_code == 200, 10, "the engine need not be restarted")


def test_an_engine_without_such_arguments_gets_the_version_at_run_time(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.lora_routes = True
    engine.start()
    version = make(0.7)
    agent.want(agent.adapter(BOT, version), rolling=True)
    agent.wait_ready()
    assert ("load", BOT) in engine.calls
    assert answer(engine, BOT) == 0.7
