"""A pod whose engine serves no LoRA: it is started with the merged model, which is proven where the engine can tell."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.version_paths import version_directory
from finetune_artifacts.digests import digest_of_file
from tests.agent.clients import BOT
from tests.agent.conftest import Make
from tests.agent.fake_merged_engine import FakeMergedEngine, publish_merged, write_merged
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for

Merge = Callable[..., DesiredVersion]
CARDS = {
    "vLLM": lambda path: {"id": BOT, "root": path, "parent": None},
    "TGI": lambda path: {"id": path},
    "TensorRT-LLM": lambda path: {"id": Path(path).name, "root": None},
    "a name of its own": lambda path: {"id": BOT},
}


@pytest.fixture
def engine() -> Iterator[FakeMergedEngine]:
    """An engine that has not started."""
    fake = FakeMergedEngine()
    yield fake
    fake.kill()


@pytest.fixture
def merge(tmp_path: Path, s3_server: S3Server, bucket: str) -> Merge:
    """Return a function that puts a merged model into S3."""

    def build(effect: float, **settings: float) -> DesiredVersion:
        return publish_merged(s3_server, bucket, write_merged(tmp_path / uuid.uuid4().hex[:8], effect, **settings))

    return build


def want(agent: RunningAgent, version: DesiredVersion, **fields: object) -> str:
    """Write the state that the pod's template carries; return the version's directory once it is there."""
    agent.want(agent.adapter(BOT, version, **fields), rolling=True, engine="merged")
    url = f"http://127.0.0.1:{agent.settings.port}/fetched"
    wait_for(lambda: httpx.get(url, trust_env=False).status_code == 200, 30, "the model is there")
    return str(version_directory(agent.settings.adapters_directory, BOT, version.digest))


@pytest.mark.parametrize("kind", CARDS)
def test_a_merged_model_is_proven_whatever_the_engine_calls_it(
    agent: RunningAgent, engine: FakeMergedEngine, merge: Merge, kind: str
) -> None:
    version = merge(0.7)
    path = want(agent, version)
    assert digest_of_file(Path(path) / "manifest.json") == version.digest
    assert not agent.ready()
    engine.path, engine.card = path, CARDS[kind](path)
    engine.start()
    agent.wait_ready()
    report = agent.wait_state(BOT, "Active")
    assert (report.state, report.active_digest) == ("Active", version.digest)
    assert "100% of the trained effect is there" in report.proof


@pytest.mark.parametrize("refusal", [None, (422, "echo is not supported"), (404, "Not Found")])
def test_an_engine_that_cannot_tell_serves_verified_files_and_the_report_says_so(
    agent: RunningAgent, engine: FakeMergedEngine, merge: Merge, refusal: tuple[int, str] | None
) -> None:
    path = want(agent, merge(0.7), prove_every_seconds=0.2)
    engine.path, engine.card, engine.echoes, engine.refusal = path, CARDS["TGI"](path), False, refusal
    engine.start()
    agent.wait_ready()
    proof = agent.wait_state(BOT, "Active").proof
    assert "the files are those of the digest, and the answers are not proven" in proof
    assert refusal is None or refusal[1] in proof


def test_an_engine_that_is_busy_is_asked_again(agent: RunningAgent, engine: FakeMergedEngine, merge: Merge) -> None:
    path = want(agent, merge(0.7))
    engine.path, engine.card, engine.refusal = path, CARDS["vLLM"](path), (503, "overloaded")
    engine.start()
    assert "overloaded" in agent.wait_state(BOT, "Failed").message
    engine.refusal = None
    agent.wait_ready()
    assert "of the trained effect" in agent.wait_state(BOT, "Active").proof


def test_a_model_whose_answers_are_others_takes_no_traffic(
    agent: RunningAgent, engine: FakeMergedEngine, merge: Merge
) -> None:
    path = want(agent, merge(0.7, applied=0.0))
    engine.path, engine.card = path, CARDS["vLLM"](path)
    engine.start()
    report = agent.wait_state(BOT, "Refused")
    assert report.reason is Reason.PROOF_FAILED
    assert "0% of the adapter's effect is there" in report.message
    assert not agent.ready()


@pytest.mark.parametrize("card", [{"id": BOT, "root": "/models/base"}, {"id": "base"}, {}])
def test_an_engine_that_was_started_with_another_model_takes_no_traffic_until_it_is_put_right(
    agent: RunningAgent, engine: FakeMergedEngine, merge: Merge, card: dict[str, object]
) -> None:
    path = want(agent, merge(0.7))
    engine.path, engine.card = path, card
    engine.start()
    report = agent.wait_state(BOT, "Failed")
    assert f"and not the merged model in {path}" in report.message
    assert (str(card["id"]) if card else "no model") in report.message
    assert not agent.ready()
    engine.kill()
    engine.card = CARDS["vLLM"](path)
    engine.start()
    agent.wait_ready()


def test_a_model_that_no_longer_answers_as_it_was_proven_must_be_restarted(
    agent: RunningAgent, engine: FakeMergedEngine, merge: Merge
) -> None:
    path = want(agent, merge(0.7), prove_every_seconds=0.1)
    engine.path, engine.card = path, CARDS["vLLM"](path)
    engine.start()
    agent.wait_ready()
    engine.spoiled = True
    assert agent.wait_state(BOT, "Failed").reason is Reason.RESTART_REQUIRED
    assert not agent.ready()
    assert httpx.get(f"http://127.0.0.1:{agent.settings.port}/enginez", trust_env=False).status_code == 503
    engine.kill()
    engine.spoiled = False
    engine.start()
    agent.wait_ready()


def test_an_adapter_is_no_merged_model_and_a_merged_model_no_adapter(
    agent: RunningAgent, merge: Merge, make: Make
) -> None:
    agent.want(agent.adapter(BOT, make(0.7)), rolling=True, engine="merged")
    report = agent.wait_state(BOT, "Refused")
    assert report.reason is Reason.DIGEST_MISMATCH
    assert "is not the manifest of a merged model" in report.message
    agent.want(agent.adapter(BOT, merge(0.7)))
    wait_for(lambda: "of an adapter" in agent.adapter_report(BOT).message, 30, "the merged model is refused")


def test_an_agent_that_restarts_finds_the_model_on_the_disk(
    agent: RunningAgent, engine: FakeMergedEngine, merge: Merge, s3_server: S3Server
) -> None:
    version = merge(0.7)
    path = want(agent, version)
    engine.path, engine.card = path, CARDS["vLLM"](path)
    engine.start()
    agent.wait_ready()
    agent.stop()
    for file in s3_server.buckets.glob("*/jobs/*/merged/*"):
        file.unlink()
    agent.start()
    agent.wait_ready()
    assert agent.wait_state(BOT, "Active").active_digest == version.digest
