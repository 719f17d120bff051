"""Define ``spec.objective``, ``spec.preference`` and ``spec.training``: how the weights are optimised."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.early_stopping import EarlyStopping
from finetune_api.limits import MAX_COUNT, MAX_NUMBER, MAX_SEED
from finetune_api.scheduler import Scheduler, SchedulerArgs
from finetune_api.scheduler import cel_rules as scheduler_rules

Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Objective = Literal["sft", "dpo", "kto", "orpo", "reward"]
ONE_LENGTH = "epochs and maxSteps are both set: remove one of them"


class Training(Model):
    """Hyperparameters, named as in transformers.TrainingArguments and trl.SFTConfig."""

    epochs: float | None = Field(
        None, description="Number of passes over the dataset. Unset: 1, unless maxSteps is set.", gt=0, le=MAX_NUMBER
    )
    max_steps: Positive | None = Field(None, description="Number of optimizer steps, instead of epochs.")
    learning_rate: float | None = Field(
        None,
        description="Peak learning rate. Unset: the method's own default, listed in docs/methods.md.",
        gt=0,
        le=MAX_NUMBER,
    )
    scheduler: Scheduler = Field("linear", description="Schedule of the learning rate, by its transformers name.")
    scheduler_args: SchedulerArgs | None = Field(None, description="Settings of the schedule. Unset: its defaults.")
    warmup_ratio: float = Field(
        0.0, description="Fraction of the steps during which the learning rate rises from zero.", ge=0, lt=1
    )
    per_device_batch_size: Positive | None = Field(
        None,
        description="Sequences per device (GPU) and micro-step. Unset: 1 or, on a GPU and with "
        "gradientAccumulationSteps unset, as many as fill the GPU by the estimate.",
    )
    gradient_accumulation_steps: Positive | None = Field(
        None,
        description="Micro-steps per optimizer step. Unset: 1 or, on a GPU and with perDeviceBatchSize unset, as many "
        "as make a step of up to 16 to 32 sequences, fewer for little data.",
    )
    max_length: Annotated[int, Field(ge=8, le=MAX_COUNT)] = Field(
        1024, description="Maximum sequence length in tokens."
    )
    packing: bool | None = Field(
        None,
        description="Pack several short examples into one sequence, without attention between them. Unset: false or, "
        "on a GPU and with the batch unset, true for objective sft if the model is proved to keep the examples apart.",
    )
    gradient_checkpointing: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Recompute activations in the backward pass: less memory, more time, the same result. auto: only "
        "if the GPU has too little memory without it, by the estimate.",
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="none: each GPU holds the complete base. full: each of several GPUs holds a part of every layer "
        "of the base (FSDP), for a base that fits on no single GPU.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Precision of the computation. auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."
    )
    optimizer: Literal["auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit"] = Field(
        "auto", description="Optimizer, by its transformers name. auto: adamw_torch_fused on a GPU, else adamw_torch."
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Compile the model's layers with torch.compile: faster steps after one or two minutes. auto: on a "
        "GPU, with lora, qlora and full, if the run is long enough to benefit and the image has a C compiler.",
    )
    weight_decay: float = Field(0.0, description="Decoupled weight decay.", ge=0, le=MAX_NUMBER)
    max_grad_norm: float = Field(1.0, description="Norm to which gradients are clipped.", gt=0, le=MAX_NUMBER)
    seed: int = Field(42, description="Seed of all random choices.", ge=0, le=MAX_SEED)
    early_stopping: EarlyStopping | None = Field(
        None,
        description="Stop before the last step if the held-out loss stops falling, and publish the weights of the "
        "best evaluated step. Unset: never.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "!(has(self.epochs) && has(self.maxSteps))", "message": ONE_LENGTH, "fieldPath": ".maxSteps"},
        *scheduler_rules(),
    ]

    @property
    def batch_size(self) -> int:
        """Return the sequences per device and micro-step; 1 where nothing is set or chosen."""
        return self.per_device_batch_size or 1

    @property
    def accumulation_steps(self) -> int:
        """Return the micro-steps per optimizer step; 1 where nothing is set or chosen."""
        return self.gradient_accumulation_steps or 1

    @property
    def packs(self) -> bool:
        """Return whether examples are packed; not where nothing is set or chosen."""
        return bool(self.packing)

    @property
    def leaves_batch_open(self) -> bool:
        """Return whether the trainer may choose how many sequences a step has."""
        return self.per_device_batch_size is None and self.gradient_accumulation_steps is None

    def sequences_per_step(self, processes: int) -> int:
        """Return the number of sequences of one optimizer step."""
        return self.batch_size * self.accumulation_steps * processes

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError(ONE_LENGTH)
        if self.scheduler_args and (problem := self.scheduler_args.find_unused(self.scheduler)):
            raise ValueError(problem)
        return self


class Preference(Model):
    """Settings of the objectives that learn from preferences."""

    beta: float = Field(
        0.1,
        description="TRL's beta. dpo and kto: how strongly the model is kept close to the base. orpo: weight of the "
        "preference term in the loss.",
        gt=0,
        le=MAX_NUMBER,
    )
    desirable_weight: float = Field(1.0, description="kto: weight of the desirable completions.", gt=0, le=MAX_NUMBER)
    undesirable_weight: float = Field(
        1.0, description="kto: weight of the undesirable completions.", gt=0, le=MAX_NUMBER
    )
