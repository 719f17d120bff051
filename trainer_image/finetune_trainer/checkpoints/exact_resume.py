"""Save all trained weights of every method bit for bit, so that a resumed run ends with the same weights."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from finetune_api.reasons import Reason
from finetune_trainer.distributed import random_state
from finetune_trainer.methods import adalora
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.phase_clock import CLOCK

PEFT_FILE, REST_FILE = "adapter_model.safetensors", "trained.safetensors"
"""The files of a checkpoint with the trained weights that PEFT saves, and with all others."""


def with_exact_resume(trainer: type[Any]) -> type[Any]:
    """Return the trainer's class with exact checkpoints and AdaLoRA's regularisation."""
    return type(f"Exact{trainer.__name__}", (ExactResumeMixin, trainer), {})


class ExactResumeMixin:
    """Mixin before a subclass of transformers' Trainer: exact checkpoints, and AdaLoRA's part of the loss."""

    model: Any
    args: Any
    state: Any
    current_gradient_accumulation_steps: int
    train_sampler: Any = None
    """The sampler that decides the order of the rows; None for the Trainer's own."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.train_sampler or super()._get_train_sampler(train_dataset)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with CLOCK.spend("checkpoint"):
            super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, PeftModel):
            # PEFT saves the output of a prompt's encoder: no dropout may change it, or draw a random number
            with evaluation_mode(self.model):
                super()._save(output_dir, state_dict)  # type: ignore[misc]
        save(self.model, directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load(self.model if model is None else model, Path(resume_from_checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.world_size == 1:
            super()._save_rng_state(output_dir)  # type: ignore[misc]
        else:
            random_state.save_random_state(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if random_state.count_saved_processes(Path(checkpoint)) != self.args.world_size:
            random_state.seed_process(self.args.seed, self.state.global_step, self.args.process_index)
        elif self.args.world_size == 1:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
        else:
            random_state.load_random_state(Path(checkpoint), self.args.process_index)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add AdaLoRA's regularisation to the loss, in training only."""
        outcome = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        extra = adalora.compute_orthogonal_regularization(self.model) if self.model.training else None
        if extra is None:
            return outcome
        # if the number of tokens is given, the Trainer adds up the losses of the micro-steps
        extra = extra / (self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1)
        return (outcome[0] + extra, outcome[1]) if return_outputs else outcome + extra


def save(model: Any, directory: Path) -> None:
    """Write each trained weight that PEFT's file in ``directory`` does not hold bit for bit.

    Such weights are a prompt's encoder, ranks that AdaLoRA has pruned, or a whole model.
    """
    path = directory / PEFT_FILE
    saved_weights = load_file(path) if path.is_file() else {}
    rest = {}
    for name, weight in trained_weights(model).items():
        saved, value = saved_weights.get(_key(name)), weight.detach().cpu().contiguous()
        if saved is None or saved.dtype != value.dtype or not torch.equal(saved, value):
            rest[name] = value
    if rest:
        save_file(rest, directory / REST_FILE)
    adalora.save_allocator(model, directory)


def load(model: Any, directory: Path) -> None:
    """Copy the trained weights of a checkpoint into the model.

    Raises:
        Failure: TRAINER_ERROR if a weight is missing or has another shape.
    """
    saved_weights: dict[str, torch.Tensor] = {}
    for name in (PEFT_FILE, REST_FILE):
        if (directory / name).is_file():
            saved_weights |= load_file(directory / name)
    with torch.no_grad():
        for name, weight in trained_weights(model).items():
            value = saved_weights.get(name, saved_weights.get(_key(name)))
            if value is None or value.shape != weight.shape:
                problem = (
                    "missing" if value is None else f"of shape {tuple(value.shape)}, expected {tuple(weight.shape)}"
                )
                raise Failure(
                    Reason.TRAINER_ERROR,
                    f"the training cannot continue from the checkpoint in {directory}: {name} is {problem}",
                )
            weight.copy_(value)
    adalora.load_allocator(model, directory)


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _key(name: str) -> str:
    """Return the weight's name in PEFT's file, which leaves out the adapter's name."""
    return name.removesuffix(".default").replace(".default.", ".")
