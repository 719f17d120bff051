"""An adapter that comes to the agent: what is checked before it is loaded, and proven before it is served."""

import time
from pathlib import Path

import pytest

from finetune_api.reasons import Reason
from tests.agent.clients import BOT, answer, short
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for


def test_the_name_appears_only_after_the_proof_beside_it(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version))
    agent.wait_ready()
    assert answer(engine, BOT) == 0.7
    assert engine.calls[0] == ("load", f"{BOT}@{short(version)}")
    assert engine.calls[1] == ("load", BOT)
    adapter = agent.wait_state(BOT, "Active")
    assert adapter.active_digest == version.digest
    assert adapter.load_seconds is not None
    assert adapter.proof.startswith("100% of the trained effect is there")
    wait_for(lambda: sorted(engine.loaded) == [BOT], 5, "the candidate is gone again")


def test_200_from_the_engine_is_no_proof(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    agent.want(agent.adapter(BOT, make(0.7, applied=0.0)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.PROOF_FAILED
    assert "0% of its effect" in adapter.message
    assert ("load", BOT) not in engine.calls
    wait_for(lambda: engine.loaded == {}, 5, "the candidate is taken out")
    agent.wait_ready()  # the base goes on serving


def test_another_base_is_refused_before_anything_is_loaded(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    agent.want(agent.adapter(BOT, make(0.7, seed=2)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.BASE_MODEL_MISMATCH
    assert engine.calls == []


def test_tokens_that_the_base_does_not_have_are_another_base(
    agent: RunningAgent, engine: FakeEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.agent.fake_engine.VOCABULARY", 5)
    agent.want(agent.adapter(BOT, make(0.7)))
    assert agent.wait_state(BOT, "Refused").reason is Reason.BASE_MODEL_MISMATCH


@pytest.mark.parametrize(
    ("settings", "reason", "message_part"),
    [
        ({"rank": 32}, Reason.RANK_TOO_HIGH, "--max-lora-rank 32"),
        ({"use_dora": True}, Reason.ADAPTER_UNSUPPORTED, "DoRA"),
        ({"bias": "all"}, Reason.ADAPTER_UNSUPPORTED, "bias"),
        ({"modules_to_save": ["lm_head"]}, Reason.ADAPTER_UNSUPPORTED, "lm_head"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            Reason.ADAPTER_UNSUPPORTED,
            "path_initial_model_for_weight_conversion",
        ),
        ({"peft_type": "VERA"}, Reason.ADAPTER_UNSUPPORTED, "VERA"),
    ],
)
def test_what_the_engine_cannot_serve_never_reaches_it(
    agent: RunningAgent, engine: FakeEngine, make: Make, settings: dict[str, object], reason: Reason, message_part: str
) -> None:
    agent.want(agent.adapter(BOT, make(0.7, **settings)), max_lora_rank=16)
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is reason
    assert message_part in adapter.message
    assert engine.calls == []


def test_the_engines_own_refusal_of_a_rank_is_final(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    """If the arguments do not say the maximum, the engine answers 500, which must not be tried for ever."""
    agent.want(agent.adapter(BOT, make(0.7, rank=32)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.RANK_TOO_HIGH
    time.sleep(0.5)
    assert len(engine.calls) == 1


def test_errors_of_older_releases_mean_the_same(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    with FakeEngine(flat_errors=True) as engine, RunningAgent(tmp_path / "pod", s3_server, engine.port) as agent:
        agent.want(agent.adapter(BOT, make(0.7, rank=32)))
        assert agent.wait_state(BOT, "Refused").reason is Reason.RANK_TOO_HIGH


def test_one_bad_adapter_blocks_no_other(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    bad, good = make(0.7, applied=0.0), make(0.4)
    agent.want(agent.adapter("bad", bad), agent.adapter("good", good))
    agent.wait_state("bad", "Refused")
    agent.wait_state("good", "Active")
    agent.wait_ready()
    assert answer(engine, "good") == 0.4
    assert answer(engine, "base") == 0.0


def test_an_engine_without_lora_is_reported_with_the_remedy(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    engine = FakeEngine()
    engine.lora_routes = False
    with engine, RunningAgent(tmp_path / "pod", s3_server, engine.port) as agent:
        agent.want(agent.adapter(BOT, make(0.7)))
        adapter = agent.wait_state(BOT, "Refused")
        assert adapter.reason is Reason.LORA_DISABLED
        assert "--enable-lora" in adapter.message
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in adapter.message


def test_log_probabilities_of_allowed_tokens_only_are_no_proof(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.raw_logprobs = False
    agent.want(agent.adapter(BOT, make(0.7)))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.ENGINE_REFUSED
    assert "--logprobs-mode raw_logprobs" in adapter.message


def test_an_engine_that_asks_for_a_key_gets_it(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    with FakeEngine(api_key="sesame") as engine, RunningAgent(tmp_path / "pod", s3_server, engine.port) as agent:
        agent.want(agent.adapter(BOT, make(0.7)), api_key_secret="engine-key")
        time.sleep(0.5)
        assert not agent.ready()
        key = agent.settings.secrets_directory / "engine-key"
        key.mkdir()
        (key / "API_KEY").write_text("sesame\n")
        agent.wait_ready()
