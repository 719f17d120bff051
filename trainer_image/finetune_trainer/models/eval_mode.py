"""Switch a model to evaluation mode for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Turn off dropout and gradients within this block.

    No random number is drawn, so the training is unaffected.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
