"""What was proven is proven again: on a schedule, beside the clients' requests, and after a wake from sleep."""

import threading
from pathlib import Path

import httpx
import pytest

from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.waiting import wait_for

BOT = "support-bot"
OFTEN = 0.2


@pytest.fixture
def version(make: Make) -> DesiredVersion:
    return make(0.7)


def serve(agent: RunningAgent, version: DesiredVersion, seconds: float = OFTEN) -> DesiredAdapter:
    """Let the agent serve a version, and prove it again every so many seconds."""
    adapter = agent.adapter(BOT, version, prove_every_seconds=seconds)
    agent.want(adapter)
    agent.wait_active(BOT, version)
    agent.wait_ready()
    return adapter


def ask_enginez(agent: RunningAgent) -> int:
    url = f"http://127.0.0.1:{agent.settings.port}/enginez"
    return httpx.get(url, timeout=20, trust_env=False).status_code


def test_a_version_that_no_longer_answers_leaves_the_service_and_is_loaded_again(
    agent: RunningAgent, engine: FakeEngine, version: DesiredVersion
) -> None:
    serve(agent, version)
    loads = engine.calls.count(("load", BOT))
    engine.fail_load = lambda name, path: engine._error("busy", "x", 503)
    engine.effects[BOT] = 0.1
    wait_for(lambda: agent.adapter_report(BOT).failed_reproofs, 20, "the proof fails")
    assert agent.probe()[0] == 503
    engine.fail_load = lambda name, path: None
    agent.wait_active(BOT, version)
    agent.wait_ready()
    assert engine.effects[BOT] == 0.7
    assert engine.calls.count(("load", BOT)) > loads
    assert agent.adapter_report(BOT).failed_reproofs == 1


def test_a_base_that_changed_is_found_too(agent: RunningAgent, engine: FakeEngine, version: DesiredVersion) -> None:
    serve(agent, version)
    engine.base_effect_after_load = 0.6
    wait_for(lambda: agent.adapter_report(BOT).failed_reproofs, 20, "the proof fails")
    assert agent.wait_state(BOT, "Refused").reason is Reason.PROOF_FAILED
    assert not agent.ready()


def test_the_proof_asks_one_question_at_a_time_and_the_pod_stays_as_it_is(
    agent: RunningAgent, engine: FakeEngine, version: DesiredVersion
) -> None:
    serve(agent, version)
    wait_for(lambda: list(engine.loaded) == [BOT], 10, "the candidate is gone")
    calls, engine.most_at_once, states = list(engine.calls), 0, set()
    assert agent.agent is not None
    first = max(agent.agent.memory.proven_at.values())

    def is_proven_again() -> bool:
        states.add((agent.adapter_report(BOT).state, agent.ready()))
        return max(agent.agent.memory.proven_at.values()) > first + 2 * OFTEN  # type: ignore[union-attr]

    wait_for(is_proven_again, 20, "further proofs")
    assert engine.most_at_once == 1
    assert states == {("Active", True)}
    assert engine.calls == calls


def test_an_engine_that_is_busy_fails_no_proof(
    agent: RunningAgent, engine: FakeEngine, version: DesiredVersion
) -> None:
    serve(agent, version)
    engine.busy = True
    threading.Event().wait(4 * OFTEN)
    assert agent.ready()
    assert agent.adapter_report(BOT).state == "Active"
    assert agent.adapter_report(BOT).failed_reproofs == 0


def test_without_a_schedule_nothing_is_asked(agent: RunningAgent, engine: FakeEngine, version: DesiredVersion) -> None:
    serve(agent, version, 0)
    wait_for(lambda: list(engine.loaded) == [BOT], 10, "the candidate is gone")
    engine.most_at_once = 0
    threading.Event().wait(3 * OFTEN)
    assert engine.most_at_once == 0


def test_an_engine_that_fails_again_must_be_restarted_and_may_serve_then(
    agent: RunningAgent, engine: FakeEngine, version: DesiredVersion
) -> None:
    serve(agent, version)
    engine.effect_as[BOT, Path(engine.loaded[BOT]).name] = 0.1
    engine.effects[BOT] = 0.1
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.PROOF_FAILED
    assert "It answered correctly before: restart the engine" in adapter.message
    assert not agent.ready()
    assert ask_enginez(agent) == 503
    engine.kill()
    engine.effect_as.clear()
    engine.start()
    agent.wait_active(BOT, version)
    agent.wait_ready()
    assert ask_enginez(agent) == 200


def test_after_a_wake_from_sleep_everything_is_loaded_and_proven_again(
    agent: RunningAgent, engine: FakeEngine, version: DesiredVersion
) -> None:
    serve(agent, version, 0)
    loads = engine.calls.count(("load", BOT))
    engine.asleep = True
    wait_for(lambda: not agent.ready(), 10, "a sleeping engine takes no traffic")
    engine.effects[BOT] = 0.0  # as vLLM does where the adapters' weights are lost (vllm#39934)
    engine.asleep = False
    agent.wait_active(BOT, version)
    agent.wait_ready()
    assert engine.effects[BOT] == 0.7
    assert engine.calls.count(("load", BOT)) == loads + 1
