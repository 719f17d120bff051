"""The agent beside the real vLLM, with real adapters of a real model."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune_api.reasons import Reason
from finetune_api.uris import parse_s3_uri
from tests.agent.real_vllm import TOKENS, Publisher, agent_beside, loaded, text
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.vllm_server import START_SECONDS, RealVllm, running_vllm
from tools.testing.waiting import wait_for

# In `make test` the engine of tests/e2e/test_serving.py is the real one; this one takes minutes of both processors.
pytestmark = [pytest.mark.trains, pytest.mark.exhaustive, pytest.mark.timeout(1500)]

BOT = "support-bot"


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    """Run one vLLM for all tests of this file: it takes long to start."""
    with running_vllm(tmp_path_factory.mktemp("vllm")) as engine:
        yield engine


@pytest.fixture
def agent(tmp_path: Path, s3_server: S3Server, vllm: RealVllm) -> Iterator[RunningAgent]:
    """Run an agent with an empty volume; unload its adapters at the end."""
    with agent_beside(vllm, tmp_path / "pod", s3_server) as running:
        yield running
        running.want()
        wait_for(lambda: list(loaded(vllm)) == ["base"], 60, "the engine is empty again")


def test_load_prove_and_serve_while_bad_ones_are_refused(
    agent: RunningAgent, vllm: RealVllm, version: Publisher, s3_server: S3Server
) -> None:
    flipped = version("other")
    uri = parse_s3_uri(flipped.uri)
    weights = s3_server.buckets / uri.bucket / uri.key / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    agent.want(
        agent.adapter(BOT, version("first")),
        agent.adapter("wrong-base", version("tiny")),
        agent.adapter("too-high", version("rank32")),
        agent.adapter("no-effect", version("unmatched")),
        agent.adapter("flipped", flipped),
    )
    agent.wait_ready(180)
    agent.wait_state(BOT, "Active")
    refused = {
        "wrong-base": Reason.BASE_MODEL_MISMATCH,
        "too-high": Reason.RANK_TOO_HIGH,
        "no-effect": Reason.PROOF_FAILED,
        "flipped": Reason.DIGEST_MISMATCH,
    }
    for name, reason in refused.items():
        adapter = agent.wait_state(name, "Refused", 120)
        assert adapter.reason is reason, adapter
    wait_for(lambda: sorted(loaded(vllm)) == ["base", BOT], 30, "nothing else is loaded")
    assert agent.ready()
    assert text(vllm, BOT) != text(vllm, "base")


def test_no_answer_mixes_two_versions_and_none_fails(agent: RunningAgent, vllm: RealVllm, version: Publisher) -> None:
    """Clients stream through a Service, which sends to ready pods only, while the served name gets a new version."""
    first, second = version("first"), version("second")
    agent.want(agent.adapter(BOT, first), agent.adapter("reference", second))
    agent.wait_ready(120)
    old, new = text(vllm, BOT), text(vllm, "reference")
    assert old != new
    answers: list[tuple[float, float, str]] = []
    failures: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            if agent.ready():
                begin = time.monotonic()
                try:
                    answers.append((begin, time.monotonic(), text(vllm, BOT)))
                except (AssertionError, httpx.HTTPError) as error:
                    failures.append(repr(error))
            else:
                time.sleep(0.05)

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    try:
        wait_for(lambda: len(answers) >= 3, 120, "answers of the first version")
        agent.want(agent.adapter(BOT, second, previous=first), agent.adapter("reference", second))
        agent.wait_active(BOT, second, 120)
        count = len(answers)
        wait_for(lambda: len(answers) >= count + 6, 180, "answers of the second version")
    finally:
        stop.set()
        for thread in clients:
            thread.join(300)
    assert failures == []
    texts = [answer for _, _, answer in answers]
    assert set(texts) == {old, new}
    assert texts[-1] == new


def test_with_two_pods_no_answer_fails_or_mixes_two_versions(
    agent: RunningAgent, vllm: RealVllm, version: Publisher, s3_server: S3Server, tmp_path: Path
) -> None:
    """Clients stream through a Service of two pods, which get the new version one after the other."""
    first, second = version("first"), version("second")
    with (
        running_vllm(tmp_path) as other_vllm,
        agent_beside(other_vllm, tmp_path / "other-pod", s3_server) as other_agent,
    ):
        pods = [(agent, vllm), (other_agent, other_vllm)]
        for pod, _ in pods:
            pod.want(pod.adapter(BOT, first), pod.adapter("reference", second))
        for pod, _ in pods:
            pod.wait_ready(180)
            pod.wait_state("reference", "Active", 120)
        old, new = text(vllm, BOT), text(vllm, "reference")
        assert old != new
        answers: list[str] = []
        failures: list[str] = []
        stop = threading.Event()

        def client(number: int) -> None:
            for turn in itertools.count(number):
                if stop.is_set():
                    return
                ready = [engine for pod, engine in pods if pod.ready()]
                try:
                    answers.append(text(ready[turn % len(ready)], BOT))
                except (ZeroDivisionError, AssertionError, httpx.HTTPError) as error:
                    failures.append(repr(error))

        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in clients:
            thread.start()
        try:
            wait_for(lambda: len(answers) >= 8, 120, "answers of the first version")
            for pod, _ in pods:
                pod.want(pod.adapter(BOT, second, previous=first), pod.adapter("reference", second))
                pod.wait_active(BOT, second, 180)
                pod.wait_ready(60)
                count = len(answers)
                wait_for(lambda count=count: len(answers) >= count + 8, 180, "more answers")  # type: ignore[misc]
        finally:
            stop.set()
            for thread in clients:
                thread.join(300)
    assert failures == []
    assert set(answers) == {old, new}
    assert answers[-1] == new


def test_a_stream_that_outlasts_the_drain_keeps_its_weights(
    tmp_path: Path, s3_server: S3Server, vllm: RealVllm, version: Publisher
) -> None:
    first, second = version("first"), version("second")
    with RunningAgent(tmp_path / "pod", s3_server, vllm.port, tick_seconds=0.2, removal_seconds=0.5) as agent:
        agent.want(agent.adapter(BOT, first, drain=False))
        agent.wait_ready(120)
        tokens = 6 * TOKENS
        old = text(vllm, BOT, tokens)
        got: list[tuple[float, str]] = []
        stream = threading.Thread(target=lambda: got.append((time.monotonic(), text(vllm, BOT, tokens))))
        stream.start()
        time.sleep(0.5)
        agent.want(agent.adapter(BOT, second, previous=first, drain=False))
        agent.wait_active(BOT, second, 120)
        assert got == []  # it runs still, on weights whose name has moved
        stream.join(300)
        assert got[0][1] == old
        assert text(vllm, BOT, tokens) != old
        agent.want()
        wait_for(lambda: list(loaded(vllm)) == ["base"], 60, "the engine is empty again")


def test_after_a_crash_of_the_engine_the_pod_is_ready_only_after_a_new_proof(
    agent: RunningAgent, vllm: RealVllm, version: Publisher
) -> None:
    agent.want(agent.adapter(BOT, version("first")))
    agent.wait_ready(120)
    before = text(vllm, BOT)
    vllm.kill()
    assert not agent.ready()
    vllm.start()
    ready_without: list[object] = []

    def back() -> bool:
        if not agent.ready():
            return False
        models = loaded(vllm)
        if BOT not in models:
            ready_without.append(models)
        return True

    wait_for(back, START_SECONDS, "ready again")
    assert ready_without == []
    assert text(vllm, BOT) == before
