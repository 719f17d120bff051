"""What is found before it costs GPU time: mixed examples, a model that lacks weights, rows that a template refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetune_api.messages import ProgressReport
from finetune_api.reasons import Reason
from finetune_trainer.models import checksum, loading
from finetune_trainer.models.checksum import compute_checksums
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.libraries import library_environment
from finetune_trainer.session.progress import Reporter
from finetune_trainer.training.contamination import prepare_packing, refuse_contamination
from tools.testing.tiny_model import change_config
from tools.testing.trainer_jobs import CHATS, Workbench, jsonl, train

ROWS = [{"input_ids": list(range(5, 25))}, {"input_ids": list(range(60, 30, -1))}]


def tiny(kind: str) -> Any:
    from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, Qwen2Config

    common = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs: dict[str, Any] = {"bloom": BloomConfig, "llama": LlamaConfig, "qwen2": Qwen2Config}
    heads = {"num_key_value_heads": 1} if kind in ("llama", "qwen2") else {}
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(configs[kind](**common, **heads, initializer_range=0.3)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_models_that_keep_packed_examples_apart_pass(kind: str, dtype: torch.dtype) -> None:
    model = tiny(kind).to(dtype).train()
    before = torch.get_rng_state()
    refuse_contamination(prepare_packing(model, ROWS))
    assert torch.equal(torch.get_rng_state(), before), "the training goes on as if nothing had been asked"
    assert model.training


def test_a_model_that_mixes_packed_examples_is_refused() -> None:
    with pytest.raises(Failure, match="'bloom' lets packed examples attend to one another") as raised:
        refuse_contamination(prepare_packing(tiny("bloom"), ROWS))
    assert (raised.value.reason, raised.value.field) == (Reason.MODEL_UNSUPPORTED, "spec.training.packing")


def test_a_model_without_some_of_its_weights_is_refused(base_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base_model, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failure, match=r"lack 1 of its weights, model\.layers\.1\.mlp\.up_proj\.weight") as raised:
        loading.load_base(broken, torch.float32)
    assert raised.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"intermediate_size": 96}, r"down_proj\.weight has \[64, 128\] in the files, and the model \[64, 96\]"),
        ({"model_type": "clip"}, r"cannot load the model \(ValueError: Unrecognized configuration class"),
        ({"hidden_act": "nonsense"}, r"cannot load the model \(KeyError: "),
        ({"num_attention_heads": 3}, r"cannot load the model \("),
        ({"rope_parameters": {"rope_type": "nonsense"}}, r"cannot load the model \("),
    ],
)
def test_whatever_transformers_raises_is_the_models_fault(
    base_model: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    broken = Path(shutil.copytree(base_model, tmp_path / "broken"))
    change_config(broken, **changes)
    with pytest.raises(Failure, match=expected) as raised:
        loading.load_base(broken, torch.float32)
    assert (raised.value.reason, raised.value.field) == (Reason.MODEL_UNSUPPORTED, "spec.model.uri")


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to", "issues during automatic conversion of the weights."])
def test_too_little_memory_is_not_the_models_fault(
    base_model: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match=text):
        loading.load_base(base_model, torch.float32)


def test_a_chat_that_the_template_refuses_is_the_datas_fault(bench: Workbench, tmp_path: Path) -> None:
    strict = tmp_path / "strict"
    shutil.copytree(bench.mounts / "claims" / "models" / "tiny", strict)
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(template + (strict / "chat_template.jinja").read_text())
    claims = bench.mounts / "claims" / "strict"
    claims.mkdir()
    shutil.copytree(strict, claims / "model")
    rows = [*CHATS, {"messages": [{"role": "system", "content": "Be brief."}, *CHATS[0]["messages"]]}]
    uri = bench.dataset(jsonl(rows))
    result, _ = train(bench.settings(model={"uri": "pvc://strict/model"}, dataset={"uri": uri}))
    assert result.reason is Reason.DATASET_INVALID
    assert "1 of 25 rows" in result.message
    assert "line 25: the model's chat template refuses it (System role not supported)" in result.message
    assert "convert them with spec.dataset.template" in result.message


def test_a_text_with_half_a_character_is_a_bad_row(bench: Workbench) -> None:
    uri = bench.dataset('{"prompt": "a", "completion": "b"}\n{"prompt": "cut \\ud83d", "completion": "b"}\n')
    result, _ = train(bench.settings(dataset={"uri": uri}))
    assert result.reason is Reason.DATASET_INVALID
    assert "line 2: has half a character" in result.message


def test_one_gpu_is_used_where_there_are_several() -> None:
    assert library_environment({})["CUDA_VISIBLE_DEVICES"] == "0"
    assert library_environment({})["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert library_environment({"PYTORCH_ALLOC_CONF": "x"})["PYTORCH_ALLOC_CONF"] == "x", "the user's word is kept"
    assert "PYTORCH_ALLOC_CONF" not in library_environment({"PYTORCH_CUDA_ALLOC_CONF": "x"}), "its older name too"
    assert library_environment({"CUDA_VISIBLE_DEVICES": "3,4"})["CUDA_VISIBLE_DEVICES"] == "3"


def test_each_process_has_a_gpu_and_its_share_of_the_threads() -> None:
    assert library_environment({}, 2)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert library_environment({"CUDA_VISIBLE_DEVICES": "3,4,5"}, 2)["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert library_environment({}, 1000)["OMP_NUM_THREADS"] == "1"


def test_threads_do_not_spin_unless_the_user_wants_it() -> None:
    assert library_environment({})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert library_environment({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"


def test_progress_comes_back_after_an_outage_of_days(tmp_path: Path) -> None:
    reporter = Reporter("http://127.0.0.1:9", tmp_path / "token")
    reporter._failures = 5000
    progress = {"step": 1, "totalSteps": 2, "percent": 50, "updatedAt": "2026-01-01T00:00:00Z"}
    report = ProgressReport.model_validate({"progress": progress})
    reporter.submit(report)
    reporter._closing.wait(0.5)
    assert reporter._thread.is_alive()
    reporter.close()


def test_a_checksum_shows_each_changed_exchanged_and_moved_word() -> None:
    torch.manual_seed(1)
    weights = torch.randn(64, 33).to(torch.bfloat16)
    expected = compute_checksums(weights).tolist()
    assert compute_checksums(weights.clone()).tolist() == expected
    checksums = {tuple(expected)}
    for position in range(0, weights.numel(), 7):
        for bit in (0, 15):
            changed = weights.clone()
            changed.view(torch.int16).view(-1)[position] ^= -(2**15) if bit == 15 else 1
            checksums.add(tuple(compute_checksums(changed).tolist()))
    assert len(checksums) == 1 + 2 * len(range(0, weights.numel(), 7)), "no two changes look alike"
    exchanged = weights.flip(0)
    assert compute_checksums(exchanged).tolist() != expected
    assert compute_checksums(torch.zeros(8)).tolist() == [0, 0]
    assert compute_checksums(torch.tensor([1, 2, 3], dtype=torch.uint8)).shape == (2,), "any number of bytes"
    odd = torch.arange(9, dtype=torch.uint8)[1:]
    assert compute_checksums(odd).tolist() == compute_checksums(odd.clone()).tolist(), "wherever it begins"


def test_a_checksum_does_not_depend_on_how_a_tensor_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(1000)
    expected = compute_checksums(weights).tolist()
    monkeypatch.setattr(checksum, "CHUNK", 64)
    assert compute_checksums(weights).tolist() == expected
