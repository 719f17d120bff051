"""The agent beside a fake SGLang: it behaves as beside vLLM, and loads that SGLang makes by itself do no harm."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine, write_adapter
from tests.agent.fake_sglang import FakeSglang
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for

BOT = "support-bot"


class SglangAgent(RunningAgent):
    """An agent whose desired state names SGLang."""

    def serve(self, *versions: tuple[str, DesiredVersion], **state: object) -> None:
        """Desire a version under each name."""
        self.want(*(self.adapter(name, version) for name, version in versions), engine="sglang", **state)


@pytest.fixture
def engine() -> Iterator[FakeSglang]:
    """Run a fake SGLang."""
    with FakeSglang() as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, s3_server: S3Server, engine: FakeSglang) -> Iterator[SglangAgent]:
    """Run an agent beside it."""
    with SglangAgent(tmp_path / "pod", s3_server, engine.port) as running:
        yield running


def ask(engine: FakeEngine, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": [1, 2], **fields}
    return httpx.post(f"http://127.0.0.1:{engine.port}/v1/completions", json=body, timeout=60, trust_env=False)


def answer(engine: FakeEngine, adapter: str) -> float:
    response = ask(engine, f"base:{adapter}")
    assert response.status_code == 200, response.text
    return float(response.json()["choices"][0]["text"])


def enginez(agent: RunningAgent) -> tuple[int, str]:
    """Ask what a livenessProbe of the engine's container may ask."""
    response = httpx.get(f"http://127.0.0.1:{agent.settings.port}/enginez", timeout=20, trust_env=False)
    return response.status_code, response.text.strip()


def short(version: DesiredVersion) -> str:
    return version.digest[7:19]


def test_the_name_appears_only_after_the_proof_beside_it(agent: SglangAgent, engine: FakeSglang, make: Make) -> None:
    version = make(0.7)
    agent.serve((BOT, version))
    agent.wait_ready()
    assert answer(engine, BOT) == 0.7
    assert engine.calls[:2] == [("load", f"{BOT}@{short(version)}"), ("load", BOT)]
    assert agent.wait_state(BOT, "Active").active_digest == version.digest
    wait_for(lambda: list(engine.loaded) == [BOT], 5, "the candidate is gone again")
    assert engine.pinned == {BOT}


def test_the_report_says_how_clients_ask(agent: SglangAgent, engine: FakeSglang, make: Make) -> None:
    """A bare adapter's name is answered by the base, and nobody would notice."""
    agent.serve((BOT, make(0.7)))
    agent.wait_ready()
    assert float(ask(engine, BOT).json()["choices"][0]["text"]) == 0.0
    state = agent.report().engine
    assert state is not None
    assert state.version == "0.5.23"
    assert any('model "<base>:<servedName>"' in limit for limit in state.limits)


def test_200_from_the_engine_is_no_proof(agent: SglangAgent, engine: FakeSglang, make: Make) -> None:
    agent.serve((BOT, make(0.7, applied=0.0)))
    assert agent.wait_state(BOT, "Refused").reason is Reason.PROOF_FAILED
    assert ("load", BOT) not in engine.calls


def test_another_base_is_refused_before_anything_is_loaded(agent: SglangAgent, engine: FakeSglang, make: Make) -> None:
    agent.serve((BOT, make(0.7, seed=2)))
    assert agent.wait_state(BOT, "Refused").reason is Reason.BASE_MODEL_MISMATCH
    assert engine.calls == []


@pytest.mark.parametrize(
    ("settings", "message_part"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"use_dora": True}, "DoRA"),
    ],
)
def test_what_sglang_would_serve_wrongly_never_reaches_it(
    agent: SglangAgent, engine: FakeSglang, make: Make, settings: dict[str, object], message_part: str
) -> None:
    agent.serve((BOT, make(0.7, **settings)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.ADAPTER_UNSUPPORTED
    assert "SGLang" in adapter.message
    assert message_part in adapter.message
    assert engine.calls == []


def test_a_rank_that_only_the_engine_knows_is_refused_with_the_arguments(
    agent: SglangAgent, engine: FakeSglang, make: Make
) -> None:
    agent.serve((BOT, make(0.7, rank=32)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.ADAPTER_UNSUPPORTED
    assert "--max-lora-rank" in adapter.message
    assert len(engine.calls) == 1


def test_running_requests_end_on_the_weights_with_which_they_began(
    agent: SglangAgent, engine: FakeSglang, make: Make
) -> None:
    old, new = make(0.7), make(0.3)
    agent.serve((BOT, old))
    agent.wait_ready()
    answers: list[float] = []

    def ask_for_long() -> None:
        answers.append(float(ask(engine, f"base:{BOT}", max_tokens=100).json()["choices"][0]["text"]))

    client = threading.Thread(target=ask_for_long)
    client.start()
    wait_for(lambda: engine.streams, 5, "the request runs")
    agent.serve((BOT, new))
    agent.wait_state(BOT, "Draining")
    wait_for(lambda: not agent.ready(), 5, "the pod leaves its Service")
    assert engine.loaded[BOT].endswith(old.digest[7:])
    engine.finish()
    client.join(10)
    assert answers == [0.7]
    agent.wait_active(BOT, new)
    agent.wait_ready()
    assert answer(engine, BOT) == 0.3


def test_a_request_that_brings_the_old_version_back_does_not_keep_the_name(
    agent: SglangAgent, engine: FakeSglang, make: Make
) -> None:
    old, new = make(0.7), make(0.3)
    agent.serve((BOT, old))
    agent.wait_ready()
    engine.asked_between = BOT
    agent.serve((BOT, new))
    agent.wait_active(BOT, new)
    assert answer(engine, BOT) == 0.3
    assert engine.asked_between == ""
    assert engine.calls.count(("unload", BOT)) == 2


def test_adapters_that_others_load_evict_none_of_ours(
    agent: SglangAgent, engine: FakeSglang, make: Make, tmp_path: Path
) -> None:
    engine.max_loaded = 2
    agent.serve((BOT, make(0.7)))
    agent.wait_ready()
    wait_for(lambda: list(engine.loaded) == [BOT], 5, "the candidate is gone again")
    for name in ("x", "y", "z"):
        body = {"lora_name": name, "lora_path": str(write_adapter(tmp_path / name, 0.1))}
        httpx.post(f"http://127.0.0.1:{engine.port}/load_lora_adapter", json=body, trust_env=False)
    assert sorted(engine.loaded) == [BOT, "z"]
    assert answer(engine, BOT) == 0.7


def test_an_adapter_that_somebody_put_under_the_name_is_replaced_by_ours(
    agent: SglangAgent, engine: FakeSglang, make: Make, tmp_path: Path
) -> None:
    agent.serve((BOT, make(0.7)))
    agent.wait_ready()
    foreign = write_adapter(tmp_path / "foreign", 0.1)
    address = f"http://127.0.0.1:{engine.port}"
    httpx.post(f"{address}/unload_lora_adapter", json={"lora_name": BOT}, trust_env=False)
    httpx.post(f"{address}/load_lora_adapter", json={"lora_name": BOT, "lora_path": str(foreign)}, trust_env=False)
    wait_for(lambda: agent.adapter_report(BOT).replaced or engine.loaded.get(BOT) != str(foreign), 10, "it is noticed")
    wait_for(lambda: engine.loaded.get(BOT) not in (None, str(foreign)), 10, "ours is back")
    agent.wait_ready()
    assert answer(engine, BOT) == 0.7


def test_after_a_restart_the_pod_is_ready_only_when_it_is_proven_again(
    agent: SglangAgent, engine: FakeSglang, make: Make
) -> None:
    agent.serve((BOT, make(0.7)))
    agent.wait_ready()
    engine.kill()
    wait_for(lambda: not agent.ready(), 10, "unready")
    engine.start()
    agent.wait_ready()
    assert answer(engine, BOT) == 0.7


def test_a_new_process_is_noticed_though_the_end_of_the_old_one_was_not(
    agent: SglangAgent, engine: FakeSglang, make: Make
) -> None:
    agent.serve((BOT, make(0.7)))
    agent.wait_ready()
    calls_before = engine.version_calls
    engine.started += 1
    engine.loaded.clear()
    wait_for(lambda: BOT in engine.loaded, 10, "it is loaded into the new process")
    agent.wait_ready()
    assert engine.version_calls > calls_before


def test_adapters_are_loaded_with_the_admins_key(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    with (
        FakeSglang(api_key="clients", admin_key="admins") as engine,
        SglangAgent(tmp_path / "pod", s3_server, engine.port) as agent,
    ):
        secret = agent.settings.secrets_directory / "keys"
        secret.mkdir()
        (secret / "API_KEY").write_text("clients")
        agent.serve((BOT, make(0.7)), api_key_secret="keys")
        adapter = agent.wait_state(BOT, "Failed")
        assert "ADMIN_API_KEY" in adapter.message
        assert "spec.target.apiKeySecretRef" in adapter.message
        (secret / "ADMIN_API_KEY").write_text("admins")
        agent.wait_ready()


def test_too_few_slots_for_a_candidate_say_which_argument(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    with (
        FakeSglang(max_per_batch=2) as engine,
        SglangAgent(tmp_path / "pod", s3_server, engine.port) as agent,
    ):
        agent.serve((BOT, make(0.7)))
        adapter = agent.wait_state(BOT, "Failed")
        assert "--max-loras-per-batch" in adapter.message


def test_an_unload_that_hangs_says_that_the_engine_must_be_restarted(
    agent: SglangAgent, engine: FakeSglang, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_engines.sglang.driver.SLOW_SECONDS", 0.5)
    old, new = make(0.7), make(0.3)
    agent.serve((BOT, old))
    agent.wait_ready()
    wait_for(lambda: list(engine.loaded) == [BOT], 5, "the candidate is gone again")
    engine.hangs_on_unload = True
    agent.serve((BOT, new))
    adapter = agent.wait_state(BOT, "Failed")
    assert adapter.reason is Reason.RESTART_REQUIRED
    assert "sglang#36894" in adapter.message
    assert not agent.ready()
    assert enginez(agent) == (503, adapter.message)
    engine.hangs_on_unload = False
    engine.kill()
    engine.start()
    agent.wait_active(BOT, new)
    assert enginez(agent) == (200, "ok")
    agent.wait_ready()


def test_a_version_that_does_not_list_its_adapters_is_refused_by_name(
    agent: SglangAgent, engine: FakeSglang, make: Make
) -> None:
    engine.version = "0.5.7"
    agent.serve((BOT, make(0.7)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.ADAPTER_UNSUPPORTED
    assert "use SGLang 0.5.8 or newer" in adapter.message
    assert engine.calls == []
