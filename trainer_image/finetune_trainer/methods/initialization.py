"""Initialise a LoRA with a part of its base (PiSSA, OLoRA) or of the base's quantisation error (LoftQ).

PEFT's own initialisations cannot start from factors that were kept. Its OLoRA also decomposes each weight in full, and
its LoftQ needs CUDA.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from finetune_trainer.models.loading import QUANTIZED_PARAMETERS

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A of shape (rank, in) and B of shape (out, rank) of each adapted module, in fp32 on the CPU, before any training."""
ITERATIONS, OVERSAMPLING = 16, 8
"""Power iterations and additional directions of the randomized SVD (Halko, Martinsson and Tropp 2011).

LoftQ needs the additional directions, because the singular values of a quantization error decay slowly.
"""
PREFIX = "base_model.model."


@torch.no_grad()
def initialize(model: Any, init: str, directory: Path, kept: Factors | None = None) -> None:
    """Set A and B of each module, and take ``B·A``, scaled, out of the base with PiSSA and OLoRA.

    Args:
        model: A model with a fresh LoRA, whose B is zero.
        init: ``pissa``, ``olora`` or ``loftq``.
        directory: The base's files.
        kept: Factors that an earlier attempt has computed; None computes them.
    """
    if kept is not None:
        for name, module in list_adapted(model):
            a, b = kept[name]
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b)
    elif init == "loftq":
        _initialize_from_quantization_error(model, directory)
    if init == "loftq":
        return
    for module in model.modules():
        if isinstance(module, Linear):
            if kept is None:
                _initialize_from_weight(module, DECOMPOSITIONS[init])
            _subtract_update(module)


def list_adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """List the adapted modules with their names in the base."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name.removeprefix(PREFIX), module


def read_factors(model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return copies of A and B of each adapted module as they are now."""
    return {
        name: (
            module.lora_A["default"].weight.detach().float().cpu().clone(),
            module.lora_B["default"].weight.detach().float().cpu().clone(),
        )
        for name, module in list_adapted(model)
    }


def save_factors(factors: Factors, path: Path) -> None:
    """Write factors into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {f"{name}/{half}": part for name, pair in factors.items() for half, part in zip("AB", pair, strict=True)}
    save_file({name: half.contiguous() for name, half in halves.items()}, path)


def load_factors(path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read what ``save_factors`` wrote."""
    tensors = load_file(path)
    return {key[:-2]: (tensors[key], tensors[f"{key[:-2]}/B"]) for key in tensors if key.endswith("/A")}


def _initialize_from_weight(module: Any, decompose: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Set A and B by a decomposition of the weight. Ranks that the weight does not have stay as they are."""
    weight = _read_weight(module)
    rank = min(module.r["default"], *weight.shape)
    a, b = decompose(weight, rank, module.scaling["default"])
    module.lora_A["default"].weight[:rank].copy_(a)
    module.lora_B["default"].weight[:, :rank].copy_(b)


def _decompose_pissa(weight: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the principal directions (Meng et al. 2024): the randomized SVD takes seconds, the exact one minutes."""
    left, values, right = torch.svd_lowrank(weight, rank, niter=ITERATIONS)
    root = (values / scaling).sqrt()
    return root[:, None] * right.T, left * root


def _decompose_olora(weight: torch.Tensor, rank: int, _scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first columns of Q and rows of R (Büyükakyüz 2024).

    The first r columns of Q depend on the first r columns of the weight only, and R = Qᵀ·W.
    """
    q, _ = torch.linalg.qr(weight[:, :rank])
    return q.T @ weight, q


DECOMPOSITIONS = {"pissa": _decompose_pissa, "olora": _decompose_olora}


def _read_weight(module: Any) -> torch.Tensor:
    """Return the weight of the base's layer in fp32, of shape (out, in)."""
    weight: torch.Tensor = module.get_base_layer().weight.float()
    return weight.T if module.fan_in_fan_out else weight


def _subtract_update(module: Any) -> None:
    """Take the update out of the base, so that the model answers as before."""
    layer = module.get_base_layer()
    a, b = module.lora_A["default"].weight.float(), module.lora_B["default"].weight.float()
    rest = _read_weight(module) - module.scaling["default"] * b @ a
    layer.weight.copy_(rest.T if module.fan_in_fan_out else rest)


def _initialize_from_quantization_error(model: Any, directory: Path) -> None:
    """Set A and B so that B·A, scaled, best approximates the quantization error (Li et al. 2023, T = 1)."""
    files = _map_tensors(directory)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    module: Any
    for name, module in layers:
        base: Any = module.get_base_layer()
        if type(base.weight).__name__ not in QUANTIZED_PARAMETERS:
            continue  # not quantized, so there is no error
        quantized = dequantize_bnb_weight(base.weight, state=getattr(base, "state", None)).float()
        original = _read_original(files, name.removeprefix(PREFIX)).to(quantized.device, torch.float32)
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
