"""Engines and agents that restart, and unavailable storage: served adapters are proven again, or dropped."""

import shutil
import time
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from tests.agent.clients import BOT, answer
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server, write_secret
from tools.testing.waiting import wait_for


def test_after_a_restart_of_the_engine_everything_is_proven_again(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    agent.want(agent.adapter("one", make(0.7)), agent.adapter("two", make(0.4)))
    agent.wait_ready()
    engine.kill()
    assert agent.probe()[0] == 503
    assert agent.wait_state("one", "Pending").reason is Reason.ENGINE_UNREACHABLE
    engine.start()
    assert agent.probe()[0] == 503
    agent.wait_ready()
    assert answer(engine, "one") == 0.7
    assert answer(engine, "two") == 0.4


def test_an_unobserved_restart_is_noticed(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    """The engine itself has loaded the names again, but its new process has proven nothing."""
    version = make(0.7)
    agent.want(agent.adapter(BOT, version))
    agent.wait_ready()
    wait_for(lambda: list(engine.loaded) == [BOT], 10, "the candidate is gone")
    engine.fail_load = lambda name, path: JSONResponse({"error": {"message": "busy", "type": "x", "code": 503}}, 503)
    engine.effects[BOT] = 0.0
    engine.started += 1
    wait_for(lambda: not agent.ready(), 10, "the new process is noticed")
    engine.fail_load = lambda name, path: None
    agent.wait_active(BOT, version)
    assert engine.effects[BOT] == 0.7


def test_a_name_that_somebody_unloaded_makes_the_pod_unready_at_once(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    engine.fail_load = lambda name, path: JSONResponse({"error": {"message": "busy", "type": "x", "code": 503}}, 503)
    del engine.loaded[BOT]
    assert agent.probe()[0] == 503
    engine.fail_load = lambda name, path: None
    agent.wait_ready()


def test_after_a_restart_of_the_agent_the_pod_serves_on_after_a_new_proof(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    agent.stop()
    calls = list(engine.calls)
    agent.start()
    agent.wait_ready()
    assert engine.calls == calls  # proven where it was: nothing was loaded again


def test_after_a_restart_of_the_agent_the_version_for_a_rollback_is_on_the_disk_still(
    agent: RunningAgent, make: Make
) -> None:
    first, second = make(0.5), make(0.7)
    agent.want(agent.adapter(BOT, first))
    agent.wait_active(BOT, first)
    agent.want(agent.adapter(BOT, second, last_good=first))
    agent.wait_active(BOT, second)
    agent.stop()
    agent.start()
    agent.wait_state(BOT, "Active")
    directory = agent.settings.adapters_directory / BOT / first.digest[7:]
    beat = time.monotonic() + 0.5
    wait_for(lambda: agent.agent is not None and agent.agent.heartbeat > beat, 10, "more ticks")
    assert directory.is_dir()
    agent.want(agent.adapter(BOT, second))
    wait_for(lambda: not directory.exists(), 10, "it is removed when no rollback would go there")


def test_an_engine_that_an_adapter_ends_is_not_ended_for_ever(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    """A kernel that crashes on one adapter would take the pod down at every restart."""
    good, deadly = make(0.4), make(0.7)
    agent.want(agent.adapter("good", good))
    agent.wait_ready()

    engine.deadly = (BOT,)
    agent.want(agent.adapter("good", good), agent.adapter(BOT, deadly))
    while agent.adapter_report(BOT).state != "Refused":
        wait_for(lambda: not engine.alive or agent.adapter_report(BOT).state == "Refused", 30, "the engine ends")
        if not engine.alive:
            engine.kill()
            engine.start()
    wait_for(lambda: not engine.alive, 10, "the last end")
    engine.kill()
    engine.start()
    agent.wait_ready()
    assert answer(engine, "good") == 0.4
    assert [name.partition("@")[0] for _, name in engine.calls].count(BOT) == 3


def test_an_unavailable_s3_is_tried_again(agent: RunningAgent, engine: FakeEngine, make: Make, tmp_path: Path) -> None:
    other_server = S3Server(tmp_path / "other-s3")
    version = make(0.7)
    shutil.copytree(agent.s3.buckets, other_server.buckets, dirs_exist_ok=True)
    agent.want(agent.adapter(BOT, version, endpoint=other_server.endpoint))
    adapter = agent.wait_state(BOT, "Failed")
    assert adapter.reason is Reason.DOWNLOAD_FAILED
    assert other_server.endpoint in adapter.message
    assert not agent.ready()
    with other_server:
        agent.wait_ready()


def test_wrong_credentials_are_reported_until_the_secret_is_corrected(agent: RunningAgent, make: Make) -> None:
    secret = agent.settings.secrets_directory / "s3-credentials"
    right = {path.name: path.read_text() for path in secret.iterdir()}
    write_secret(secret, "nobody", "nothing-of-value")
    agent.want(agent.adapter(BOT, make(0.7)))
    adapter = agent.wait_state(BOT, "Failed")
    assert adapter.reason is Reason.ADAPTER_ACCESS_DENIED
    assert "nothing-of-value" not in adapter.message
    for name, text in right.items():
        (secret / name).write_text(text)
    agent.wait_ready()


def test_an_adapter_that_keeps_failing_does_not_keep_a_proven_one_from_traffic(
    agent: RunningAgent, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_agent.readiness.GIVE_WAY_AFTER", 2)
    lost = make(0.7)
    agent.want(
        agent.adapter("lost", DesiredVersion(uri=lost.uri + "-gone", digest=lost.digest)),
        agent.adapter("good", make(0.4)),
    )
    agent.wait_state("good", "Active")
    assert not agent.ready()
    agent.wait_ready()
    assert agent.adapter_report("lost").state in ("Failed", "Downloading")


def test_an_idle_agent_that_looks_rarely_learns_from_the_probe_what_changed(
    tmp_path: Path, s3_server: S3Server, engine: FakeEngine, make: Make
) -> None:
    with RunningAgent(tmp_path / "pod", s3_server, engine.port, idle_seconds=600.0) as agent:
        first, second = make(0.7), make(0.4)
        agent.want(agent.adapter(BOT, first))
        agent.wait_active(BOT, first)
        agent.wait_ready()
        wait_for(lambda: agent.agent is not None and agent.agent.settled, 20, "nothing is to be done")
        del engine.loaded[BOT]
        assert not agent.ready()
        agent.wait_active(BOT, first)
        wait_for(lambda: agent.agent is not None and agent.agent.settled, 20, "nothing is to be done")
        agent.want(agent.adapter(BOT, second, drain=False))
        agent.wait_active(BOT, second)
