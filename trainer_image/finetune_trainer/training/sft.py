"""Adapt TRL's trainer for objective sft, so that no micro-step waits for metrics from the GPU."""

from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer


class SftTrainer(SFTTrainer):
    """Compute TRL's loss and metrics to the bit, and read the metrics only when they are logged."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-step; an evaluation is left to TRL."""
        if return_outputs or not model.training:
            trl: Any = super().compute_loss
            return trl(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        outputs = model(**inputs, fused_lm_head=True)
        learned = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (-outputs.log_probs).sum() / torch.as_tensor(learned).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._record(inputs, outputs)
        return loss

    def _record(self, inputs: Any, outputs: Any) -> None:
        """Keep the metrics of a micro-step where they are computed."""
        gather, metrics = self.accelerator.gather_for_metrics, self._metrics["train"]
        learned = gather(outputs.label_mask.sum()).sum()
        for name, values in (("entropy", outputs.entropy.detach()), ("mean_token_accuracy", outputs.is_top1)):
            total = gather(values.sum()).sum()
            metrics[name].append(torch.where(learned > 0, total / learned, 0.0))
        mask = inputs.get("attention_mask")
        positions = inputs.get("position_ids")
        tokens = torch.tensor(positions.size(1), device=positions.device) if mask is None else mask.sum()
        self._total_train_tokens = self._total_train_tokens + gather(tokens).sum()
        metrics["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Read the metrics from the GPU, and log them."""
        for values in self._metrics["train"].values():
            if values and isinstance(values[0], torch.Tensor):
                values[:] = torch.stack(values).tolist()
        super().log(logs, start_time)
