"""Define every message between processes: pods' results, reports over HTTP, desired state in a ConfigMap.

Writer and reader may be of different versions: readers ignore fields that they do not know.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import Lenient
from finetune_api.data_counts import Counts
from finetune_api.engines import EngineName
from finetune_api.finetunejob import (
    AdapterStatus,
    Adjustment,
    CachedModel,
    CheckpointStatus,
    Estimate,
    EvaluationStatus,
    MergedModelStatus,
    Progress,
    ReportStatus,
    TrainingChoice,
    Usage,
)
from finetune_api.reasons import Reason, ReasonWord

REPORT_AUDIENCE = "finetune-operator.io"
"""Audience of the projected service-account token with which pods call the report endpoint."""
PROGRESS_PATH = "/v1/progress"
"""POST ``ProgressReport`` here, with the pod's token as Bearer."""
AGENT_PATH = "/v1/agents"
"""POST ``AgentReport`` here, with the pod's token as Bearer."""


class Problem(Lenient):
    """A problem of a job: its field, what was found there, and what to do."""

    reason: ReasonWord = Reason.SPEC_INVALID
    field: str = Field(description="Path of the field, for example spec.output.s3.bucket.")
    message: str

    def __str__(self) -> str:
        """Return field and message on one line."""
        return f"{self.field}: {self.message}"


class PreflightResult(Lenient):
    """Termination message of the preflight pod."""

    kind: Literal["PreflightResult"] = "PreflightResult"
    problems: list[Problem] = []
    warnings: list[str] = []
    estimate: Estimate | None = None
    model_revision: str | None = Field(
        None, description="Commit of an hf:// model's revision. The trainer uses this commit."
    )
    cached_model: CachedModel | None = Field(None, description="The model in the cache. The trainer loads it.")


class TrainerResult(Lenient):
    """Termination message of the trainer pod."""

    kind: Literal["TrainerResult"] = "TrainerResult"
    reason: ReasonWord = Field(description="Succeeded, or why it failed.")
    message: str = ""
    resumed_from_step: int | None = None
    checkpoint: CheckpointStatus | None = None
    evaluation: EvaluationStatus | None = None
    adapter: AdapterStatus | None = None
    merged_model: MergedModelStatus | None = Field(None, description="Set by `finetune run`, which merges by itself.")
    progress: Progress | None = None
    data: Counts | None = None
    report: ReportStatus | None = None
    usage: Usage | None = None
    warnings: list[str] = []
    training_choice: TrainingChoice | None = Field(
        None, description="What the trainer chose where spec.training is unset. None: it chose nothing."
    )
    adjustments: list[Adjustment] | None = Field(
        None, description="Settings that differ from the spec at the end. None: the trainer changed none."
    )


class MergeResult(Lenient):
    """Termination message of the pod that merges the finished adapter into its base."""

    kind: Literal["MergeResult"] = "MergeResult"
    reason: ReasonWord = Field(description="Succeeded, or why there is no merged model.")
    message: str = ""
    merged_model: MergedModelStatus | None = None


class CleanUpResult(Lenient):
    """Termination message of the clean-up pod."""

    kind: Literal["CleanUpResult"] = "CleanUpResult"
    reason: ReasonWord = Field(description="Succeeded, or why objects of the job are left.")
    message: str = Field("", description="What was deleted, what is left, and why.")


class ProgressReport(Lenient):
    """Progress of a running trainer. The token tells the operator the pod, and so the job."""

    progress: Progress
    checkpoint: CheckpointStatus | None = None
    resumed_from_step: int | None = None
    training_choice: TrainingChoice | None = Field(
        None, description="What the trainer chose where spec.training is unset. None: it chose nothing."
    )
    adjustments: list[Adjustment] | None = Field(
        None, description="Settings that differ from the spec now. None: the trainer changed none."
    )


class DesiredVersion(Lenient):
    """An adapter directory in S3, pinned by the sha256 of its manifest.json."""

    uri: str
    digest: str


class DesiredAdapter(Lenient):
    """The adapter that one AdapterDeployment serves on the pods of a workload.

    A pod serves ``version`` if ``pods`` is None or names the pod. Otherwise it serves ``previous``, or nothing if that
    is None. In this way the operator moves one pod after another.
    """

    deployment: str = Field(description="Name of the AdapterDeployment.")
    served_name: str
    version: DesiredVersion
    previous: DesiredVersion | None = None
    pods: list[str] | None = None
    last_good: DesiredVersion | None = Field(
        None, description="Version to which a rollback would go: where it is on the disk, it stays there."
    )
    endpoint: str | None = None
    region: str | None = None
    secret: str | None = Field(
        None, description="Name of the Secret with S3 credentials. Its keys are files below SECRETS_DIRECTORY/<name>."
    )
    tolerance: float = 0.25
    prove_every_seconds: float = Field(0, description="Seconds until a proven version is proven again. 0: never.")
    drain: bool = Field(
        True,
        description="Leave the Service while the served name moves. False if no other pod could answer meanwhile.",
    )


class DesiredState(Lenient):
    """Everything that the pods are to serve: key ``DESIRED_KEY`` of the ConfigMap or of the template's annotation."""

    engine: EngineName = "vllm"
    port: int = 8000
    max_lora_rank: int | None = Field(None, description="Maximum rank of the engine. None if its arguments do not say.")
    api_key_secret: str | None = Field(
        None, description="Name of the Secret with the engine's API_KEY, a file below SECRETS_DIRECTORY/<name>."
    )
    rolling: bool = Field(
        False,
        description="The pod's template carries this state, and another version comes with another pod. So a pod that "
        "cannot serve its version takes no traffic: the pods before it go on.",
    )
    adapters: list[DesiredAdapter] = []


DESIRED_KEY = "desired.json"
DESIRED_DIRECTORY = "/etc/finetune/desired"
SECRETS_DIRECTORY = "/etc/finetune/secrets"
"""Each Secret is a directory below this one; each of its keys is a file."""
TOKEN_FILE = "/var/run/secrets/finetune-operator.io/token"  # noqa: S105 -- a path, not a secret
ADAPTERS_DIRECTORY = "/adapters"
"""The volume that agent and engine share: ``/adapters/<servedName>/<digest>/``."""

AgentState = Literal["Pending", "Downloading", "Loading", "Proving", "Draining", "Active", "Refused", "Failed"]
"""Refused is final until the desired version changes. Failed is tried again."""


class AgentAdapter(Lenient):
    """One adapter on one pod."""

    deployment: str
    served_name: str
    digest: str = Field(description="The version that this pod is to serve.")
    active_digest: str | None = Field(None, description="The version that now answers under the served name.")
    state: AgentState
    reason: ReasonWord | None = None
    message: str = ""
    load_seconds: float | None = None
    proof: str = Field("", description="What the proof of the version that now answers found.")
    replaced: int = Field(0, description="Number of times that somebody else loaded an adapter under the served name.")
    failed_reproofs: int = Field(
        0, description="Number of times that a proven version no longer answered as it was proven."
    )


class AgentEngine(Lenient):
    """The engine's process beside an agent."""

    version: str | None = Field(None, description="Its version. None if it does not tell.")
    moves_by_restart: bool = Field(
        False, description="A served name moves to another version only when the engine restarts."
    )
    limits: list[str] = Field([], description="What follows from its version, one sentence each.")


class AgentReport(Lenient):
    """State of one pod, which its agent sends at each change and every few seconds. The token tells the pod."""

    engine_ready: bool
    engine: AgentEngine | None = Field(None, description="None until the engine told its version.")
    ready: bool = Field(description="Whether the pod may take traffic: every adapter that it is to serve is proven.")
    adapters: list[AgentAdapter] = []


class ReportAnswer(Lenient):
    """The report endpoint's answer."""

    accepted: bool = True
    message: str = ""
