"""Define the comparison of the adapter with full fine-tuning of the same base: quality and cost of each."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Model


class ComparisonRow(Model):
    """One of the three models. Fields that were not measured are unset."""

    name: Literal["base", "adapter", "full"] = Field(
        description="base: the unchanged base; adapter: the base with the finished adapter; full: the base with all "
        "weights trained."
    )
    loss: float | None = Field(None, description="Loss on the held-out rows.")
    improvement_percent: float | None = Field(
        None,
        description="Improvement of the loss over the base's, in percent of the base's.",
    )
    perplexity: float | None = Field(None, description="exp(loss), for objective sft.")
    accuracy: float | None = Field(
        None,
        description="Fraction of the held-out answers that the model judges correctly, for objectives that compare "
        "answers.",
    )
    general_perplexity: float | None = Field(
        None, description="Perplexity on the general text, if spec.evaluation.forgetting is set."
    )
    trainable_parameters: int | None = Field(None, description="Number of trained parameters.", ge=0)
    peak_memory_bytes: int | None = Field(None, description="Peak memory of the training in bytes.", ge=0)
    tokens_per_second: float | None = Field(
        None, description="Trained tokens per second, the median of the logged steps."
    )
    size_bytes: int | None = Field(None, description="Size of the weights on disk in bytes.", ge=0)


class Comparison(Model):
    """Base, adapter and full fine-tuning, with the same data, steps, effective batch and seed."""

    learning_rate: float = Field(description="Learning rate of full fine-tuning: the default of method full.")
    memory: Literal["gpu", "process"] = Field(
        description="Meaning of peakMemoryBytes. gpu: memory that PyTorch allocated on the GPU; process: growth of "
        "the process, if there is no GPU."
    )
    rows: list[ComparisonRow] = Field(description="The rows base, adapter and full.")
    message: str | None = Field(
        None, description="Why full fine-tuning has no numbers, for example because it did not fit into memory."
    )
