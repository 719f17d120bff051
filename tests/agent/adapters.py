"""Make LoRA adapters for the real engine: PEFT with large random weights on SmolLM2, golden samples by transformers.

Run as a program (``python -m tests.agent.adapters DIRECTORY``) it makes them all: torch stays out of the test process.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from devcluster.cache import cached
from devcluster.model import smollm2, tiny_llama

RECIPE = "5"
PROMPTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer",
    "def add(a, b):\n    return a + b\n",
]


def adapters() -> Path:
    """Return the directory of the adapters ``first``, ``second``, ``other``, ``rank32``, ``unmatched`` and ``tiny``.

    The base of ``tiny`` differs from that of the others.
    """
    return cached(
        "test-adapters", RECIPE + str(smollm2()) + str(tiny_llama()), "making the tests' adapters", "1 min", _make
    )


def _make(target: Path) -> None:
    command = [sys.executable, "-m", "tests.agent.adapters", str(target), str(smollm2()), str(tiny_llama())]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def merged_model() -> Path:
    """Return the directory of the adapter ``first``, merged into its base."""
    return cached("test-merged", RECIPE + str(adapters()), "merging a test's adapter", "1 min", _merge)


def _merge(target: Path) -> None:
    command = [sys.executable, "-m", "tests.agent.adapters", str(target), str(smollm2()), str(adapters() / "first")]
    subprocess.run([*command, "merge"], check=True, cwd=Path(__file__).parents[2])


def merge(target: Path, model: str, adapter: Path) -> None:
    """Merge an adapter into its base, and put its golden samples beside the merged model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16")
    PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(str(target))
    AutoTokenizer.from_pretrained(model).save_pretrained(str(target))
    (target / "golden.json").write_bytes((adapter / "golden.json").read_bytes())


def main(target: Path, model: str, tiny: str) -> None:
    """Make every adapter below ``target``."""
    make(target, model, {"first": (1, 8), "second": (2, 8), "other": (3, 4), "rank32": (4, 32), "unmatched": (6, 8)})
    make(target, tiny, {"tiny": (5, 8)})
    _rename_modules(target / "unmatched")


def make(target: Path, model: str, shapes: dict[str, tuple[int, int]]) -> None:
    """Make adapters by name, with seed and rank. Their B matrices are random, so that they change the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    samples = [{"tokenIds": tokenizer(prompt)["input_ids"]} for prompt in PROMPTS]
    for sample in samples:
        sample["baseLogprobs"] = _logprobs(base, sample["tokenIds"])
    for name, (seed, rank) in shapes.items():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", bias="none", task_type="CAUSAL_LM")
        adapted = get_peft_model(base, config)
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(0, 0.12)
        adapted.eval()
        for sample in samples:
            sample["adapterLogprobs"] = _logprobs(adapted, sample["tokenIds"])
        adapted.save_pretrained(str(target / name))
        (target / name / "README.md").unlink(missing_ok=True)
        (target / name / "golden.json").write_text(json.dumps({"samples": samples}))
        base = adapted.unload()


def _logprobs(model, token_ids: list[int]) -> list[float]:  # type: ignore[no-untyped-def]  # torch is imported in functions only
    import torch

    ids = torch.tensor([token_ids])
    with torch.no_grad():
        scores = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
    return [float(scores[position, token]) for position, token in enumerate(token_ids[1:])]


def _rename_modules(directory: Path) -> None:
    """Rename the tensors after modules that the model lacks: vLLM loads such an adapter, and the base answers."""
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name.replace(".model.layers.", ".decoder.layers."): tensor for name, tensor in tensors.items()}, path)


if __name__ == "__main__":
    if sys.argv[4:] == ["merge"]:
        merge(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
