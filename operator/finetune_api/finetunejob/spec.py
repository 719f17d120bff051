"""The spec of a FineTuneJob: what the user asks for."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api import combinations
from finetune_api.base import S3_DESCRIPTION, Model, S3Location, SecretRef, Sha256
from finetune_api.dataset import DatasetSource
from finetune_api.early_stopping import EarlyStopping
from finetune_api.forgetting import Forgetting
from finetune_api.gate import Gate
from finetune_api.methods import Lora, Method
from finetune_api.tracking import Tracking
from finetune_api.uris import parse_uri

Positive = Annotated[int, Field(ge=1)]
Objective = Literal["sft", "dpo", "kto", "orpo", "reward"]


class StartingAdapter(Model):
    """A finished adapter from which the training goes on."""

    uri: str = Field(description="s3:// address of the adapter's directory.", pattern=r"^s3://[^/]+/.+")
    digest: Sha256 | None = Field(
        None,
        description="sha256 of its manifest.json. Unset: that of the manifest which is there when the training starts.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Unset: spec.output.secretRef.",
    )
    s3: S3Location | None = Field(None, description=S3_DESCRIPTION)


class ModelSource(Model):
    """The base model that is fine-tuned."""

    uri: str = Field(
        description="Where the model's directory is: hf://org/name, s3://bucket/prefix or pvc://claim/path.",
        pattern=r"^(hf|s3|pvc)://[^/]+",
    )
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of an hf:// model. Unset: the hub's default branch, resolved once to a commit.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with HF_TOKEN (hf://) or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://). Unset for s3://: spec.output.secretRef.",
    )
    s3: S3Location | None = Field(None, description=S3_DESCRIPTION)
    trust_remote_code: bool = Field(
        False,
        description="Run the Python code that the model's directory brings (auto_map in config.json), in the trainer pods, with all that they can reach. Only for "
        "a model that transformers has no code for; the cluster's administrator has to allow it (chart value trainer.allowRemoteCode).",
    )
    adapter: StartingAdapter | None = Field(
        None, description="A finished adapter of this model, of the same method, to go on from. Unset: a fresh one."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.revision) || self.uri.startsWith('hf://')",
            "message": "revision belongs to hf:// models only: remove it, or name the model on the hub",
            "fieldPath": ".revision",
        }
    ]

    @model_validator(mode="after")
    def _check(self) -> "ModelSource":
        parse_uri(self.uri)
        if self.revision is not None and not self.uri.startswith("hf://"):
            raise ValueError("revision belongs to hf:// models only: remove it, or name the model on the hub")
        return self


class Training(Model):
    """The optimisation, in the terms of transformers.TrainingArguments and trl.SFTConfig."""

    epochs: float | None = Field(None, description="Passes over the dataset. Default 1, if maxSteps is not set.", gt=0)
    max_steps: Positive | None = Field(None, description="Optimizer steps, instead of epochs.")
    learning_rate: float | None = Field(
        None, description="Peak learning rate. Unset: the method's own default, which docs/methods.md lists.", gt=0
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Learning-rate schedule."
    )
    warmup_ratio: float = Field(
        0.0, description="Part of the steps over which the learning rate rises from zero.", ge=0, lt=1
    )
    per_device_batch_size: Positive = Field(1, description="Sequences per device, that is per GPU, and micro-step.")
    gradient_accumulation_steps: Positive = Field(1, description="Micro-steps per optimizer step.")
    max_length: Annotated[int, Field(ge=8)] = Field(1024, description="Longest sequence in tokens.")
    packing: bool = Field(
        False, description="Put several short examples into one sequence, without attention between them."
    )
    gradient_checkpointing: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Recompute activations in the backward pass: less memory, more time, the same result. auto: only where the estimate says that the "
        "GPU's memory is too small without.",
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="none: each GPU holds the whole base; full: each of several GPUs holds a part of every layer of it (FSDP), for a base that fits none of them.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="auto: bf16 where the GPU has it, else fp32."
    )
    optimizer: Literal["auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit"] = Field(
        "auto", description="Optimizer, by its transformers name. auto: adamw_torch_fused on a GPU, else adamw_torch."
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Compile the model's layers with torch.compile: faster steps after one or two minutes. auto: on a GPU, for lora, qlora and full, where "
        "the run is long enough to repay it and the image has a C compiler.",
    )
    weight_decay: float = Field(0.0, description="Decoupled weight decay.", ge=0)
    max_grad_norm: float = Field(1.0, description="Gradients are clipped to this norm.", gt=0)
    seed: int = Field(42, description="Seed of every random choice.", ge=0)
    early_stopping: EarlyStopping | None = Field(
        None,
        description="Stop before the last step when the held-out loss falls no more, and publish the weights of the best evaluated step. Unset: never.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!(has(self.epochs) && has(self.maxSteps))",
            "message": "epochs and maxSteps are both set: remove one of them",
            "fieldPath": ".maxSteps",
        }
    ]

    @model_validator(mode="after")
    def _length(self) -> "Training":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and maxSteps are both set: remove one of them")
        return self


class Evaluation(Model):
    """The comparison of base and adapter on the held-out rows. It is always made at the end of the training."""

    every_steps: Positive | None = Field(None, description="Also evaluate the adapter every so many steps.")
    max_rows: Positive = Field(200, description="Use at most so many held-out rows.")
    samples: int = Field(
        3,
        description="So many held-out prompts are continued by base and adapter, side by side in the report.",
        ge=0,
        le=20,
    )
    select_best: bool = Field(
        False,
        description="Publish the weights of the evaluated step with the lowest held-out loss, instead of the last ones; training.earlyStopping implies it.",
    )
    forgetting: Forgetting | None = Field(
        None,
        description="Also compare base and adapter on a general text. Unset: do not; {}: on the trainer's own text.",
    )
    gate: Gate | None = Field(
        None,
        description="What the adapter must reach to be published. Unset: a warning, if it is no better than its base.",
    )
    compare_with_full: bool = Field(
        False,
        description="After the adapter is finished, also train all weights of the base, with the same data, steps, effective batch and seed and the learning "
        "rate of method full, and compare the two: quality, memory, speed and size. That model is measured, not published.",
    )


class Checkpoint(Model):
    """What an interruption may cost. A checkpoint is also saved when the pod is asked to stop."""

    every_steps: Positive | None = Field(
        None, description="Save and upload a checkpoint every so many steps. Unset: a tenth of the run, at most 500."
    )
    keep: Positive = Field(2, description="How many of the newest complete checkpoints stay in S3 while the job runs.")


class S3Output(S3Location):
    """The place of checkpoints and adapter."""

    bucket: str = Field(
        description="Bucket; it must exist.", min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]+[a-z0-9]$"
    )
    prefix: str | None = Field(
        None,
        description="Key prefix of this job's objects. Unset: <namespace>/<name>/<first 8 digits of the job's uid>.",
        pattern=r"^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*$",
        max_length=512,
    )


class HubOutput(Model):
    """A repository of the model hub that gets the finished adapter, its model card and its report as well."""

    repo: str = Field(
        description="Repository of the hub, org/name. It is made if it is not there.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=96,
    )
    private: bool = Field(
        True, description="Whether a repository that is made is private; one that is there stays as it is."
    )
    secret_ref: SecretRef = Field(description="Secret with HF_TOKEN, of an account that may write to the repository.")


class Output(Model):
    """Where checkpoints and the adapter go."""

    s3: S3Output = Field(description="An S3 bucket.")
    hub: HubOutput | None = Field(None, description="A repository of the model hub, beside S3.")
    merged_model: bool = Field(
        False, description="Also merge the adapter into the base, and store that model beside the adapter."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN. Unset: the pod's own identity.",
    )


class Resources(Model):
    """What the trainer pod asks of the cluster."""

    gpus_per_node: int = Field(
        1,
        description="GPUs of the trainer pod, each with a process of its own and with a perDeviceBatchSize of its own; 0 trains on the CPU.",
        ge=0,
        le=16,
    )
    gpu_resource_name: str = Field(
        "nvidia.com/gpu",
        description="Extended resource that stands for a GPU.",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
    )
    requests: dict[str, int | str] = Field(
        default_factory=dict, description="CPU, memory and other requests of the trainer container."
    )
    limits: dict[str, int | str] = Field(
        default_factory=dict, description="CPU, memory and other limits of the trainer container."
    )

    @property
    def processes(self) -> int:
        """How many processes train together: one for each GPU, and one without."""
        return max(self.gpus_per_node, 1)


class Toleration(Model):
    """A pod's toleration, as in core/v1."""

    key: str | None = Field(None, description="Taint key; unset tolerates all keys, with operator Exists.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Relation of key and value.")
    value: str | None = Field(None, description="Taint value, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect; unset matches all."
    )
    toleration_seconds: int | None = Field(None, description="How long a NoExecute taint is tolerated.")


class EnvVar(Model):
    """An environment variable with a plain value; credentials belong in a secretRef."""

    name: str = Field(description="Name of the variable.", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str = Field("", description="Its value.")


class PodTemplate(Model):
    """Where and how the trainer pod runs. Nothing here can reach the host or lift the pod's restrictions."""

    labels: dict[str, str] = Field(default_factory=dict, description="Labels on the pods, beside ours.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations on the pods.")
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that the node must have, for the trainer pod."
    )
    tolerations: list[Toleration] = Field(default_factory=list, description="Taints that the trainer pod tolerates.")
    priority_class_name: str | None = Field(None, description="PriorityClass of the trainer pod.")
    runtime_class_name: str | None = Field(None, description="RuntimeClass of the trainer pod.")
    image: str | None = Field(None, description="Trainer image, if not the operator's default.")
    image_pull_secrets: list[SecretRef] = Field(default_factory=list, description="Secrets for pulling the images.")
    env: list[EnvVar] = Field(default_factory=list, description="Extra environment variables of the trainer container.")
    termination_grace_period_seconds: int = Field(
        120, description="Time for saving and uploading a checkpoint when the pod is asked to stop.", ge=10
    )


class Retries(Model):
    """How often an attempt is repeated, by what ended it. User errors are never retried."""

    on_error: int = Field(2, description="Attempts after an unexpected error or a failed upload.", ge=0, le=20)
    on_out_of_memory: int = Field(
        10, description="Attempts with less memory after the device's was too small.", ge=0, le=50
    )
    on_preemption: int = Field(
        20, description="Attempts after the pod was deleted, evicted or preempted.", ge=0, le=1000
    )


class OutOfMemory(Model):
    """What may be changed after an attempt that ran out of the GPU's memory (on a job without GPUs: of the container's): one step for each attempt, in this order.

    The sequences of an optimizer step, perDeviceBatchSize × gradientAccumulationSteps, stay as many.
    """

    reduce_batch_size: bool = Field(
        True,
        description="Halve perDeviceBatchSize and double gradientAccumulationSteps, down to a batch of 1 (kto: 2).",
    )
    enable_gradient_checkpointing: bool = Field(
        True, description="Then turn gradient checkpointing on. The result is the same, the time is longer."
    )
    quantize: bool = Field(
        False,
        description="Then hold the base of lora and dora in 4 bits (nf4). That changes the result: the training begins again.",
    )


class FailurePolicy(Model):
    """What happens after a failed attempt."""

    retries: Retries = Field(default_factory=Retries, description="How often an attempt is repeated.")
    out_of_memory: OutOfMemory = Field(
        default_factory=OutOfMemory, description="What may be changed for an attempt to fit into memory."
    )


class Preference(Model):
    """Settings of the objectives that learn from preferences."""

    beta: float = Field(
        0.1,
        description="dpo, kto: how closely the model keeps to the base; orpo: weight of the preference beside the likelihood (TRL's beta).",
        gt=0,
    )
    desirable_weight: float = Field(1.0, description="kto: weight of the wanted completions.", gt=0)
    undesirable_weight: float = Field(1.0, description="kto: weight of the unwanted completions.", gt=0)


class FineTuneJobSpec(Model):
    """What to train, on what, how, and where the adapter goes. It cannot be changed after creation."""

    model: ModelSource = Field(description="The base model.")
    dataset: DatasetSource = Field(description="The rows to train on.")
    objective: Objective = Field(
        "sft",
        description="Training objective, by TRL's name. sft: supervised fine-tuning; dpo and orpo: from pairs of a better and a worse answer; kto: from "
        "answers with a label; reward: a model that scores answers, from such pairs.",
    )
    preference: Preference | None = Field(None, description="Settings of the objectives dpo, kto and orpo.")
    method: Method = Field(
        default_factory=lambda: Method(lora=Lora()),
        description="The way to fine-tune: exactly one of its fields. Default: lora.",
        json_schema_extra={"default": {"lora": {}}},
    )
    training: Training = Field(default_factory=Training, description="The optimisation.")
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="The comparison of base and adapter on held-out rows."
    )
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="How much an interruption may cost.")
    output: Output = Field(description="Where checkpoints and the adapter go.")
    tracking: Tracking = Field(
        default_factory=Tracking,
        description="Services that follow the training, beside the files that every run leaves.",
    )
    resources: Resources = Field(default_factory=Resources, description="What the trainer pod asks of the cluster.")
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Where and how the trainer pod runs.")
    failure_policy: FailurePolicy = Field(
        default_factory=FailurePolicy, description="What happens after a failed attempt."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": f"self.{field} == oldSelf.{field}",
            "message": f"{field} cannot be changed: delete the FineTuneJob, or create one of another name",
            "fieldPath": f".{field}",
        }
        for field in ("model", "dataset", "objective", "method", "training", "output")
    ] + [
        {
            "rule": "has(self.preference) == has(oldSelf.preference) && (!has(self.preference) || self.preference == oldSelf.preference)",
            "message": "preference cannot be changed: delete the FineTuneJob, or create one of another name",
            "fieldPath": ".preference",
        },
        {
            "rule": "self.evaluation.selectBest == oldSelf.evaluation.selectBest",
            "message": "selectBest cannot be changed: delete the FineTuneJob, or create one of another name",
            "fieldPath": ".evaluation.selectBest",
        },
        {
            "rule": "(self.resources.gpusPerNode > 1 ? self.resources.gpusPerNode : 1) == (oldSelf.resources.gpusPerNode > 1 ? oldSelf.resources.gpusPerNode : 1)",
            "message": "gpusPerNode decides how many sequences a step has, and cannot be changed: delete the FineTuneJob, or create one of another name",
            "fieldPath": ".resources.gpusPerNode",
        },
        *combinations.CEL_RULES,
    ]

    @model_validator(mode="after")
    def _together(self) -> "FineTuneJobSpec":
        combinations.check(self)
        return self
