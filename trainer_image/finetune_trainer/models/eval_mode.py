"""Put a model into evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Without dropout and gradients, and as before afterwards. No random number is drawn, so that training goes on as if nothing had been."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
