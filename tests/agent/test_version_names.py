"""Versions beside one another, each under a name of its own: a gateway decides which one answers."""

from collections.abc import Sequence

import pytest

from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.version_paths import version_name
from tests.agent.clients import BOT, answer
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import POD, RunningAgent
from tools.testing.waiting import wait_for


def entry(agent: RunningAgent, version: DesiredVersion, pods: Sequence[str] | None = None) -> DesiredAdapter:
    """Return the entry of one version, as the operator writes it with ``canary.traffic``."""
    name = version_name(BOT, version.digest)
    return agent.adapter(name, version, deployment=BOT, pods=None if pods is None else list(pods), drain=False)


def want(agent: RunningAgent, *versions: DesiredVersion) -> None:
    agent.want(*(entry(agent, version) for version in versions))


def test_each_version_is_loaded_once_and_answers_under_its_own_name(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    old, new = make(0.5), make(0.7)
    want(agent, old)
    agent.wait_ready()
    want(agent, new, old)
    agent.wait_active(version_name(BOT, new.digest), new)
    assert answer(engine, version_name(BOT, old.digest)) == 0.5
    assert answer(engine, version_name(BOT, new.digest)) == 0.7
    assert engine.calls == [("load", version_name(BOT, version.digest)) for version in (old, new)]
    assert agent.ready()


def test_a_version_that_leaves_takes_no_other_with_it(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    old, new = make(0.5), make(0.7)
    want(agent, new, old)
    agent.wait_ready()
    want(agent, new)
    wait_for(lambda: list(engine.loaded) == [version_name(BOT, new.digest)], 20, "the old one is gone")
    assert agent.ready()
    assert answer(engine, version_name(BOT, new.digest)) == 0.7
    assert ("unload", version_name(BOT, new.digest)) not in engine.calls


def test_a_pod_that_starts_needs_every_version_that_may_get_a_request(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    good, bad = make(0.5), make(0.7, applied=0.1)
    want(agent, bad, good)
    assert agent.wait_state(version_name(BOT, bad.digest), "Refused").reason is Reason.PROOF_FAILED
    agent.wait_active(version_name(BOT, good.digest), good)
    assert not agent.ready()
    want(agent, good)
    agent.wait_ready()


def test_a_pod_that_serves_goes_on_when_it_refuses_another_version(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    good, bad = make(0.5), make(0.7, applied=0.1)
    want(agent, good)
    agent.wait_ready()
    want(agent, bad, good)
    agent.wait_state(version_name(BOT, bad.digest), "Refused")
    assert agent.ready()
    wait_for(lambda: list(engine.loaded) == [version_name(BOT, good.digest)], 20, "the bad one is taken out")
    assert answer(engine, version_name(BOT, good.digest)) == 0.5


def test_a_version_for_other_pods_only_is_not_loaded(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    old, new = make(0.5), make(0.7)
    agent.want(entry(agent, new, pods=["another-pod"]), entry(agent, old))
    agent.wait_ready()
    assert list(engine.loaded) == [version_name(BOT, old.digest)]
    agent.want(entry(agent, new, pods=["another-pod", POD]), entry(agent, old))
    agent.wait_active(version_name(BOT, new.digest), new)


def test_an_agent_that_restarts_finds_both_and_loads_neither_again(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    old, new = make(0.5), make(0.7)
    want(agent, new, old)
    agent.wait_ready()
    calls = list(engine.calls)
    agent.stop()
    agent.start()
    agent.wait_ready()
    assert engine.calls == calls


@pytest.mark.parametrize("version", ["0.30.0", "0.25.0"])
def test_an_engine_that_cannot_move_a_name_takes_the_next_version_without_a_restart(
    agent: RunningAgent, engine: FakeEngine, make: Make, version: str
) -> None:
    engine.version = version
    old, new = make(0.5), make(0.7)
    want(agent, old)
    agent.wait_ready()
    want(agent, new, old)
    agent.wait_active(version_name(BOT, new.digest), new)
    assert answer(engine, version_name(BOT, old.digest)) == 0.5
    want(agent, new)
    wait_for(lambda: list(engine.loaded) == [version_name(BOT, new.digest)], 20, "the old one is gone")


def test_the_plain_name_may_be_served_beside_the_versions(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    plain, version = make(0.5), make(0.7)
    agent.want(agent.adapter(BOT, plain), entry(agent, version))
    agent.wait_ready()
    assert (answer(engine, BOT), answer(engine, version_name(BOT, version.digest))) == (0.5, 0.7)
    newer = make(0.9)
    agent.want(agent.adapter(BOT, newer), entry(agent, version))
    agent.wait_active(BOT, newer)
    assert answer(engine, version_name(BOT, version.digest)) == 0.7
    agent.want(entry(agent, version))
    wait_for(lambda: list(engine.loaded) == [version_name(BOT, version.digest)], 20, "the plain one is gone")
