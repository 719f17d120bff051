"""Define ``spec.failurePolicy``: what happens after a failed attempt."""

from pydantic import Field

from finetune_api.base import Model


class Retries(Model):
    """How many further attempts are made, by the cause of the failure. User errors are never retried."""

    on_error: int = Field(
        2,
        description="Attempts after any other error that may pass, such as a failed upload or a broken GPU.",
        ge=0,
        le=20,
    )
    on_out_of_memory: int = Field(
        10,
        description="Attempts with less memory after one that ran out of memory, and reductions within each attempt.",
        ge=0,
        le=50,
    )
    on_stall: int = Field(3, description="Attempts after a training loop stopped making progress.", ge=0, le=20)
    on_preemption: int = Field(
        20,
        description="Attempts after the pod was deleted, evicted or preempted, or its node failed to run it.",
        ge=0,
        le=1000,
    )


class OutOfMemory(Model):
    """What trainer and operator may change when the memory is too small: one reduction after another, in this order.

    The memory is the GPU's, or for a job without GPUs the container's. The sequences per optimizer step,
    perDeviceBatchSize × gradientAccumulationSteps, stay the same.
    """

    reduce_batch_size: bool = Field(
        True,
        description="Halve perDeviceBatchSize and double gradientAccumulationSteps, down to a batch of 1 (kto: 2).",
    )
    enable_gradient_checkpointing: bool = Field(
        True, description="Then enable gradient checkpointing. The result is the same, but the training is slower."
    )
    quantize: bool = Field(
        False,
        description="Then load the base of lora or dora in 4 bits (nf4). This changes the result, so the training "
        "starts again from the first step.",
    )


class FailurePolicy(Model):
    """What happens after a failed attempt."""

    retries: Retries = Field(default_factory=Retries, description="How many further attempts are made.")
    out_of_memory: OutOfMemory = Field(
        default_factory=OutOfMemory, description="What may be changed so that an attempt fits into memory."
    )
