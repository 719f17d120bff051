"""Merge the adapter into its base, save the merged model, and compare it with the trained one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.data.tokenizer import copy_tokenizer
from finetune_trainer.evaluation.likelihood import compute_logits
from finetune_trainer.evaluation.verification import (
    TrainedAnswers,
    largest_difference,
    list_answers,
    load_tuned,
    subtract,
)
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure

MERGED_TOLERANCE = 0.25
"""Largest allowed mean difference of a merged model, in nats per token: its weights are rounded to its precision."""


def merge(
    base_directory: Path,
    adapter: Path,
    *,
    load_base: Callable[[Path], Any],
    trained: TrainedAnswers,
    directory: Path,
    tokens: int,
) -> dict[str, float]:
    """Merge the adapter into the base, save the model, load it again, and compare it with the trained one.

    Args:
        base_directory: The base model.
        adapter: Directory of the saved adapter.
        load_base: Loads a model from a directory; its precision is that of the merged model.
        trained: The logits that the trained model gave.
        directory: Receives the merged model.
        tokens: Most tokens of a batch.

    Returns:
        The differences from the trained model, by name.

    Raises:
        Failure: VerificationFailed, if the differences are too large.
    """
    tuned = load_tuned(load_base(base_directory), adapter, load_base)
    merged = tuned.merge_and_unload(safe_merge=True)
    merged.save_pretrained(str(directory), safe_serialization=True)
    copy_tokenizer(base_directory, directory)
    del tuned, merged
    device.free_memory()
    reloaded = load_base(directory)
    logits = compute_logits(reloaded, trained.token_ids, tokens)
    differences = subtract(list_answers(logits, trained.token_ids), list_answers(trained.logits, trained.token_ids))
    mean = sum(map(abs, differences)) / len(differences)
    if not mean <= MERGED_TOLERANCE:
        raise Failure(
            Reason.VERIFICATION_FAILED,
            f"the merged model's log-probabilities differ by {mean:.3g} nats from the trained model's, "
            f"allowed are {MERGED_TOLERANCE}",
        )
    return {"maxMergedLogitDifference": largest_difference(logits, trained.logits), "meanMergedLogprobDifference": mean}
