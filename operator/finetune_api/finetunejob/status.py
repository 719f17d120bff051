"""Define the status of a FineTuneJob: what the operator reports."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.alias_generators import to_camel

from finetune_api.base import Model, Sha256
from finetune_api.comparison import Comparison
from finetune_api.conditions import Condition
from finetune_api.finetunejob.spec import FineTuneJobSpec
from finetune_api.forgetting import ForgettingStatus
from finetune_api.limits import STATUS_ATTEMPTS, STATUS_MESSAGE_CHARACTERS
from finetune_api.timestamps import Timestamp

Phase = Literal["Pending", "Preflight", "Training", "Retrying", "Suspended", "Succeeded", "Failed", "Deleting"]


class Progress(Model):
    """Progress of the running attempt."""

    step: int = Field(description="Optimizer steps done.", ge=0)
    total_steps: int = Field(description="Optimizer steps of the whole run.", ge=0)
    percent: int = Field(description="step / totalSteps in percent.", ge=0, le=100)
    epoch: float | None = Field(None, description="Passes over the dataset that are done.")
    loss: float | None = Field(None, description="Training loss, mean of the last logging interval.")
    eval_loss: float | None = Field(None, description="Loss on the held-out rows at the last evaluation.")
    learning_rate: float | None = Field(None, description="Learning rate of the last step.")
    tokens_per_second: float | None = Field(None, description="Trained tokens per second.")
    eta_seconds: int | None = Field(None, description="Estimated seconds to the last step.", ge=0)
    gpu_memory_peak_bytes: int | None = Field(
        None, description="Peak memory that PyTorch has reserved on a GPU so far, including unused parts.", ge=0
    )
    updated_at: Timestamp = Field(
        description="Time of the trainer's report, RFC 3339.", json_schema_extra={"format": "date-time"}
    )


class Estimate(Model):
    """Estimate of the preflight, before a GPU is requested."""

    trainable_parameters: int = Field(description="Parameters of the adapter.", ge=0)
    total_parameters: int = Field(description="Parameters of base and adapter.", ge=0)
    gpu_memory_bytes: int | None = Field(
        None,
        description="Peak GPU memory that the job needs. Unset: the job uses no GPU, or the model's architecture is "
        "not known.",
        ge=0,
    )
    total_steps: int | None = Field(
        None, description="Number of optimizer steps. Unset: training.maxSteps is unset.", ge=0
    )
    comparison_gpu_memory_bytes: int | None = Field(
        None,
        description="GPU memory that full fine-tuning needs, if spec.evaluation.compareWithFull is true. A job whose "
        "GPU has less still finishes, without the comparison.",
        ge=0,
    )


class Adjustment(Model):
    """A setting of the spec that an attempt used with another value, to fit into memory."""

    field: str = Field(description="The setting below spec, for example training.perDeviceBatchSize.")
    before: str = Field(description="Its value in the spec.")
    after: str = Field(description="Its value in the attempt.")

    def __str__(self) -> str:
        """Describe the change for people."""
        return f"{self.field} {self.before} → {self.after}"


class TrainingChoice(Model):
    """What the trainer chose for fields of ``spec.training`` that are unset. Later attempts use the same."""

    packing: bool | None = Field(None, description="Whether examples are packed. Unset: it was not chosen.")
    per_device_batch_size: int | None = Field(
        None, description="Sequences per GPU and micro-step. Unset: it was not chosen.", ge=1
    )
    gradient_accumulation_steps: int | None = Field(
        None, description="Micro-steps per optimizer step. Unset: it was not chosen.", ge=1
    )
    why: list[str] = Field(default_factory=list, description="The reasons, as sentences.")

    def complete(self, spec: FineTuneJobSpec) -> FineTuneJobSpec:
        """Return the spec with these values where it has none."""
        chosen = {name: getattr(self, name) for name in CHOSEN_FIELDS if getattr(spec.training, name) is None}
        return spec.model_copy(update={"training": spec.training.model_copy(update=chosen)})

    def list_fields(self) -> list[str]:
        """List the paths of the chosen fields, below spec."""
        return [f"training.{to_camel(name)}" for name in CHOSEN_FIELDS if getattr(self, name) is not None]


CHOSEN_FIELDS = ("packing", "per_device_batch_size", "gradient_accumulation_steps")


class Attempt(Model):
    """One run of a pod of preflight, trainer, merge or clean-up, and how it ended.

    Times are by the operator's clock where nothing else is said.
    """

    number: int = Field(description="Number of the attempt, from 1.", ge=1)
    job_name: str = Field(description="Name of the batch/v1 Job.")
    pod_name: str | None = Field(None, description="Name of the trainer's pod. Unset: it has not run yet.")
    pod_uid: str | None = Field(None, description="uid of the trainer's pod.")
    pod_created_at: Timestamp | None = Field(
        None,
        description="When the trainer's pod was created, by the API server's clock.",
        json_schema_extra={"format": "date-time"},
    )
    started_at: Timestamp | None = Field(
        None,
        description="When the operator began to wait for the pod: its Job was created, or an earlier pod ended.",
        json_schema_extra={"format": "date-time"},
    )
    running_since: Timestamp | None = Field(
        None,
        description="When its container started. Unset while it waits for another pod.",
        json_schema_extra={"format": "date-time"},
    )
    failing_since: Timestamp | None = Field(
        None,
        description="When its container, on a node, began to fail to start.",
        json_schema_extra={"format": "date-time"},
    )
    finished_at: Timestamp | None = Field(
        None, description="When the operator noticed that it had ended.", json_schema_extra={"format": "date-time"}
    )
    reason: str | None = Field(None, description="Why it ended, as a CamelCase word; Succeeded if it finished the job.")
    exit_code: int | None = Field(None, description="Exit code of its container.")
    node_name: str | None = Field(None, description="Node of its pod.")
    message: str | None = Field(None, description="Why it ended, as a sentence.", max_length=STATUS_MESSAGE_CHARACTERS)
    resumed_from_step: int | None = Field(None, description="Step of the checkpoint that it continued from.", ge=0)
    adjustments: list[Adjustment] | None = Field(
        None,
        description="Settings that differ from the spec, because this attempt or earlier ones ran out of memory.",
    )


class CheckpointStatus(Model):
    """The newest complete checkpoint in S3."""

    uri: str = Field(description="s3:// address of the checkpoint.")
    step: int = Field(description="Its optimizer step.", ge=0)
    saved_at: Timestamp = Field(description="When its manifest was written.", json_schema_extra={"format": "date-time"})


class EvaluationStatus(Model):
    """Losses of base and adapter on the same held-out rows.

    For objective sft a loss is the mean negative log-likelihood per token, in nats; else the objective's own loss.
    """

    base_loss: float = Field(description="Loss of the base model.")
    loss: float = Field(description="Loss of the finished adapter.")
    improvement_percent: float = Field(description="Improvement of the loss over the base's, in percent of the base's.")
    rows: int = Field(description="Held-out sequences that were used.", ge=0)
    base_perplexity: float | None = Field(None, description="exp(baseLoss), for objective sft.")
    perplexity: float | None = Field(None, description="exp(loss), for objective sft.")
    step: int | None = Field(
        None, description="Step of the weights, if those of the best evaluated step were chosen.", ge=0
    )
    passed: bool | None = Field(None, description="Whether it passed spec.evaluation.gate. Unset: there is no gate.")
    base_accuracy: float | None = Field(
        None,
        description="Fraction of held-out answers that the base judges correctly. Unset: answers are not compared.",
    )
    accuracy: float | None = Field(None, description="Fraction of them that the finished adapter judges correctly.")
    forgetting: ForgettingStatus | None = Field(
        None, description="Base and adapter on a general text, if spec.evaluation.forgetting is set."
    )
    comparison: Comparison | None = Field(
        None, description="Comparison with full fine-tuning. Unset: spec.evaluation.compareWithFull is false."
    )


class MergedModelStatus(Model):
    """Base and adapter as one model."""

    uri: str = Field(description="Address of its directory.")
    digest: Sha256 = Field(description="sha256 of its manifest.json, which names the sha256 of each file.")
    size_bytes: int = Field(description="Size of all its files.", ge=0)


class CachedModel(Model):
    """The model in the cache of ``spec.model.cache``."""

    directory: str = Field(
        description="Directory of the model in the cache.", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"
    )
    digest: Sha256 = Field(
        description="sha256 of its manifest.json, which lists the sha256 of each file. The trainer loads only this one."
    )
    size_bytes: int = Field(description="Size of all its files.", ge=0)
    downloaded_bytes: int = Field(
        description="Bytes that the preflight of this job downloaded. 0: the model was in the cache.", ge=0
    )


class ReportStatus(Model):
    """The report of the run that made the adapter, or of the newest attempt that failed."""

    uri: str = Field(
        description="Address of report.html, a page for any browser: next to the adapter, or below failed/ if the "
        "attempt failed."
    )


class Usage(Model):
    """How long GPUs were held, and for what."""

    gpu_seconds: float = Field(
        description="Seconds that trainers ran, multiplied by their GPUs. 0 for a job without GPUs.", ge=0
    )
    phases: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="gpuSeconds by phase: import, fetch, tokenize, load, hash, train, checkpoint, verify, evaluate, "
        "publish, other. Plain seconds for a job without GPUs.",
    )

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum of two usages."""
        names = [*self.phases, *(name for name in other.phases if name not in self.phases)]
        return Usage(
            gpu_seconds=round(self.gpu_seconds + other.gpu_seconds, 1),
            phases={name: round(self.phases.get(name, 0) + other.phases.get(name, 0), 1) for name in names},
        )


class AdapterStatus(Model):
    """The finished adapter in S3."""

    uri: str = Field(description="s3:// address of the adapter's directory.")
    digest: Sha256 = Field(description="sha256 of its manifest.json, which lists the sha256 of each file.")
    size_bytes: int = Field(description="Size of all its files.", ge=0)
    base_model: str = Field(description="Canonical name of the base model.")
    base_revision: str | None = Field(None, description="Commit of an hf:// base model.")
    peft_type: str = Field(description="PEFT's name of the method, for example LORA.")
    rank: int | None = Field(None, description="Rank of a LoRA.")
    target_modules: list[str] = Field(default_factory=list, description="Modules that carry an adapter.")
    servable_by: list[str] = Field(default_factory=list, description="Engines that can load it as it is.")
    hub: str | None = Field(
        None, description="Address on the model hub, hf://org/name@commit. Unset: spec.output.hub is unset."
    )


class FineTuneJobStatus(Model):
    """What the operator observed. ``phase`` is a summary for people; programs read the conditions."""

    observed_generation: int | None = Field(
        None, description="The metadata.generation that this status describes.", ge=0
    )
    phase: Phase | None = Field(None, description="Summary for people.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Accepted, PreflightPassed, Running, Suspended, Evaluated, Succeeded, Merged, Ready, Reconciling, "
        "Stalled.",
    )
    progress: Progress | None = Field(None, description="Progress of the running attempt.")
    estimate: Estimate | None = Field(None, description="Estimate of the preflight, before a GPU is requested.")
    preflights: list[Attempt] = Field(
        default_factory=list, description=f"Each preflight Job and how it ended, the newest {STATUS_ATTEMPTS}."
    )
    model_revision: str | None = Field(
        None, description="Commit to which the preflight resolved spec.model.revision; every attempt uses it."
    )
    cached_model: CachedModel | None = Field(
        None, description="The model in the cache. Unset: spec.model.cache is unset, or the preflight has not passed."
    )
    attempts: list[Attempt] = Field(
        default_factory=list, description=f"Each run of a trainer pod and how it ended, the newest {STATUS_ATTEMPTS}."
    )
    clean_ups: list[Attempt] = Field(
        default_factory=list, description="Each clean-up Job of a FineTuneJob that is being deleted, and how it ended."
    )
    active_seconds: int | None = Field(None, description="Seconds that trainers ran, without the current run.", ge=0)
    suspensions: int | None = Field(
        None, description="How often a suspension ended an attempt: of this job, or of its Job (Kueue).", ge=0
    )
    training_choice: TrainingChoice | None = Field(
        None, description="What the trainer chose where spec.training is unset. Unset: it chose nothing."
    )
    checkpoint: CheckpointStatus | None = Field(None, description="The newest complete checkpoint.")
    evaluation: EvaluationStatus | None = Field(None, description="Comparison of base and adapter on held-out rows.")
    adapter: AdapterStatus | None = Field(None, description="The finished, verified adapter.")
    merges: list[Attempt] = Field(
        default_factory=list,
        description=f"Each Job that merges the finished adapter into its base, and how it ended, the newest "
        f"{STATUS_ATTEMPTS}.",
    )
    merged_model: MergedModelStatus | None = Field(
        None, description="Base and adapter as one model. Unset: spec.output.mergedModel is false, or see Merged."
    )
    report: ReportStatus | None = Field(None, description="Report of the run, a page for people.")
    usage: Usage | None = Field(None, description="GPU time of all attempts that left a result.")
    warnings: list[str] = Field(
        default_factory=list, description="Warnings of the preflight and the trainer, one sentence each."
    )
