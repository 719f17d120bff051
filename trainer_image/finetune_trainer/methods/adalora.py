"""Run the parts of AdaLoRA that neither transformers nor TRL runs.

These are the removal of ranks after each step, the regularization, and the state in checkpoints.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from safetensors import safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ALLOCATOR_FILE = "allocator.safetensors"
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def find_adalora(model: Any) -> Any:
    """Return the ``AdaLoraModel`` of a model; None if there is none."""
    adalora_model = model.base_model if isinstance(model, PeftModel) else None
    return adalora_model if isinstance(adalora_model, AdaLoraModel) else None


class RankAllocationCallback(TrainerCallback):
    """Remove ranks after each optimizer step, while the gradients are still there."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Update the importance of each rank, and remove the least important ones."""
        adalora_model = find_adalora(model)
        if adalora_model is not None:
            allocate_ranks(adalora_model, state.global_step, skipped=optimizer.step_was_skipped)


def allocate_ranks(adalora_model: Any, step: int, *, skipped: bool) -> None:
    """Run PEFT's rank allocation after a step; a step that was skipped for an fp16 overflow changes no importance.

    PEFT would average the infinite gradients into the importance, which would then stay NaN.
    """
    allocator, config = adalora_model.rankallocator, adalora_model.peft_config["default"]
    if not skipped:
        adalora_model.update_and_allocate(step)
        return
    has_importance = config.rank_pattern if step > config.total_step - config.tfinal else allocator.exp_avg_ipt
    if not has_importance:
        return  # so far every step has overflowed
    allocator.update_ipt = lambda _: None
    try:
        adalora_model.update_and_allocate(step)
    finally:
        del allocator.update_ipt


def compute_orthogonal_regularization(model: Any) -> torch.Tensor | None:
    """Compute the orthogonality loss of the singular vectors, weighted; None without AdaLoRA.

    It is a part of the training loss (Zhang et al. 2023, equation 4).
    """
    adalora_model = find_adalora(model)
    if adalora_model is None:
        return None
    terms = []
    for name, weight in adalora_model.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            terms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    weighted: torch.Tensor = adalora_model.peft_config["default"].orth_reg_weight * torch.stack(terms).mean()
    return weighted


def collect_allocator(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Return the running averages, and the remaining ranks as metadata; None for another method."""
    adalora_model = find_adalora(model)
    if adalora_model is None:
        return None
    allocator = adalora_model.rankallocator
    tensors = {f"{kind}/{name}": value for kind in AVERAGES for name, value in getattr(allocator, kind).items()}
    pattern = adalora_model.peft_config["default"].rank_pattern
    return tensors, {"rank_pattern": json.dumps(pattern)}


def load_allocator(model: Any, directory: Path) -> None:
    """Read the file of what ``collect_allocator`` returned; do nothing for another method."""
    adalora_model = find_adalora(model)
    if adalora_model is None:
        return
    allocator = adalora_model.rankallocator
    allocator.reset_ipt()
    device = next(adalora_model.parameters()).device
    with safe_open(directory / ALLOCATOR_FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 -- the file is no mapping
            kind, _, name = key.partition("/")
            getattr(allocator, kind)[name] = file.get_tensor(key).to(device)
        adalora_model.peft_config["default"].rank_pattern = json.loads(file.metadata()["rank_pattern"])
