"""What a manifest says of vLLM is what vLLM does: it answers with what was trained, or refuses to load it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune_api.manifest import GoldenSamples
from tests.trainer.test_methods import CASES, PIECES
from tools.testing.trainer_jobs import Workbench, train
from tools.testing.vllm_server import RealVllm, running_vllm

pytestmark = [pytest.mark.trains, pytest.mark.exhaustive, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Iterator[RealVllm]:
    """Start a vLLM with the base that the adapters are trained on."""
    with running_vllm(tmp_path_factory.mktemp("vllm"), base_model) as engine:
        yield engine


@pytest.mark.parametrize("name", ["loraOptions", "pissa", "adalora", "vera", "loha", "lokr", "miss", "dora", "ia3"])
def test_vllm_answers_with_what_was_trained_or_refuses_it(bench: Workbench, vllm: RealVllm, name: str) -> None:
    case = CASES[name]
    result, _ = train(bench.settings(method=case.method, training=PIECES | {"learningRate": 4 * case.learning_rate}))
    assert result.reason == "Succeeded", result.message
    directory = bench.server.buckets / bench.bucket / "team" / "job" / "adapter"
    with httpx.Client(base_url=vllm.url, timeout=60, trust_env=False) as client:
        answer = client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(directory)})
        assert answer.is_success == case.served, answer.text
        if not case.served:
            return
        golden = GoldenSamples.model_validate_json((directory / "golden.json").read_bytes())
        for sample in golden.samples:
            engine_logprobs = logprobs(client, name, sample.token_ids)
            assert engine_logprobs == pytest.approx(sample.adapter_logprobs, abs=1e-4)
            assert engine_logprobs != pytest.approx(sample.base_logprobs, abs=1e-3)
        client.post("/v1/unload_lora_adapter", json={"lora_name": name})


def logprobs(client: httpx.Client, model: str, token_ids: list[int]) -> list[float]:
    """Log-probability of each token but the first."""
    body = {"model": model, "prompt": token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.is_success, answer.text
    prompt_logprobs = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(prompt_logprobs, token_ids[1:], strict=True)]
