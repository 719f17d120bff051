"""The agent beside an engine that serves a part of an adapter, a multiple of it, or changes the base."""

import pytest

from finetune_api.reasons import Reason
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent

BOT = "support-bot"


@pytest.mark.parametrize("share", [0.5, 0.75, 1.5])
def test_an_adapter_that_the_engine_scales_wrongly_never_gets_the_name(
    agent: RunningAgent, engine: FakeEngine, make: Make, share: float
) -> None:
    agent.want(agent.adapter(BOT, make(0.3, applied=0.3 * share)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.PROOF_FAILED
    assert f"{share:.0%} of" in adapter.message
    assert ("load", BOT) not in engine.calls


def test_an_adapter_that_changes_the_base_never_gets_the_name(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.base_effect_after_load = 0.3
    agent.want(agent.adapter(BOT, make(0.7)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.PROOF_FAILED
    assert "the engine's base answers differently" in adapter.message
    assert ("load", BOT) not in engine.calls


def test_a_first_version_takes_no_traffic_before_it_is_proven_under_its_own_name(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    version = make(0.7)
    engine.delays[BOT] = 0.5
    agent.want(agent.adapter(BOT, version))
    agent.wait_ready()
    assert agent.wait_state(BOT, "Active").active_digest == version.digest
