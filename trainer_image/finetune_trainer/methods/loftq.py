"""Initialize LoftQ where PEFT's own initialization needs CUDA."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_bnb_weight
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from finetune_trainer.models.loading import QUANTIZED_PARAMETERS

ITERATIONS, OVERSAMPLING = 16, 8
"""Power iterations and additional directions of the randomized SVD (Halko, Martinsson and Tropp 2011).

So many are needed to come near the exact SVD, because the singular values of a quantization error decay slowly.
"""


@torch.no_grad()
def initialize(model: Any, directory: Path) -> None:
    """Set A and B so that B·A, scaled, best approximates the quantization error (Li et al. 2023, T = 1)."""
    files = _map_tensors(directory)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    module: Any
    for name, module in layers:
        base: Any = module.get_base_layer()
        if type(base.weight).__name__ not in QUANTIZED_PARAMETERS:
            continue  # not quantized, so there is no error
        quantized = dequantize_bnb_weight(base.weight, state=getattr(base, "state", None)).float()
        original = _read_original(files, name.removeprefix("base_model.model.")).to(quantized.device, torch.float32)
        if getattr(base, "source_cls", None) is Conv1D:
            original = original.T
        rank, scaling = module.r["default"], module.scaling["default"]
        left, values, right = torch.svd_lowrank(
            original - quantized, min(rank + OVERSAMPLING, *original.shape), niter=ITERATIONS
        )
        root = values[:rank].sqrt()
        module.lora_A["default"].weight.copy_(root[:, None] * right[:, :rank].T)
        module.lora_B["default"].weight.copy_(left[:, :rank] * root / scaling)


def _map_tensors(directory: Path) -> dict[str, Path]:
    """Map each tensor of the model to its file."""
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


def _read_original(files: dict[str, Path], module: str) -> torch.Tensor:
    """Read a module's weight from disk; old GPT-2 files leave out the first part of its name."""
    names = (f"{module}.weight", f"{module.split('.', 1)[-1]}.weight")
    name = next(name for name in names if name in files)
    with safe_open(files[name], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
