"""What the training has cost: the loss of base and adapter on a general text, which the adapter was not trained for."""

from itertools import islice
from typing import Any

from finetune_api.dataset import Counts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.forgetting import ForgettingStatus
from finetune_api.reasons import Reason
from finetune_trainer.data import forgetting_text
from finetune_trainer.data.dataset import Example
from finetune_trainer.data.sources import LocalData, list_local_files
from finetune_trainer.data.tokens import Encoder
from finetune_trainer.evaluation.likelihood import mean_loss, perplexity
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log


def sequences(spec: FineTuneJobSpec, text: LocalData | None, tokenizer: Any) -> list[Example]:
    """The text in sequences of ``training.maxLength`` tokens, as plain text is trained on; none where forgetting is not measured. Raises Failure."""
    wanted = spec.evaluation.forgetting
    if wanted is None or text is None:
        return []
    encoder = Encoder(tokenizer, "plain text", spec.training.max_length, Counts())
    blocks = encoder.blocks(forgetting_text.read_text(list_local_files(text)))
    found = [Example(block["input_ids"], block["labels"]) for block in islice(blocks, wanted.max_sequences)]
    if not found:
        raise Failure(Reason.DATASET_INVALID, f"{text.uri} holds no text: name one that does", forgetting_text.FIELD)
    return found


def loss(model: Any, text: list[Example]) -> float | None:
    """Mean negative log-likelihood per token, in nats; None without a text."""
    return mean_loss(model, text) if text else None


def compare(base_loss: float | None, tuned_loss: float | None, number: int) -> ForgettingStatus | None:
    """The two beside each other; None where they were not measured."""
    if base_loss is None or tuned_loss is None:
        return None
    increase = 100 * (tuned_loss - base_loss) / base_loss if base_loss else 0.0
    log.info("loss on the general text: base %.4f, adapter %.4f (%+.1f %%)", base_loss, tuned_loss, increase)
    return ForgettingStatus(
        base_loss=round(base_loss, 5),
        loss=round(tuned_loss, 5),
        increase_percent=round(increase, 2),
        base_perplexity=round(perplexity(base_loss), 5),
        perplexity=round(perplexity(tuned_loss), 5),
        sequences=number,
    )
