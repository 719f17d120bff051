"""TensorBoard's files, made of what was logged over all attempts: one file, however often the run was interrupted."""

from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

SCALARS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "memory_bytes": "train/memory_bytes",
    "eval_loss": "eval/loss",
    "general_loss": "eval/general_loss",
}
"""The names under which transformers shows the same values."""


def write(history: list[dict[str, Any]], directory: Path) -> None:
    """Write the event file of a run."""
    with SummaryWriter(str(directory)) as writer:
        for entry in history:
            for key, tag in SCALARS.items():
                if entry.get(key) is not None:
                    writer.add_scalar(tag, entry[key], entry["step"])
