"""Merge the adapter into its base, save the merged model, and compare it with the trained one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.data.tokenizer import copy_tokenizer
from finetune_trainer.evaluation.likelihood import compute_logits, token_logprobs
from finetune_trainer.evaluation.verification import LAYOUT_TOLERANCE, TrainedAnswers, load_tuned
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure


def merge(
    base_directory: Path, adapter: Path, *, load_base: Callable[[Path], Any], trained: TrainedAnswers, directory: Path
) -> dict[str, float]:
    """Merge the adapter into the base, save the model, load it again, and compare it with the trained one.

    Args:
        base_directory: The base model.
        adapter: Directory of the saved adapter.
        load_base: Loads a model from a directory; its precision is that of the merged model.
        trained: The logits that the trained model gave.
        directory: Receives the merged model.

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
    logit_difference, logprob_differences = 0.0, []
    for ids, expected in zip(trained.token_ids, trained.logits, strict=True):
        logits = compute_logits(reloaded, ids)
        logit_difference = max(logit_difference, float((logits - expected).abs().max()))
        pairs = zip(token_logprobs(logits, ids), token_logprobs(expected, ids), strict=True)
        logprob_differences += [abs(one - other) for one, other in pairs]
    mean = sum(logprob_differences) / len(logprob_differences)
    if not mean <= LAYOUT_TOLERANCE:
        raise Failure(
            Reason.VERIFICATION_FAILED,
            f"the merged model's log-probabilities differ by {mean:.3g} nats from the trained model's, "
            f"allowed are {LAYOUT_TOLERANCE}",
        )
    return {"maxMergedLogitDifference": logit_difference, "meanMergedLogprobDifference": mean}
