"""Save all trained weights of every method bit for bit, so that a resumed run ends with the same weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from finetune_api.reasons import Reason
from finetune_trainer.distributed import random_state
from finetune_trainer.methods import adalora
from finetune_trainer.runtime.failures import Failure

WEIGHTS_FILE = "trained.safetensors"
"""The file of a checkpoint with all trained weights."""

PEFT_FILE, OLD_RANDOM_STATE = "adapter_model.safetensors", "rng_state.pth"
"""What checkpoints of version 0.1 have: the weights that PEFT saves, and the random state of a single process."""

TensorFiles = dict[str, tuple[Mapping[str, torch.Tensor], dict[str, str]]]
"""Safetensors files by name: tensors and metadata."""


def with_exact_resume(trainer: type[Any]) -> type[Any]:
    """Return the trainer's class with exact checkpoints and AdaLoRA's regularisation."""
    return type(f"Exact{trainer.__name__}", (ExactResumeMixin, trainer), {})


class ExactResumeMixin:
    """Mixin before a subclass of transformers' Trainer: exact checkpoints, and AdaLoRA's part of the loss."""

    model: Any
    args: Any
    state: Any
    current_gradient_accumulation_steps: int
    store_flos: Callable[[], None]
    train_sampler: Any = None
    """The sampler that decides the order of the rows; None for the Trainer's own."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.train_sampler or super()._get_train_sampler(train_dataset)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write nothing: the callback takes a snapshot, in ``on_save``."""
        self.store_flos()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if random_state.count_saved_processes(Path(checkpoint)) != self.args.world_size:
            random_state.seed_process(self.args.seed, self.state.global_step, self.args.process_index)
        elif (Path(checkpoint) / OLD_RANDOM_STATE).is_file():
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


def collect(model: Any) -> TensorFiles:
    """Return the files with all trained weights. The tensors are those of the model, not copies."""
    files: TensorFiles = {WEIGHTS_FILE: (trained_weights(model), {})}
    allocator = adalora.collect_allocator(model)
    return files if allocator is None else files | {adalora.ALLOCATOR_FILE: allocator}


def write(files: TensorFiles, directory: Path) -> None:
    """Write the files that ``collect`` returned."""
    for name, (tensors, metadata) in files.items():
        values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(values, directory / name, metadata=metadata)


def load(model: Any, directory: Path) -> None:
    """Copy the trained weights of a checkpoint into the model.

    Raises:
        Failure: TRAINER_ERROR if a weight is missing or has another shape.
    """
    saved_weights: dict[str, torch.Tensor] = {}
    for name in (PEFT_FILE, WEIGHTS_FILE):
        if (directory / name).is_file():
            saved_weights |= load_file(directory / name)
    with torch.no_grad():
        for name, weight in trained_weights(model).items():
            value = saved_weights.get(name, saved_weights.get(_peft_name(name)))
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


def _peft_name(name: str) -> str:
    """Return the weight's name in PEFT's file, which leaves out the adapter's name."""
    return name.removesuffix(".default").replace(".default.", ".")
