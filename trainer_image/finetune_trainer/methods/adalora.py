"""What AdaLoRA needs of the loop, which neither transformers nor TRL gives it: ranks taken away after each step, its regularisation, its state in checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STATE = "allocator.safetensors"
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def of(model: Any) -> Any:
    """The ``AdaLoraModel`` in a model; None if there is none."""
    part = model.base_model if isinstance(model, PeftModel) else None
    return part if isinstance(part, AdaLoraModel) else None


class Pruning(TrainerCallback):
    """Takes ranks away after each optimizer step, while the gradients are still there."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Take ranks away as the schedule of AdaLoRA says for this step."""
        part = of(model)
        if part is not None:
            part.update_and_allocate(state.global_step)


def regularisation(model: Any) -> torch.Tensor | None:
    """How far the singular vectors are from being orthogonal, weighted (Zhang et al. 2023, equation 4): a part of the loss. None without AdaLoRA."""
    part = of(model)
    if part is None:
        return None
    terms = []
    for name, weight in part.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            terms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    weighted: torch.Tensor = part.peft_config["default"].orth_reg_weight * torch.stack(terms).mean()
    return weighted


def save(model: Any, directory: Path) -> None:
    """Write the allocator's running averages and the ranks that are left; nothing for another method."""
    part = of(model)
    if part is None:
        return
    allocator = part.rankallocator
    tensors = {
        f"{kind}/{name}": value.contiguous().cpu()
        for kind in AVERAGES
        for name, value in getattr(allocator, kind).items()
    }
    pattern = part.peft_config["default"].rank_pattern
    save_file(tensors, directory / STATE, metadata={"rank_pattern": json.dumps(pattern)})


def restore(model: Any, directory: Path) -> None:
    """Read what ``save`` wrote."""
    part = of(model)
    if part is None:
        return
    allocator = part.rankallocator
    allocator.reset_ipt()
    device = next(part.parameters()).device
    with safe_open(directory / STATE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 -- the file is no mapping
            kind, _, name = key.partition("/")
            getattr(allocator, kind)[name] = file.get_tensor(key).to(device)
        part.peft_config["default"].rank_pattern = json.loads(file.metadata()["rank_pattern"])
