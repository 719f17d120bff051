"""What the agent refuses by an adapter's files alone, before it asks the engine."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from finetune_agent.compatibility import IncompatibleError, check_adapter, find_tensor_problems
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from tests.agent.fake_engine import write_adapter

VLLM = ENGINES["vllm"]


def refused(directory: Path, maximum: int | None = 16) -> IncompatibleError:
    with pytest.raises(IncompatibleError) as caught:
        check_adapter(directory, VLLM, maximum)
    return caught.value


def test_a_plain_lora_passes(tmp_path: Path) -> None:
    assert len(check_adapter(write_adapter(tmp_path / "a", 0.5), VLLM, 16).samples) == 2


@pytest.mark.parametrize(
    ("config", "problem_part"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "'lora_only'"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "embed_tokens, lm_head"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [3]}, "alora"),
        ({"target_parameters": ["experts.w1"]}, "target_parameters"),
        ({"r": 0}, "positive integers"),
    ],
)
def test_features_that_vllm_does_not_serve(tmp_path: Path, config: dict[str, Any], problem_part: str) -> None:
    error = refused(write_adapter(tmp_path / "a", 0.5, **config))
    assert error.reason is Reason.ADAPTER_UNSUPPORTED
    assert problem_part in error.message


def test_several_problems_are_reported_at_once(tmp_path: Path) -> None:
    message = refused(write_adapter(tmp_path / "a", 0.5, use_dora=True, bias="all")).message
    assert "DoRA" in message
    assert "bias" in message


@pytest.mark.parametrize(
    "config", [{"init_lora_weights": "gaussian"}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 4}}]
)
def test_what_vllm_does_serve_passes(tmp_path: Path, config: dict[str, Any]) -> None:
    check_adapter(write_adapter(tmp_path / "a", 0.5, **config), VLLM, 16)


def test_a_rank_pattern_counts(tmp_path: Path) -> None:
    error = refused(write_adapter(tmp_path / "a", 0.5, rank=8, rank_pattern={"down_proj": 200}))
    assert error.reason is Reason.RANK_TOO_HIGH
    assert "rank is 200" in error.message
    assert "--max-lora-rank 256" in error.message


def test_the_rank_is_left_to_the_engine_where_its_maximum_is_not_known(tmp_path: Path) -> None:
    check_adapter(write_adapter(tmp_path / "a", 0.5, rank=64), VLLM, None)


@pytest.mark.parametrize(
    ("header", "problem_part"),
    [
        ({"m.lora_A.weight": [8, 4]}, "only lora_A"),
        ({"m.lora_A.weight": [8, 4], "m.lora_B.weight": [4, 6]}, "do not share a rank"),
        ({"m.lora_A.weight": [32, 4], "m.lora_B.weight": [4, 32]}, "at most 8"),
        (
            {"m.lora_A.weight": [8, 4], "m.lora_B.weight": [4, 8], "m.lora_magnitude_vector": [4]},
            "lora_magnitude_vector",
        ),
        ({}, "no tensors"),
    ],
)
def test_tensors_that_are_no_lora(header: dict[str, list[int]], problem_part: str) -> None:
    assert problem_part in "; ".join(find_tensor_problems(header, 8, VLLM.ignored_tensors))


def test_saved_embeddings_beside_an_adapter_are_ignored() -> None:
    header = {"m.lora_A.weight": [8, 4], "m.lora_B.weight": [4, 8], "model.embed_tokens.base_layer.weight": [100, 4]}
    assert find_tensor_problems(header, 8, VLLM.ignored_tensors) == []


def test_weights_in_another_format_are_named(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a", 0.5)
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    assert "safetensors is the only format" in refused(directory).message
    (directory / "adapter_model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    assert "safetensors" in refused(directory).message


def test_golden_samples_must_exist_and_be_complete(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a", 0.5)
    golden = json.loads((directory / "golden.json").read_text())
    golden["samples"][1]["adapterLogprobs"].pop()
    (directory / "golden.json").write_text(json.dumps(golden))
    assert "samples[1]" in refused(directory).message
    (directory / "golden.json").unlink()
    assert "no golden.json" in refused(directory).message


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_golden_samples_that_are_not_numbers_prove_nothing(tmp_path: Path, word: str) -> None:
    directory = write_adapter(tmp_path / "a", 0.5)
    golden = json.loads((directory / "golden.json").read_text())
    golden["samples"][0]["adapterLogprobs"][0] = float(word)
    (directory / "golden.json").write_text(json.dumps(golden))
    assert refused(directory).reason is Reason.ADAPTER_UNSUPPORTED


def test_weights_with_a_value_that_is_not_a_number_are_refused(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a", 0.5)
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + struct.pack("<f", math.nan))
    assert "lora_B.weight has values that are infinite or not a number" in refused(directory).message
