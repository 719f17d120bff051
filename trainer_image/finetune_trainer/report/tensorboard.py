"""Write one TensorBoard event file with the metrics of all attempts."""

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
"""TensorBoard's tag of each value: the names that transformers uses."""


def write_events(history: list[dict[str, Any]], directory: Path) -> None:
    """Write the event file of a run."""
    with SummaryWriter(str(directory)) as writer:
        for entry in history:
            for key, tag in SCALARS.items():
                if entry.get(key) is not None:
                    writer.add_scalar(tag, entry[key], entry["step"])
