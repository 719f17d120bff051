"""Somebody loads another adapter under a served name of ours, past the engine's API key."""

from dataclasses import replace

import pytest
from starlette.responses import JSONResponse

from finetune_agent.decide import Action, decide
from finetune_api.reasons import Reason
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tests.agent.test_decide import BASE, BOT, NEW_PATH, engine
from tools.testing.waiting import wait_for

STRANGER = "/tmp/somebody"
REPLACED = replace(BASE, engine=engine(bot=STRANGER), proven=frozenset({(BOT, NEW_PATH)}))


def test_our_version_is_loaded_again_and_the_report_says_why() -> None:
    decision = decide(REPLACED)
    assert (decision.action, decision.reason) == (Action.LOAD_CANDIDATE, Reason.ADAPTER_REPLACED)
    assert STRANGER in decision.message


@pytest.mark.parametrize("version", ["0.32.0", "0.30.2"])
def test_a_served_name_that_somebody_took_makes_the_pod_unready_until_ours_is_proven_again(
    agent: RunningAgent, engine: FakeEngine, make: Make, version: str
) -> None:
    engine.version = version
    ours = make(0.7)
    agent.want(agent.adapter(BOT, ours))
    agent.wait_active(BOT, ours)
    wait_for(lambda: list(engine.loaded) == [BOT], 10, "the candidate is gone")
    busy = {"error": {"message": "busy", "type": "x", "code": 503}}
    engine.fail_load = lambda name, path: JSONResponse(busy, 503)
    engine.effects[BOT] = 0.1
    engine.loaded[BOT] = STRANGER
    assert agent.probe()[0] == 503
    engine.fail_load = lambda name, path: None
    if version == "0.32.0":
        agent.wait_active(BOT, ours)
        agent.wait_ready()
        assert engine.loaded[BOT].endswith(ours.digest[7:])
        assert engine.effects[BOT] == 0.7
    else:  # the cache of this version may hold the stranger's answers
        assert agent.wait_state(BOT, "Refused").reason is Reason.RESTART_REQUIRED
        wait_for(lambda: BOT not in engine.loaded, 10, "the stranger is unloaded")
        assert not agent.ready()
    assert agent.adapter_report(BOT).replaced == 1
