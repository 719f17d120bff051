"""Check that a model keeps packed examples apart; some models let each attend to those before it."""

from typing import Any

import torch

from finetune_api.reasons import Reason
from finetune_trainer.models import packed_attention
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

COMPARED_TOKENS = 16
"""Number of tokens of each of the two examples that are compared."""
LARGEST_SHARE = 0.05
"""Largest allowed mean difference, as a share of the logits' standard deviation.

Rounding in bf16 moves the logits by less than 0.01 of it, attention to another example by 0.1 and more.
"""


def refuse_contamination(problem: str | None) -> None:
    """Refuse to pack if an example's logits depend on the example that is packed before it.

    Args:
        problem: How they depend on it; None if they do not.

    Raises:
        Failure: MODEL_UNSUPPORTED: they depend on it.
    """
    if problem:
        raise Failure(Reason.MODEL_UNSUPPORTED, f"{problem}: set it to false", "spec.training.packing")


def prepare_packing(base: Any, sequences: Any) -> str | None:
    """Let a base model attend to packed examples one by one, if a test proves that this works.

    Otherwise the model attends as transformers does it, and is tested again.

    Args:
        base: The base model, without an adapter.
        sequences: Rows with ``input_ids``, before packing.

    Returns:
        How an example depends on the one before it; None if it does not.
    """
    if packed_attention.is_installed(base):
        return None  # an earlier call has proved it
    if packed_attention.install(base):
        try:
            if not (problem := find_contamination(base, sequences)):
                return None
        except (RuntimeError, TypeError, KeyError) as error:
            problem = repr(error)
        log.info("packed examples are masked, because attention without a mask failed: %s", problem)
        packed_attention.uninstall(base)
    return find_contamination(base, sequences)


def find_contamination(model: Any, sequences: Any) -> str | None:
    """Describe how an example's logits depend on the example packed before it; None if they do not.

    The two examples are given as TRL gives them: in one row, without an attention mask, with positions that restart.

    Args:
        model: The model that will be trained.
        sequences: Rows with ``input_ids``, before packing.
    """
    if len(sequences) < 2:
        return None
    first, second = (list(sequences[index]["input_ids"][:COMPARED_TOKENS]) for index in (0, 1))
    packed_ids = torch.tensor([first + second], device=model.device)
    positions = torch.tensor([[*range(len(first)), *range(len(second))]], device=model.device)
    borders: dict[str, Any] = {}
    if packed_attention.is_installed(model):
        borders = packed_attention.describe_borders([len(first), len(second)], model.device)
    with evaluation_mode(model):
        alone = model(input_ids=packed_ids[:, len(first) :], use_cache=False).logits.float()
        packed = model(input_ids=packed_ids, position_ids=positions, use_cache=False, **borders).logits
        packed = packed[:, len(first) :].float()
    share = float((alone - packed).abs().mean() / alone.std())
    if share <= LARGEST_SHARE:
        return None
    return (
        f"a model of type {model.config.model_type!r} lets packed examples attend to one another (its logits differ by "
        f"{share:.0%} of their spread)"
    )
