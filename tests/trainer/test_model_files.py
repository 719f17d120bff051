"""What the preflight reads about a model: the files of the index, and that config.json and weights belong together."""

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
from finetune_trainer.preflight.model import describe_unsupported
from finetune_trainer.runtime.failures import Failure
from tools.testing.tiny_model import change_config, make_tiny_model
from tools.testing.trainer_jobs import CHATS, ROWS, Workbench, jsonl

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:66\nsize 146946961\n"
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
SHARDS = ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"]


def tensors(**sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return tensors by their names, with __ for a dot."""
    return {name.replace("__", "."): Tensor("BF16", shape) for name, shape in sizes.items()}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["config.json", "model.safetensors"], ["model.safetensors"]),
        (SHARDS, ["model-1.safetensors", "model-2.safetensors"]),
        ([*SHARDS, "consolidated.safetensors"], ["model-1.safetensors", "model-2.safetensors"]),
        ([*SHARDS, "model.safetensors"], ["model.safetensors"]),
        (["config.json", "model.safetensors", "onnx/model.safetensors"], ["model.safetensors"]),
    ],
)
def test_the_files_are_those_that_transformers_loads(files: list[str], expected: list[str]) -> None:
    chosen = weight_files.choose_weight_files(files, lambda _: INDEX, "hf://org/model")
    assert chosen.names == expected
    unloaded = [name for name in files if name.endswith(".safetensors") and name not in expected]
    assert weight_files.list_unloaded(chosen, files) == sorted(unloaded)
    beside = [name for name in unloaded if "/" not in name]
    assert all(name in "".join(chosen.warnings) for name in beside)
    assert bool(chosen.warnings) == bool(beside)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("files", "index", "expected"),
    [
        (SHARDS[:-1], INDEX, "lacks 1 of the 2 weights files that model.safetensors.index.json names: model-2."),
        (SHARDS, {}, "has no weight_map"),
        (SHARDS, {"weight_map": ["a"]}, "has no weight_map"),
        (["config.json", "consolidated.safetensors"], {}, "neither model.safetensors nor model.safetensors.index.json"),
        (["config.json", "pytorch_model.bin"], {}, "no *.safetensors file"),
        (["config.json", "model.safetensors", "adapter_config.json"], {}, "transformers would put that adapter on"),
        (["adapter_config.json", "adapter_model.safetensors"], {}, "is an adapter, not a model"),
        (["model.safetensors"], {}, "has no config.json"),
    ],
)
def test_files_that_are_missing_or_too_many(files: list[str], index: dict[str, Any], expected: str) -> None:
    with pytest.raises(Failure) as caught:
        weight_files.choose_weight_files(files, lambda _: index, "hf://org/model")
    assert caught.value.field == "spec.model.uri"
    assert expected in caught.value.message


@pytest.mark.unit
@pytest.mark.parametrize(
    ("config", "weights", "count", "learned"),
    [
        ({"max_position_embeddings": 4096}, {}, 4096, False),
        ({"n_positions": 1024}, tensors(h__wpe__weight=(1024, 8)), 1024, True),
        ({"model_type": "opt"}, tensors(embed_positions__weight=(2050, 8)), 2048, True),
        ({"max_seq_len": 2048}, {}, 2048, False),
        ({"seq_length": 8192}, {}, 8192, False),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, {}, 16384, False),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            {}, 131072, False,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            {}, 131072, False,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"full_attention": {"factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
                "sliding_window": 1024,
            },
            {}, 1048576, False,
        ),
        ({"max_position_embeddings": 64}, tensors(vision_tower__position_embedding__weight=(16, 8)), 64, False),
    ],
)  # fmt: skip
def test_positions_have_many_names(
    config: dict[str, Any], weights: dict[str, Tensor], count: int, learned: bool
) -> None:
    assert positions.find_positions(config, weights) == positions.Positions(count, learned)


@pytest.mark.unit
@pytest.mark.parametrize("config", [{"model_type": "bloom", "seq_length": 2048}, {"alibi": True, "n_ctx": 9}, {}])
def test_a_model_may_have_no_limit(config: dict[str, Any]) -> None:
    assert positions.find_positions(config, {}) is None


LLAMA = {
    "model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
LAYER = {f"model.layers.0.self_attn.{name}_proj.weight": Tensor("BF16", (8, 8)) for name in "qkvo"} | {
    "model.layers.0.mlp.gate_proj.weight": Tensor("BF16", (16, 8)),
    "model.layers.0.mlp.up_proj.weight": Tensor("BF16", (16, 8)),
    "model.layers.0.mlp.down_proj.weight": Tensor("BF16", (8, 16)),
}
WEIGHTS = {"model.embed_tokens.weight": Tensor("BF16", (9, 8)), **LAYER}
SECOND_LAYER = {name.replace("layers.0", "layers.1"): tensor for name, tensor in LAYER.items()}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ({}, {}, ""),
        ({"vocab_size": 11}, {}, "vocab_size 11, but model.embed_tokens.weight has 9 rows"),
        ({"hidden_size": 16}, {}, "16 as the width of the hidden states, but model.embed_tokens.weight has 8 columns"),
        ({"num_hidden_layers": 2}, {}, "2 layers, but the weights have none with the number 1 (model.layers)"),
        ({}, SECOND_LAYER, "1 layers, but the weights have 2 (model.layers): the others would be silently left out"),
        ({"num_nextn_predict_layers": 1}, SECOND_LAYER, ""),
        ({"num_key_value_heads": 1}, {}, "k_proj.weight has the shape [4, 8], but the weights have [8, 8]"),
        ({"tie_word_embeddings": False}, {}, "no lm_head.weight"),
        ({"model_type": "novel", "num_key_value_heads": 1}, {}, ""),
    ],
)
def test_config_and_weights_belong_together(config: dict[str, Any], weights: dict[str, Tensor], expected: str) -> None:
    differences = shapes.find_differences(LLAMA | config, WEIGHTS | weights)
    assert (expected in differences[0]) if expected else differences == []


@pytest.mark.unit
def test_a_model_that_scores_needs_no_output_head() -> None:
    assert shapes.find_differences(LLAMA | {"tie_word_embeddings": False}, WEIGHTS, scores=True) == []


COMMON = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
SAVED: dict[str, dict[str, Any]] = {
    "gpt2": {}, "gpt_neox": {}, "falcon": {}, "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64}, "phi3": {},
    "gemma2": {"head_dim": 16}, "mixtral": {"num_local_experts": 4}, "mamba": {"state_size": 8}, "olmo2": {},
    "bloom": {"n_layer": 2, "n_head": 4},
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVED)
def test_what_transformers_saves_belongs_together(kind: str, tmp_path: Path, libraries: None) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(kind, **COMMON | SAVED[kind])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    from finetune_trainer.models.base_files import inspect_directory

    metadata = inspect_directory(tmp_path, "pvc://claim/model")
    assert shapes.find_differences(metadata.config, metadata.tensors) == []
    position_limit = positions.find_positions(metadata.config, metadata.tensors)
    assert position_limit is None if kind == "bloom" else position_limit and position_limit.count in (128, 1024)


def add_second_weights(model: Path) -> None:
    """Write the same weights under other names, as Mistral's repositories have them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    renamed = {name.replace("self_attn.q_proj", "attention.wq"): tensor.clone() for name, tensor in weights.items()}
    save_file(renamed, model / "consolidated.safetensors")


@pytest.mark.parametrize(
    ("change", "spec", "reason", "expected"),
    [
        (partial(change_config, vocab_size=100), {}, Reason.MODEL_UNSUPPORTED, "config.json has vocab_size 100, but"),
        (
            lambda model: (model / "adapter_config.json").write_text("{}"),
            {}, Reason.MODEL_UNSUPPORTED, "has an adapter_config.json beside the model",
        ),
        (
            add_second_weights,
            {"method": {"lora": {"targetModules": ["q_proj", "wq"]}}},
            Reason.TARGET_MODULES_NOT_FOUND, "no linear module named wq",
        ),
        (
            partial(change_config, model_type="clip"), {},
            Reason.MODEL_UNSUPPORTED, "no causal language model of type 'clip'",
        ),
        (
            lambda model: (model / "chat_template.jinja").write_text(""),
            {"dataset": {"uri": "configmap://data/chats.jsonl"}}, Reason.MODEL_UNSUPPORTED, "has no chat template",
        ),
        (
            lambda _: None,
            {"training": {"maxLength": 8, "maxSteps": 1}}, Reason.DATASET_INVALID,
            "none of the first 40 rows of configmap://data/train.jsonl has anything to learn within 8 tokens",
        ),
        (
            partial(change_config, hidden_act=["silu"]), {},
            Reason.MODEL_UNSUPPORTED, "cannot read the model's config.json",
        ),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_never_reaches_a_gpu(
    bench: Workbench,
    tmp_path: Path,
    change: Callable[[Path], Any],
    spec: dict[str, Any],
    reason: Reason,
    expected: str,
) -> None:
    (bench.mounts / "claims" / "tiny").symlink_to(model := make_tiny_model(tmp_path / "model"))
    bench.dataset(jsonl(CHATS), "chats.jsonl")
    change(model)
    problems = check(bench.settings(model={"uri": "pvc://tiny"}, **spec), patience_seconds=1).problems
    assert [problem.reason for problem in problems] == [reason], problems
    assert expected in problems[0].message


def test_weights_that_are_not_used_are_named(bench: Workbench, tmp_path: Path) -> None:
    (bench.mounts / "claims" / "tiny").symlink_to(model := make_tiny_model(tmp_path / "model"))
    add_second_weights(model)
    result = check(bench.settings(model={"uri": "pvc://tiny"}), patience_seconds=1)
    assert result.problems == []
    (warning,) = [text for text in result.warnings if text.startswith("spec.model.uri: ")]
    assert warning == (
        "spec.model.uri: pvc://tiny also has consolidated.safetensors, which are not loaded: the weights are in "
        "model.safetensors"
    )


def test_a_tokenizer_of_sentencepiece_alone_is_read(bench: Workbench, tmp_path: Path) -> None:
    import sentencepiece

    (bench.mounts / "claims" / "tiny").symlink_to(model := make_tiny_model(tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([row["prompt"] + row["completion"] for row in ROWS]),
        model_prefix=str(model / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    assert check(bench.settings(model={"uri": "pvc://tiny"}), patience_seconds=1).problems == []


def test_a_padding_token_without_an_embedding_is_replaced(tmp_path: Path, libraries: None) -> None:
    from transformers import AutoTokenizer

    from finetune_trainer.data.tokenizer import load_tokenizer

    model = make_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    assert load_tokenizer(model).pad_token == tokenizer.eos_token


@pytest.mark.parametrize(
    ("config", "dtype", "problem"),
    [
        ({"model_type": "llama"}, "F8_E4M3", "q_proj.weight is F8_E4M3"),
        ({"model_type": "llama"}, "U8", "quantised already"),
        ({"model_type": "llama"}, "BF16", None),
        ({"model_type": "roberta"}, "F32", "is an encoder"),
        ({"model_type": "roberta", "is_decoder": True}, "F32", None),
    ],
)
def test_a_model_that_would_learn_something_else_is_refused(
    config: dict[str, Any], dtype: str, problem: str | None
) -> None:
    weights = {"q_proj.weight": Tensor(dtype, (4, 4)), "q_proj.mask": Tensor("U8", (4,))}
    weights["lm_head.bias"] = Tensor(dtype, (4,))
    found = describe_unsupported(ModelMetadata(config, weights, True, True))
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("break_weights", "problem"),
    [
        (lambda path: path.write_bytes(POINTER), "it is a pointer of Git LFS, not the file itself: run git lfs pull"),
        (lambda path: path.symlink_to("../../blobs/0a"), "model.safetensors of pvc://a/b cannot be read (No such file"),
    ],
)
def test_weights_that_were_not_copied_are_named(
    break_weights: Callable[[Path], Any], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    break_weights(tmp_path / "model.safetensors")
    with pytest.raises(Failure) as caught:
        inspect_directory(tmp_path, "pvc://a/b")
    assert problem in caught.value.message
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
