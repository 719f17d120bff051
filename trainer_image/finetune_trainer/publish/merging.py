"""The adapter merged into its base, saved as a model of its own, and measured against what was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.evaluation.likelihood import logits_of, logprobs
from finetune_trainer.evaluation.verification import LAYOUT_TOLERANCE, TrainedAnswers, load_tuned
from finetune_trainer.models import device, loading
from finetune_trainer.runtime.failures import Failure


def merge(
    base_directory: Path, adapter: Path, load_base: Callable[[Path], Any], trained: TrainedAnswers, directory: Path
) -> dict[str, float]:
    """Save base and adapter as one model in the precision that ``load_base`` gives, load it back, and say how far its answers are from those of what was trained.

    Raises Failure(VERIFICATION_FAILED) for answers that are too far away.
    """
    tuned = load_tuned(load_base(base_directory), adapter, load_base)
    merged = tuned.merge_and_unload(safe_merge=True)
    merged.save_pretrained(str(directory), safe_serialization=True)
    loading.copy_tokenizer(base_directory, directory)
    del tuned, merged
    device.free_memory()
    again = load_base(directory)
    logit_difference, logprob_differences = 0.0, []
    for ids, expected in zip(trained.token_ids, trained.logits, strict=True):
        logits = logits_of(again, ids)
        logit_difference = max(logit_difference, float((logits - expected).abs().max()))
        pairs = zip(logprobs(logits, ids), logprobs(expected, ids), strict=True)
        logprob_differences += [abs(one - other) for one, other in pairs]
    mean = sum(logprob_differences) / len(logprob_differences)
    if not mean <= LAYOUT_TOLERANCE:
        raise Failure(
            Reason.VERIFICATION_FAILED,
            f"the merged model's log-probabilities differ by {mean:.3g} nats from the trained model's, expected at most {LAYOUT_TOLERANCE}",
        )
    return {"maxMergedLogitDifference": logit_difference, "meanMergedLogprobDifference": mean}
