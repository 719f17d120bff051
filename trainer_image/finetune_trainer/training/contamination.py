"""Whether a model keeps packed examples apart: some architectures take no positions, and would let each example look at those before it."""

from typing import Any

import torch

from finetune_api.reasons import Reason
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure

TOKENS = 16
"""So many tokens of each of two examples are compared."""
LARGEST_SHARE = 0.05
"""Of the logits' own spread: rounding in bf16 moves them by less than a hundredth, the sight of another example by a tenth and more."""


def refuse_contamination(model: Any, sequences: Any) -> None:
    """Raise Failure(MODEL_UNSUPPORTED) if an example's logits depend on the one that is packed before it.

    ``sequences``: rows with ``input_ids``, before they are packed. The two are given as TRL gives them: in one row without an attention mask,
    with positions that begin anew.
    """
    if len(sequences) < 2:
        return
    first, second = (list(sequences[index]["input_ids"][:TOKENS]) for index in (0, 1))
    together = torch.tensor([first + second], device=model.device)
    positions = torch.tensor([[*range(len(first)), *range(len(second))]], device=model.device)
    with evaluation_mode(model):
        alone = model(input_ids=together[:, len(first) :], use_cache=False).logits.float()
        packed = model(input_ids=together, position_ids=positions, use_cache=False).logits[:, len(first) :].float()
    share = float((alone - packed).abs().mean() / alone.std())
    if not share <= LARGEST_SHARE:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"a model of type {model.config.model_type!r} lets packed examples look at one another (its logits move by {share:.0%} of their spread): set it to false",
            "spec.training.packing",
        )
