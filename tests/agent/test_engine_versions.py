"""The agent beside engines of older versions: what they would serve wrongly is refused or avoided, and reported."""

import threading

import httpx
import pytest

from finetune_api.reasons import Reason
from tests.agent.conftest import Make
from tests.agent.fake_engine import BLOCK, FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.waiting import wait_for

BOT = "support-bot"
LONG_PROMPT = list(range(BLOCK + 2))


def answer(engine: FakeEngine, model: str, prompt: list[int], **fields: object) -> float:
    body = {"model": model, "prompt": prompt, **fields}
    response = httpx.post(f"http://127.0.0.1:{engine.port}/v1/completions", json=body, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return float(response.json()["choices"][0]["text"])


def test_the_version_is_asked_once_for_each_process_and_reported(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.version = "0.31.0"
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    reported = agent.report().engine
    assert reported is not None
    assert (reported.version, reported.moves_by_restart) == ("0.31.0", False)
    assert "alpha_pattern" in " ".join(reported.limits)
    assert engine.version_calls == 1
    engine.kill()
    engine.version = "0.33.0"
    engine.start()
    agent.wait_ready()
    reported = agent.report().engine
    assert reported is not None
    assert (reported.version, reported.limits, engine.version_calls) == ("0.33.0", [], 2)


def test_an_engine_that_reports_no_version_counts_as_the_oldest(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.version = None
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    reported = agent.report().engine
    assert reported is not None
    assert (reported.version, reported.moves_by_restart) == (None, True)
    assert "not known" in reported.limits[0]


@pytest.mark.parametrize(("version", "refused"), [("0.31.0", True), ("0.32.0", False)])
def test_patterns_that_a_version_ignores_are_refused_before_anything_is_loaded(
    agent: RunningAgent, engine: FakeEngine, make: Make, version: str, refused: bool
) -> None:
    engine.version = version
    agent.want(agent.adapter(BOT, make(0.7, alpha_pattern={"q_proj": 64})))
    adapter = agent.wait_state(BOT, "Refused" if refused else "Active")
    if refused:
        assert adapter.reason is Reason.ADAPTER_UNSUPPORTED
        assert "vLLM 0.31.0" in adapter.message
        assert engine.calls == []


def test_a_name_whose_cache_would_stay_moves_by_a_restart_only(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.version = "0.30.2"
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    assert answer(engine, BOT, LONG_PROMPT) == 0.7
    agent.want(agent.adapter(BOT, second, previous=first))
    adapter = agent.wait_state(BOT, "Refused")
    assert (adapter.reason, adapter.active_digest) == (Reason.RESTART_REQUIRED, first.digest)
    assert "0.30.2" in adapter.message
    assert "Restart the pods (kubectl rollout restart, if a Deployment or StatefulSet has them)" in adapter.message
    assert agent.ready()
    assert answer(engine, BOT, LONG_PROMPT) == 0.7
    engine.kill()
    engine.start()
    agent.wait_active(BOT, second)
    assert answer(engine, BOT, LONG_PROMPT) == 0.9


def test_a_name_that_was_removed_keeps_its_cache_too(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    engine.version = "0.30.2"
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    agent.want()
    wait_for(lambda: engine.loaded == {}, 10, "unloaded")
    agent.want(agent.adapter(BOT, second))
    assert agent.wait_state(BOT, "Refused").reason is Reason.RESTART_REQUIRED
    agent.want(agent.adapter(BOT, first))
    agent.wait_active(BOT, first)


def test_from_0_31_on_a_name_moves_and_the_cache_follows(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    engine.version = "0.31.0"
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    assert answer(engine, BOT, LONG_PROMPT) == 0.7
    agent.want(agent.adapter(BOT, second, previous=first))
    agent.wait_active(BOT, second)
    assert answer(engine, BOT, LONG_PROMPT) == 0.9


@pytest.mark.parametrize("drain", [True, False])
def test_a_load_that_disturbs_waits_until_no_adapter_has_a_request(
    agent: RunningAgent, engine: FakeEngine, make: Make, drain: bool
) -> None:
    """Even an only pod leaves the Service: a wrong answer is worse than none."""
    engine.version = "0.25.0"
    good, late = make(0.4), make(0.7)
    agent.want(agent.adapter("good", good))
    agent.wait_ready()
    client = threading.Thread(target=answer, args=(engine, "good", [1, 2]), kwargs={"max_tokens": 100})
    client.start()
    wait_for(lambda: engine.streams, 5, "the stream runs")
    agent.want(agent.adapter("good", good), agent.adapter(BOT, late, drain=drain))
    agent.wait_state(BOT, "Draining")
    wait_for(lambda: agent.probe() == (503, f"draining: {BOT}\n"), 5, "the pod leaves the Service")
    assert not any(name.startswith(BOT) for _, name in engine.calls)
    engine.finish()
    client.join(10)
    agent.wait_active(BOT, late)
    agent.wait_ready()
    assert engine.disturbed == []
