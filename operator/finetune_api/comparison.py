"""The adapter beside full fine-tuning of the same base on the same data: what each of the two gives, and what it costs."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Model


class ComparisonRow(Model):
    """One of the three models. What was not measured is unset."""

    name: Literal["base", "adapter", "full"] = Field(
        description="base: as it was; adapter: with the finished adapter; full: all its weights trained."
    )
    loss: float | None = Field(None, description="Loss on the held-out rows.")
    improvement_percent: float | None = Field(
        None, description="By how much the loss is lower than the base's, in percent of it."
    )
    perplexity: float | None = Field(None, description="exp(loss), for objective sft.")
    accuracy: float | None = Field(
        None, description="Share of the held-out answers that it judges rightly, for objectives that compare answers."
    )
    general_perplexity: float | None = Field(
        None, description="Perplexity on the general text, where spec.evaluation.forgetting asks for it."
    )
    trainable_parameters: int | None = Field(None, description="Parameters that were trained.", ge=0)
    peak_memory_bytes: int | None = Field(None, description="Highest memory of the training.", ge=0)
    tokens_per_second: float | None = Field(
        None, description="Trained tokens per second, the median of the logged steps."
    )
    size_bytes: int | None = Field(None, description="Size of the weights on disk.", ge=0)


class Comparison(Model):
    """Base, adapter and full fine-tuning, with the same data, steps, effective batch and seed."""

    learning_rate: float = Field(description="Learning rate of full fine-tuning: that method's own default.")
    memory: Literal["gpu", "process"] = Field(
        description="What peakMemoryBytes speaks of: the memory that PyTorch took of the GPU; or, without one, by how much the process grew."
    )
    rows: list[ComparisonRow] = Field(description="base, adapter and full.")
    message: str | None = Field(
        None, description="Why full fine-tuning has no numbers, for example that it did not fit into the memory."
    )
