"""Merge the adapter into its base, and compare the saved model with the adapter's golden samples."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.manifest import GOLDEN_NAME, GoldenSample, GoldenSamples
from finetune_api.reasons import Reason
from finetune_trainer.data.tokenizer import copy_tokenizer
from finetune_trainer.evaluation import effect
from finetune_trainer.evaluation.likelihood import compute_logits
from finetune_trainer.evaluation.verification import list_answers, load_tuned, subtract
from finetune_trainer.models import device, saving
from finetune_trainer.runtime.failures import Failure

SHARD_SIZE = "2GB"
"""Size of a file of the merged model, which is in memory twice while it is written."""


def merge(
    base_directory: Path, adapter: Path, directory: Path, *, load_base: Callable[[Path], Any], tokens: int
) -> dict[str, float]:
    """Merge the adapter into the base, save the model, load it again, and compare it with the golden samples.

    The golden samples go with the model, so that a pod can prove what it serves.

    Args:
        base_directory: The base model.
        adapter: Directory of the published adapter.
        directory: Directory for the merged model.
        load_base: Loads a model from a directory, in the precision of the merged model.
        tokens: Maximum number of tokens in a batch.

    Returns:
        The differences from the adapter on its base, by name.

    Raises:
        Failure: VERIFICATION_FAILED: the differences are too large.
    """
    samples = read_golden(adapter)
    tuned = load_tuned(load_base(base_directory), adapter, load_base)
    merged = tuned.merge_and_unload(safe_merge=True)
    saving.save_model(merged, directory, max_shard_size=SHARD_SIZE)
    copy_tokenizer(base_directory, directory)
    shutil.copyfile(adapter / GOLDEN_NAME, directory / GOLDEN_NAME)
    del tuned, merged
    device.free_memory()
    return compare_with_golden(load_base(directory), samples, tokens)


def read_golden(adapter: Path) -> list[GoldenSample]:
    """Read the adapter's golden samples. Raises Failure if it has none: a merge of it could not be checked."""
    path = adapter / GOLDEN_NAME
    if not path.is_file():
        raise Failure(Reason.VERIFICATION_FAILED, f"the adapter has no {GOLDEN_NAME} to compare the merged model with")
    return GoldenSamples.model_validate_json(path.read_bytes()).samples


def compare_with_golden(merged: Any, samples: list[GoldenSample], tokens: int) -> dict[str, float]:
    """Compare the merged model's effect on the base's log-probabilities with that of the adapter.

    Returns:
        The mean difference in nats, and the share of the adapter's effect, by name.

    Raises:
        Failure: VERIFICATION_FAILED: the effects differ.
    """
    texts = [sample.token_ids for sample in samples]
    base, adapter = [sample.base_logprobs for sample in samples], [sample.adapter_logprobs for sample in samples]
    shown = list_answers(compute_logits(merged, texts, tokens), texts)
    comparison = effect.compare_effects(subtract(adapter, base), subtract(shown, base))
    differences = subtract(shown, adapter)
    problem = "its logits are not finite"
    if all(map(math.isfinite, differences)):
        problem = effect.find_mismatch(comparison, "rounded") or ""
    if problem:
        raise Failure(
            Reason.VERIFICATION_FAILED,
            f"the merged model, loaded again, does not answer as the adapter on its base: {problem}. Was the base "
            "changed since the training? Else serve the adapter beside its base",
        )
    mean = sum(map(abs, differences)) / len(differences)
    return {"meanMergedLogprobDifference": mean, "shareOfTrainedEffect": comparison.share}
