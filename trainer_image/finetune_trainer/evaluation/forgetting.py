"""Measure forgetting: the losses of base and adapter on a text that is not in the training data."""

from itertools import islice
from typing import Any

from finetune_api.data_counts import Counts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.forgetting import ForgettingStatus
from finetune_api.improvement import improvement_percent
from finetune_api.reasons import Reason
from finetune_trainer.data import forgetting_text
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.sources import LocalData, list_local_files
from finetune_trainer.data.tokens import Encoder
from finetune_trainer.evaluation.likelihood import mean_loss, perplexity
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log


def encode_text(spec: FineTuneJobSpec, text: LocalData | None, tokenizer: Any) -> list[Example]:
    """Cut the general text into sequences of ``training.maxLength`` tokens.

    Args:
        spec: The job; ``evaluation.forgetting`` limits the number of sequences.
        text: The files of the general text.
        tokenizer: The model's tokenizer.

    Returns:
        The sequences; an empty list if forgetting is not measured.

    Raises:
        Failure: DATASET_INVALID if the files hold no text.
    """
    settings = spec.evaluation.forgetting
    if settings is None or text is None:
        return []
    encoder = Encoder(tokenizer, "plain text", spec.training.max_length, Counts())
    blocks = encoder.encode_text(forgetting_text.read_text(list_local_files(text)))
    sequences = [Example(block["input_ids"], block["labels"]) for block in islice(blocks, settings.max_sequences)]
    if not sequences:
        raise Failure(Reason.DATASET_INVALID, f"{text.uri} holds no text: name one that does", forgetting_text.FIELD)
    return sequences


def measure_loss(model: Any, text: list[Example]) -> float | None:
    """Compute the mean negative log-likelihood per token, in nats; None without a text."""
    return mean_loss(model, text, max(len(example.input_ids) for example in text)) if text else None


def compare_losses(base_loss: float | None, tuned_loss: float | None, number: int) -> ForgettingStatus | None:
    """Compare the losses of base and adapter on the general text; None if they were not measured.

    Args:
        base_loss: Nats per token of the base.
        tuned_loss: Nats per token of the adapter.
        number: Number of measured sequences.
    """
    if base_loss is None or tuned_loss is None:
        return None
    increase = 0.0 - improvement_percent(base_loss, tuned_loss)
    log.info("loss on the general text: base %.4f, adapter %.4f (%+.1f %%)", base_loss, tuned_loss, increase)
    return ForgettingStatus(
        base_loss=round(base_loss, 5),
        loss=round(tuned_loss, 5),
        increase_percent=round(increase, 2),
        base_perplexity=round(perplexity(base_loss), 5),
        perplexity=round(perplexity(tuned_loss), 5),
        sequences=number,
    )
