"""Our trainer for sft computes what TRL's does, bit for bit, and reads nothing from the device in a micro-step."""

from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.models import packed_attention
from finetune_trainer.training.sft import SftTrainer


class TensorReadCounter(TorchDispatchMode):
    """Counts the numbers that are read from tensors, for which the host waits."""

    def __init__(self) -> None:
        """Start at none."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation that reads a number."""
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def run(kind: type[Any], model: Path, directory: Path, *, packing: bool) -> tuple[list[dict[str, Any]], int]:
    """Return what is logged of a short training, and the numbers that its losses read from tensors."""
    set_seed(0)
    reads = 0

    class Counted(kind):  # type: ignore[misc]
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            nonlocal reads
            with TensorReadCounter() as mode:
                loss = super().compute_loss(*arguments, **named)
            reads += mode.count
            return loss

    rows = [{"input_ids": [*range(5, 5 + size)], "labels": [-100, *range(6, 5 + size)]} for size in (9, 20, 5, 14) * 2]
    dataset = datasets.Dataset.from_list(rows)
    arguments = SFTConfig(
        output_dir=str(directory),
        max_length=32,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        packing=packing,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    base = AutoModelForCausalLM.from_pretrained(model)
    if packing:
        assert packed_attention.install(base)
    trainer = Counted(
        model=base,
        args=arguments,
        train_dataset=pack_dataset(dataset, 32, "bfd") if packing else dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{k: v for k, v in entry.items() if k not in timed} for entry in trainer.state.log_history], reads


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_losses_and_metrics_are_those_of_trl_without_waiting_for_them(
    base_model: Path, tmp_path: Path, packing: bool
) -> None:
    expected, waits = run(SFTTrainer, base_model, tmp_path / "trl", packing=packing)
    logged, reads = run(SftTrainer, base_model, tmp_path / "ours", packing=packing)
    assert logged == expected
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} <= logged[0].keys()
    micro_steps = 8
    assert waits - reads >= 5 * micro_steps
    # transformers' mask of padded rows looks whether there is padding
    assert reads <= (0 if packing else 2 * micro_steps)
