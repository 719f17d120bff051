"""Check that a model keeps packed examples apart; some let each attend to those before it."""

from typing import Any

import torch

from finetune_api.reasons import Reason
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure

COMPARED_TOKENS = 16
"""Number of tokens of each of the two examples that are compared."""
LARGEST_SHARE = 0.05
"""Largest allowed mean difference, as a share of the logits' standard deviation.

Rounding in bf16 moves the logits by less than 0.01 of it, attention to another example by 0.1 and more.
"""


def refuse_contamination(model: Any, sequences: Any) -> None:
    """Check that an example's logits do not depend on the example that is packed before it.

    The two examples are given as TRL gives them: in one row, without an attention mask, with positions that restart.

    Args:
        model: The model that will be trained.
        sequences: Rows with ``input_ids``, before packing.

    Raises:
        Failure: ModelUnsupported, if they depend on it.
    """
    if len(sequences) < 2:
        return
    first, second = (list(sequences[index]["input_ids"][:COMPARED_TOKENS]) for index in (0, 1))
    packed_ids = torch.tensor([first + second], device=model.device)
    positions = torch.tensor([[*range(len(first)), *range(len(second))]], device=model.device)
    with evaluation_mode(model):
        alone = model(input_ids=packed_ids[:, len(first) :], use_cache=False).logits.float()
        packed = model(input_ids=packed_ids, position_ids=positions, use_cache=False).logits[:, len(first) :].float()
    share = float((alone - packed).abs().mean() / alone.std())
    if not share <= LARGEST_SHARE:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"a model of type {model.config.model_type!r} lets packed examples attend to one another (its logits "
            f"differ by {share:.0%} of their spread): set it to false",
            "spec.training.packing",
        )
