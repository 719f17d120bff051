"""What the preflight says of a model that would fail on the GPU: its config.json, its weights, its positions."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models import positions, shapes, weight_files
from finetune_trainer.models.base_files import ModelMetadata, inspect_directory
from finetune_trainer.preflight import check
from finetune_trainer.preflight.config_values import find_bad_value, list_activations
from finetune_trainer.preflight.model import describe_unsupported
from finetune_trainer.preflight.quantised import describe_quantised
from finetune_trainer.preflight.scoring import describe_without_score
from finetune_trainer.runtime.failures import Failure
from tools.testing.preflight_image import run_in_image
from tools.testing.tiny_model import change_config, make_tiny_model
from tools.testing.trainer_jobs import Workbench

PROJECTION = "model.layers.0.q_proj.weight"
PLAIN = {PROJECTION: Tensor("BF16", (8, 8))}
PACKED = {PROJECTION: Tensor("U8", (32, 1))}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
LLAMA = {"model_type": "llama", "hidden_act": "silu", "pad_token_id": 2}
EMBEDDINGS = {"model.embed_tokens.weight": Tensor("BF16", (9, 8))}


@pytest.mark.parametrize(
    ("quantization_config", "weights", "expected"),
    [
        (None, PLAIN, None),
        ({}, PLAIN, None),
        (BNB, PACKED, "quantised already (bitsandbytes): use the original model, which method qlora quantises itself"),
        ({"quant_method": "gptq"}, PLAIN, "quantised already (gptq)"),
        (None, PACKED, "(model.layers.0.q_proj.weight is U8), though config.json does not say how"),
        (BNB, PLAIN, "the weights are not quantised: remove quantization_config from config.json"),
        ({"load_in_4bit": False}, PLAIN, "(no quant_method), but the weights are not quantised"),
        ("bnb", PLAIN, "quantization_config in config.json is 'bnb', not an object: remove it"),
        ([], PLAIN, "quantization_config in config.json is [], not an object"),
    ],
)
def test_quantised_weights_are_refused_for_every_method(
    quantization_config: Any, weights: dict[str, Tensor], expected: str | None
) -> None:
    problem = describe_quantised({"quantization_config": quantization_config}, weights)
    assert problem is None if expected is None else expected in (problem or "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"hidden_act": "swigluu"}, "hidden_act 'swigluu', which is no activation function of transformers"),
        ({"rope_scaling": {"rope_type": "superrope", "factor": 2.0}}, "rope_scaling of type 'superrope'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ({"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "rope_parameters of type 'spiral'"),
        ({"model_type": "hunyuan_v1_dense", "rope_parameters": {"rope_type": "ntk_alpha"}}, None),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation 'flash_attention_2', which the trainer"),
        ({"attn_implementation": "sdpa"}, None),
        ({"pad_token_id": 9}, "pad_token_id 9, but model.embed_tokens.weight has 9 rows: set it to null"),
        ({"pad_token_id": -1}, None),
        ({"pad_token_id": 9, "model_type": "gpt2"}, None),
        ({"hidden_act": "of my own", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, None),
        ({"model_type": "novel", "hidden_act": "of my own"}, None),
    ],
)
def test_values_of_config_json_that_transformers_does_not_have(changes: dict[str, Any], expected: str | None) -> None:
    problem = find_bad_value(LLAMA | changes, EMBEDDINGS)
    assert problem is None if expected is None else expected in (problem or "")


def test_the_activation_functions_are_those_of_transformers(libraries: None) -> None:
    from transformers.activations import ACT2FN

    assert list_activations() == set(ACT2FN)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "granite"}, "none of type 'granite'"),
        ({"model_type": "mamba", "auto_map": {"AutoModelForSequenceClassification": "modeling.Mine"}}, None),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "needs a model of text alone"),
    ],
)
def test_a_reward_model_needs_a_model_with_a_score(config: dict[str, Any], expected: str | None) -> None:
    problem = describe_without_score(config)
    assert problem is None if expected is None else expected in (problem or "") and "choose a model" in (problem or "")


def test_the_preflights_image_can_tell_all_this_without_torch(preflight_image: Path) -> None:
    code = (
        "import importlib.util as u; assert u.find_spec('torch') is None\n"
        "from finetune_trainer.preflight.config_values import find_bad_value\n"
        "from finetune_trainer.preflight.scoring import describe_without_score\n"
        "print(find_bad_value({'model_type': 'llama', 'hidden_act': 'x'}, {}))\n"
        "print(find_bad_value({'model_type': 'llama', 'rope_scaling': {'type': 'x'}}, {}))\n"
        "print(describe_without_score({'model_type': 'granite'}))"
    )
    completed = run_in_image(preflight_image, "-c", code)
    assert completed.returncode == 0, completed.stderr
    for words in ("hidden_act 'x'", "rope_scaling of type 'x'", "objective reward needs"):
        assert words in completed.stdout


@pytest.mark.parametrize(
    ("config", "weights", "count"),
    [
        ({"model_type": "mpt", "max_seq_len": 256, "attn_config": {"alibi": True}}, {}, 256),
        ({"model_type": "gptj", "n_positions": 128}, {}, 128),
        ({"model_type": "codegen", "n_positions": 128}, {}, 128),
        ({"model_type": "ctrl", "n_positions": 128}, {}, 128),
        ({"model_type": "openai-gpt"}, {"positions_embed.weight": Tensor("F32", (64, 8))}, 64),
    ],
)
def test_a_table_of_positions_has_an_end(config: dict[str, Any], weights: dict[str, Tensor], count: int) -> None:
    assert positions.find_positions(config, weights) == positions.Positions(count, fixed=True)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"lora": {"rank": 4, "targetModules": ["c_attn"]}}, None),
        (
            {"promptTuning": {"numVirtualTokens": 20}},
            "64 tokens and the 20 of spec.method.promptTuning.numVirtualTokens",
        ),
        ({"promptTuning": {"numVirtualTokens": 20}}, "and it has no others: set it to 44 or less"),
        ({"prefixTuning": {"numVirtualTokens": 64}}, "and it has no others: lower spec.method.prefixTuning."),
    ],
)
def test_virtual_tokens_need_positions_too(
    bench: Workbench, tmp_path: Path, method: dict[str, Any], expected: str | None
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = make_tiny_model(tmp_path / "model")
    size = inspect_directory(model, "pvc://own").config["vocab_size"]
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(model)
    (bench.mounts / "claims" / "own").symlink_to(model)
    training = bench.job()["spec"]["training"] | {"maxLength": 64}
    found = check(bench.settings(model={"uri": "pvc://own"}, method=method, training=training), patience_seconds=1)
    problems = [problem for problem in found.problems if problem.field == "spec.training.maxLength"]
    assert [problem.reason for problem in found.problems] == [Reason.SPEC_INVALID] * (expected is not None)
    assert expected is None or expected in problems[0].message


def put_before(prefix: str, weights: dict[str, Tensor]) -> None:
    """Put a prefix before the names of all weights."""
    for name in list(weights):
        weights[prefix + name] = weights.pop(name)


TINY = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "the weights have no model.norm.weight"),
        (lambda weights: weights.pop(TINY), f"the weights have no {TINY}"),
        (
            lambda weights: weights.update({TINY: Tensor("F32", (32,))}),
            "input_layernorm.weight has the shape [64], but the weights have [32]",
        ),
        *[
            (partial(put_before, prefix), f"begin with {prefix!r}, which")
            for prefix in ("module.", "_orig_mod.", "base_model.model.")
        ],
    ],
)
def test_norms_and_names_of_the_weights(
    change: Callable[[dict[str, Tensor]], Any], expected: str, base_model: Path
) -> None:
    metadata = inspect_directory(base_model, "pvc://claim/tiny")
    assert shapes.find_differences(metadata.config, metadata.tensors) == []
    change(metadata.tensors)
    assert expected in shapes.find_differences(metadata.config, metadata.tensors)[0]


def test_a_missing_bias_is_named(tmp_path: Path, libraries: None) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    metadata = inspect_directory(tmp_path, "pvc://claim/model")
    assert shapes.find_differences(metadata.config, metadata.tensors) == []
    del metadata.tensors["model.layers.0.self_attn.q_proj.bias"]
    (difference,) = shapes.find_differences(metadata.config, metadata.tensors)
    assert "no model.layers.0.self_attn.q_proj.bias" in difference


def test_llamas_image_tokens_have_rows_of_their_own() -> None:
    config = {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model", "vocab_size": 9}}
    name = "language_model.model.embed_tokens.weight"
    assert shapes.find_differences(config, {name: Tensor("F32", (17, 8))}) == []
    assert "vocab_size 9" in shapes.find_differences(config, {name: Tensor("F32", (9, 8))})[0]


@pytest.mark.parametrize("name", ["other.safetensors", "other.safetensors.index.json"])
def test_config_json_may_name_the_weights_file(name: str) -> None:
    contents: dict[str, dict[str, Any]] = {
        "config.json": {"transformers_weights": name},
        "other.safetensors.index.json": {"weight_map": {"a": "other.safetensors"}},
    }
    files = ["config.json", "model.safetensors", "other.safetensors", "other.safetensors.index.json"]
    chosen = weight_files.choose_weight_files(files, contents.__getitem__, "pvc://a/b")
    assert chosen.names == ["other.safetensors"]
    assert "model.safetensors" in chosen.warnings[0]
    with pytest.raises(Failure, match=f"names the weights file '{name}' in transformers_weights") as caught:
        weight_files.choose_weight_files(files[:2], contents.__getitem__, "pvc://a/b")
    assert "remove transformers_weights from config.json" in caught.value.message
    contents["config.json"] = {"transformers_weights": [name]}
    with pytest.raises(Failure, match=r"remove transformers_weights from config\.json"):
        weight_files.choose_weight_files(files, contents.__getitem__, "pvc://a/b")


@pytest.mark.parametrize(("head", "is_refused"), [("pooler.dense.weight", True), ("cls.predictions.bias", False)])
def test_a_decoder_of_berts_family_needs_a_head(head: str, is_refused: bool) -> None:
    metadata = ModelMetadata({"model_type": "bert", "is_decoder": True}, PLAIN | {head: PLAIN[PROJECTION]}, True, True)
    assert ("have no head that writes text" in (describe_unsupported(metadata) or "")) is is_refused


def test_a_reward_model_of_another_type_never_reaches_a_gpu(bench: Workbench, tmp_path: Path) -> None:
    change_config(model := make_tiny_model(tmp_path / "model"), model_type="granite")
    (bench.mounts / "claims" / "own").symlink_to(model)
    bench.dataset('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 12)
    found = check(bench.settings(model={"uri": "pvc://own"}, objective="reward"), patience_seconds=1)
    assert [(problem.reason, problem.field) for problem in found.problems] == [
        (Reason.MODEL_UNSUPPORTED, "spec.model.uri")
    ]
