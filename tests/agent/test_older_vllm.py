"""The agent beside older versions of the real vLLM, which would serve some things wrongly."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.reasons import Reason
from tests.agent.real_vllm import TOKENS, Publisher, agent_beside, loaded, text
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.vllm_server import RealVllm, running_vllm
from tools.testing.waiting import wait_for

pytestmark = [pytest.mark.trains, pytest.mark.exhaustive, pytest.mark.timeout(1500)]

BOT = "support-bot"
DISTURBS = "0.25.1"
"""A version in which a load may disturb requests to another adapter."""


@pytest.fixture(scope="module", params=[DISTURBS, "0.30.0"])
def vllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    """Run one vLLM of each version for all tests of this file."""
    with running_vllm(tmp_path_factory.mktemp("vllm"), version=request.param) as engine:
        yield engine


@pytest.fixture
def agent(tmp_path: Path, s3_server: S3Server, vllm: RealVllm) -> Iterator[RunningAgent]:
    """Run an agent with an empty volume; restart the engine at the end, which keeps the names that it had."""
    with agent_beside(vllm, tmp_path / "pod", s3_server) as running:
        yield running
    vllm.kill()
    vllm.start()
    vllm.wait()


def test_an_adapter_is_proven_and_a_bad_one_refused(agent: RunningAgent, vllm: RealVllm, version: Publisher) -> None:
    agent.want(agent.adapter(BOT, version("first")), agent.adapter("no-effect", version("unmatched")))
    agent.wait_ready(180)
    agent.wait_state(BOT, "Active")
    assert agent.wait_state("no-effect", "Refused", 120).reason is Reason.PROOF_FAILED
    wait_for(lambda: sorted(loaded(vllm)) == ["base", BOT], 30, "nothing else is loaded")
    assert text(vllm, BOT) != text(vllm, "base")
    engine = agent.report().engine
    assert engine is not None
    assert (engine.version, engine.moves_by_restart) == (vllm.version, True)


def test_a_name_moves_by_a_restart_only(agent: RunningAgent, vllm: RealVllm, version: Publisher) -> None:
    first, second = version("first"), version("second")
    agent.want(agent.adapter(BOT, first), agent.adapter("reference", second))
    agent.wait_ready(180)
    agent.wait_state("reference", "Active", 120)
    old, new = text(vllm, BOT), text(vllm, "reference")
    assert old != new
    agent.want(agent.adapter(BOT, second, previous=first), agent.adapter("reference", second))
    refused = agent.wait_state(BOT, "Refused", 120)
    assert (refused.reason, refused.active_digest) == (Reason.RESTART_REQUIRED, first.digest)
    assert vllm.version in refused.message
    assert agent.ready()
    assert text(vllm, BOT) == old
    vllm.kill()
    vllm.start()
    vllm.wait()
    agent.wait_active(BOT, second, 180)
    agent.wait_ready(60)
    assert text(vllm, BOT) == new


def test_a_stream_keeps_its_answer_while_another_adapter_is_loaded(
    agent: RunningAgent, vllm: RealVllm, version: Publisher
) -> None:
    tokens = 6 * TOKENS
    first = version("first")
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready(180)
    before = text(vllm, BOT, tokens)
    got: list[tuple[float, str]] = []

    def ask() -> None:
        answer = text(vllm, BOT, tokens)
        got.append((time.monotonic(), answer))

    stream = threading.Thread(target=ask)
    stream.start()
    time.sleep(0.5)
    agent.want(agent.adapter(BOT, first), agent.adapter("late", version("second"), drain=False))
    agent.wait_state("late", "Active", 180)
    active = time.monotonic()
    stream.join(300)
    ((ended, answer),) = got
    assert answer == before
    assert (ended < active) == (vllm.version == DISTURBS), "the load waits for the stream where it would disturb it"
