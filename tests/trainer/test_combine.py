"""Several adapters become one: exactly where PEFT can be exact; those that do not fit together are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from finetune_agent.compatibility import find_tensor_problems
from finetune_artifacts.safetensors import read_file_header
from finetune_trainer.combine import COMBINATIONS, main
from finetune_trainer.methods.conversion import lora_factors


def adapter(base: Path, directory: Path, seed: int, **options: Any) -> Path:
    """Write an adapter of random weights."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    for name, value in options.items():
        setattr(config, name, value)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(directory))
    return directory


def updates(base: Path, directory: Path) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to each weight."""
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(directory))
    return {name: b @ a for name, (a, b) in lora_factors(tuned).items()}


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_adapters_become_one(
    base_model: Path, tmp_path: Path, combination: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first_adapter = adapter(base_model, tmp_path / "one", 1)
    another = adapter(base_model, tmp_path / "other", 2, use_rslora=True)
    output = tmp_path / "output"
    arguments = [
        f"{first_adapter}=0.75",
        str(another),
        "--base",
        str(base_model),
        "--combination",
        combination,
        "--output",
        str(output),
    ]
    assert main(arguments) == 0
    rank = 8 if combination == "cat" else 4
    assert f"2 adapters combined into one of rank {rank}" in capsys.readouterr().out
    assert (
        find_tensor_problems(
            {
                name: list(tensor.shape)
                for name, tensor in read_file_header(output / "adapter_model.safetensors").items()
            },
            rank,
        )
        == []
    )
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_model)
    first, second, combined = (
        updates(base_model, first_adapter),
        updates(base_model, another),
        updates(base_model, output),
    )
    for name in first:
        expected = 0.75 * first[name] + second[name]
        error = float((combined[name] - expected).norm() / expected.norm())
        if combination == "cat":
            assert error < 1e-5
        elif combination == "svd":
            left, values, right = torch.linalg.svd(expected)
            nearest = left[:, :4] * values[:4] @ right[:4]
            torch.testing.assert_close(combined[name], nearest, atol=1e-4, rtol=1e-3)
        else:
            assert 0 < error < 3


def test_the_same_seed_leaves_the_same_out(base_model: Path, tmp_path: Path) -> None:
    first, second = adapter(base_model, tmp_path / "one", 1), adapter(base_model, tmp_path / "other", 2)
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        arguments = [str(first), str(second), "--base", str(base_model), "--combination", "dare_linear", "--seed", seed]
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"use_dora": True}, [], "is not a plain LoRA (type LORA): merge it into the base instead"),
        ({"r": 8}, ["--combination", "ties"], "must have the same r value"),
        ({"base_model_name_or_path": "other/model"}, [], "they are of 2 base models: "),
    ],
    ids=["dora", "ranks", "bases"],
)
def test_adapters_that_do_not_go_together(
    base_model: Path,
    tmp_path: Path,
    options: dict[str, Any],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = adapter(base_model, tmp_path / "one", 1)
    second = adapter(base_model, tmp_path / "other", 2, **options)
    if name := options.get("base_model_name_or_path"):
        path = second / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
    assert (
        main([str(first), str(second), "--base", str(base_model), "--output", str(tmp_path / "out"), *arguments]) == 1
    )
    assert message in capsys.readouterr().err


def test_a_weight_that_is_not_a_number(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["one=much", "--base", str(base_model), "--output", str(tmp_path / "out")]) == 1
    assert "'one=much' must be DIRECTORY or DIRECTORY=WEIGHT" in capsys.readouterr().err
