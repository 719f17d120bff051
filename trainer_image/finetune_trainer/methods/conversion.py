"""Write adapters whose update has a low rank as plain LoRA, which inference engines serve.

The conversion needs no decomposition. It rounds each number of B once, to fp32, and not at all if the scales are powers
of two. A plain LoRA has one rank and one scale, ``lora_alpha / r``, for all modules, which all engines apply in the
same way.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

from finetune_api.roles import suffixes
from finetune_engines import highest_rank
from finetune_trainer.methods.initialization import Factors as InitialFactors
from finetune_trainer.methods.initialization import list_adapted

Factors = tuple[torch.Tensor, torch.Tensor]
"""A of shape (rank, in) and B of shape (out, rank), in fp32 on the CPU: the update is B·A, with no further scale."""
_FOLDED = ("use_rslora", "rank_pattern", "alpha_pattern")
"""Options of PEFT's LoraConfig that only set ranks and scales. Some engines ignore them."""
_MORE_THAN_FACTORS = (
    "use_dora", "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication",
    "alora_invocation_tokens", "use_bdlora", "use_qalora",
)  # fmt: skip
"""Options with which the update is not B·A of a linear layer."""
_SMALLEST = torch.finfo(torch.float32).tiny
MAX_RANK = highest_rank()
"""The highest rank that an engine serves."""


def low_rank_factors(model: PeftModel, initial: InitialFactors | None = None) -> dict[str, Factors] | None:
    """Return the update of each adapted module as factors; None if its rank is not low.

    Args:
        model: The adapted model.
        initial: The initial factors with PiSSA, OLoRA or LoftQ. The result is then B·A − B₀·A₀, of twice the rank, on
            the base as it was before.
    """
    config: Any = model.peft_config["default"]
    kind = config.peft_type.value
    if kind not in _FACTORS or config.modules_to_save or getattr(config, "bias", "none") != "none":
        return None
    if kind == "LORA" and (config.use_dora or not (initial is not None or list_foldable(model))):
        return None
    factors = {}
    for name, module in list_adapted(model):
        a, b = (part.detach().float().cpu() for part in _FACTORS[kind](module))
        if initial is not None:
            first_a, first_b = initial[name]
            a, b = torch.cat([a, first_a]), torch.cat([b, -_scale(first_b, module)], dim=1)
        factors[name] = (a, b)
    if not factors or max(len(a) for a, _ in factors.values()) > MAX_RANK:
        return None
    return factors


def list_foldable(model: PeftModel) -> list[str]:
    """List the options of a LoRA that can be folded into its weights, so that no engine needs to know them.

    The list is empty for a LoRA without such options, and for one that is more than the factors of linear layers.
    """
    config: Any = model.peft_config["default"]
    layers = [module for _, module in list_adapted(model)]
    if any(getattr(config, name, None) for name in _MORE_THAN_FACTORS) or any(
        "default" not in layer.lora_A or layer.lora_A["default"].weight.dim() != 2 for layer in layers
    ):
        return []
    return [name for name in _FOLDED if getattr(config, name, None)]


def measure_folding(model: PeftModel) -> float:
    """Measure the largest relative error of B's numbers after folding in the module's scale: at most 2⁻²⁴."""
    errors = [0.0]
    for _, module in list_adapted(model):
        exact = module.lora_B["default"].weight.detach().double() * module.scaling["default"]
        rounded = _lora(module)[1].detach().double()
        errors.append(float(((rounded - exact).abs() / exact.abs().clamp(min=_SMALLEST)).max()))
    return max(errors)


def lora_factors(model: PeftModel) -> dict[str, Factors]:
    """Return the update of each module of a LoRA as it is now."""
    return {
        name: tuple(part.detach().float().cpu().clone() for part in _lora(module))  # type: ignore[misc]
        for name, module in list_adapted(model)
    }


def write_lora(factors: Mapping[str, Factors], linear: list[str], directory: Path) -> int:
    """Write a plain LoRA that PEFT and vLLM load, and return its rank.

    The rank is that of the largest module; the others are padded with zeros.

    Args:
        factors: The factors of each adapted module.
        linear: The names of all linear layers. If the last parts of their names identify the adapted ones, only these
            parts are written.
        directory: Directory for the LoRA.
    """
    rank = max(len(a) for a, _ in factors.values())
    tensors = {}
    for name, (a, b) in factors.items():
        gap = rank - len(a)
        # B·A = (B/s)·(A·s): factors of the same size lose less in an engine that stores bf16
        # a power of two changes no digit
        size = 2.0 ** round(math.log2(float(b.norm()) / float(a.norm())) / 2) if a.norm() and b.norm() else 1.0
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.nn.functional.pad(
            a * size, (0, 0, 0, gap)
        ).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.nn.functional.pad(b / size, (0, gap)).contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    short = sorted(suffixes(factors))
    exact = {name for name in linear if name.rsplit(".", 1)[-1] in short} == set(factors)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=short if exact else sorted(factors),
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    return rank


def set_base_name(directory: Path, base: str, revision: str | None) -> None:
    """Write the base's public name in place of its local path, and sort the lists of modules."""
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base, "revision": revision}
    if config.get("tokenizer_name_or_path"):
        config["tokenizer_name_or_path"] = base
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lora(module: Any) -> Factors:
    return module.lora_A["default"].weight, _scale(module.lora_B["default"].weight, module)


def _scale(b: torch.Tensor, module: Any) -> torch.Tensor:
    """Return a module's B with the scale of its update folded in."""
    scale: float = module.scaling["default"]
    return (b.double() * scale).float()


def _adalora(module: Any) -> Factors:
    e = module.lora_E["default"]
    kept_ranks = (e != 0).flatten()
    scale = module.scaling["default"] / (module.ranknum["default"] + 1e-5)
    if not kept_ranks.any():
        kept_ranks[0] = True  # the update of a module without ranks is zero
    return (module.lora_A["default"] * e * scale)[kept_ranks], module.lora_B["default"][:, kept_ranks]


def _vera(module: Any) -> Factors:
    a = module.vera_A["default"][:, : module.in_features].to(module.vera_lambda_d["default"].device)
    b = module.vera_B["default"][: module.out_features].to(a.device)
    return module.vera_lambda_d["default"][:, None] * a, module.vera_lambda_b["default"][:, None] * b


def _miss(module: Any) -> Factors:
    block = module.miss_block["default"]
    repeats = -(-module.in_features // len(block))
    eye = torch.eye(len(block), device=block.device, dtype=block.dtype)
    return eye.repeat(1, repeats)[:, : module.in_features], block.T


def _loha(module: Any) -> Factors:
    w1a, w1b, w2a, w2b = (getattr(module, f"hada_{part}")["default"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    b = torch.einsum("or,os->ors", w1a, w2a).flatten(1) * module.scaling["default"]
    return torch.einsum("ri,si->rsi", w1b, w2b).flatten(0, 1), b


def _lokr(module: Any) -> Factors:
    left_a, left_b = _lokr_half(module, "lokr_w1")
    right_a, right_b = _lokr_half(module, "lokr_w2")
    return torch.kron(left_a, right_a), torch.kron(left_b, right_b) * module.scaling["default"]


def _lokr_half(module: Any, name: str) -> Factors:
    """Return a factor of the Kronecker product as B·A; an undivided one is multiplied by the identity."""
    if "default" not in getattr(module, name):
        return getattr(module, f"{name}_b")["default"], getattr(module, f"{name}_a")["default"]
    undivided = getattr(module, name)["default"]
    rows, columns = undivided.shape
    eye = torch.eye(min(rows, columns), device=undivided.device, dtype=undivided.dtype)
    return (undivided, eye) if rows <= columns else (eye, undivided)


_FACTORS: dict[str, Callable[[Any], Factors]] = {
    "LORA": _lora,
    "ADALORA": _adalora,
    "VERA": _vera,
    "MISS": _miss,
    "LOHA": _loha,
    "LOKR": _lokr,
}
