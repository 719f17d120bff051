"""Define every reason that a condition, an attempt or a pod of ours can have, and its exit code in a pod."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field


class Reason(StrEnum):
    """A CamelCase word for programs. The message beside it is for people."""

    # FineTuneJob, in order of time
    PENDING = "Pending"
    ACCEPTED = "Accepted"
    SPEC_INVALID = "SpecInvalid"
    PREFLIGHT_RUNNING = "PreflightRunning"
    PREFLIGHT_PASSED = "PreflightPassed"
    TRAINING = "Training"
    RETRYING = "Retrying"
    EVALUATED = "Evaluated"
    VERIFIED = "AdapterVerified"
    MERGING = "Merging"
    MERGED = "ModelMerged"
    # what ends an attempt
    DATASET_INVALID = "DatasetInvalid"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_CHANGED = "DatasetChanged"
    DATASET_ACCESS_DENIED = "DatasetAccessDenied"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    MODEL_CACHE_FAILED = "ModelCacheFailed"
    TARGET_MODULES_NOT_FOUND = "TargetModulesNotFound"
    BUCKET_NOT_FOUND = "BucketNotFound"
    OUTPUT_ACCESS_DENIED = "OutputAccessDenied"
    OUTPUT_EXISTS = "OutputExists"
    UPLOAD_FAILED = "UploadFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    GPU_NOT_VISIBLE = "GpuNotVisible"
    GPU_ERROR = "GpuError"
    STALLED = "Stalled"
    LOSS_DIVERGED = "LossDiverged"
    NCCL_ERROR = "NcclError"
    VERIFICATION_FAILED = "VerificationFailed"
    GATE_FAILED = "GateFailed"
    PREEMPTED = "Preempted"
    NODE_ERROR = "NodeError"
    NODE_LOST = "NodeLost"
    POD_REFUSED = "PodRefused"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    TRAINER_ERROR = "TrainerError"
    PREFLIGHT_ERROR = "PreflightError"
    MERGE_FAILED = "MergeFailed"
    # what follows a deletion
    DELETING = "Deleting"
    CLEAN_UP_FAILED = "CleanUpFailed"
    # AdapterDeployment
    ADAPTER_NOT_READY = "AdapterNotReady"
    FINETUNE_JOB_NOT_FOUND = "FineTuneJobNotFound"
    FINETUNE_JOB_REPLACED = "FineTuneJobReplaced"
    FINETUNE_JOB_FAILED = "FineTuneJobFailed"
    TARGET_NOT_FOUND = "TargetNotFound"
    TARGET_PAUSED = "TargetPaused"
    AGENT_MISSING = "AgentMissing"
    CONTAINER_NOT_FOUND = "ContainerNotFound"
    MODEL_NOT_NAMED = "ModelNotNamed"
    SERVED_NAME_TAKEN = "ServedNameTaken"
    CONFIG_MAP_TAKEN = "ConfigMapTaken"
    FIELD_CONFLICT = "FieldConflict"
    INJECTION_CONTESTED = "InjectionContested"
    INJECTION_REFUSED = "InjectionRefused"
    INJECTED = "AgentInjected"
    NO_PODS = "NoPods"
    ROLLING_OUT = "RollingOut"
    CANARY_PAUSED = "CanaryPaused"
    TRAFFIC_NOT_ALLOWED = "TrafficNotAllowed"
    GATEWAY_NOT_READY = "GatewayNotReady"
    REWRITE_TAKEN = "RewriteTaken"
    ANALYSIS_NOT_ALLOWED = "AnalysisNotAllowed"
    ANALYSIS_FAILED = "AnalysisFailed"
    ANALYSIS_INCONCLUSIVE = "AnalysisInconclusive"
    SERVING = "Serving"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    ROLLED_BACK = "RolledBack"
    ROLLBACK_REQUESTED = "RollbackRequested"
    DOWNLOAD_FAILED = "DownloadFailed"
    ADAPTER_ACCESS_DENIED = "AdapterAccessDenied"
    DIGEST_MISMATCH = "DigestMismatch"
    BASE_MODEL_MISMATCH = "BaseModelMismatch"
    RANK_TOO_HIGH = "RankTooHigh"
    ADAPTER_UNSUPPORTED = "AdapterUnsupported"
    ENGINE_UNREACHABLE = "EngineUnreachable"
    ENGINE_REFUSED = "EngineRefused"
    LORA_DISABLED = "LoraDisabled"
    RESTART_REQUIRED = "RestartRequired"
    ADAPTER_REPLACED = "AdapterReplaced"
    PROOF_FAILED = "ProofFailed"


EXIT_CODES: dict[str, int] = {
    Reason.TRAINER_ERROR: 1,
    Reason.SPEC_INVALID: 10,
    Reason.DATASET_INVALID: 11,
    Reason.DATASET_NOT_FOUND: 12,
    Reason.DATASET_ACCESS_DENIED: 13,
    Reason.MODEL_NOT_FOUND: 14,
    Reason.MODEL_ACCESS_DENIED: 15,
    Reason.MODEL_UNSUPPORTED: 16,
    Reason.TARGET_MODULES_NOT_FOUND: 17,
    Reason.BUCKET_NOT_FOUND: 18,
    Reason.OUTPUT_ACCESS_DENIED: 19,
    Reason.OUTPUT_EXISTS: 20,
    Reason.DATASET_CHANGED: 21,
    Reason.MODEL_CACHE_FAILED: 22,
    Reason.UPLOAD_FAILED: 30,
    Reason.OUT_OF_MEMORY: 31,
    Reason.LOSS_DIVERGED: 32,
    Reason.VERIFICATION_FAILED: 33,
    Reason.GATE_FAILED: 34,
    Reason.NCCL_ERROR: 35,
    Reason.GPU_NOT_VISIBLE: 36,
    Reason.STALLED: 37,
    Reason.GPU_ERROR: 38,
    Reason.PREEMPTED: 40,
    Reason.HOST_OUT_OF_MEMORY: 137,
}
"""Exit code of a preflight or trainer pod for each reason, in case its termination message is lost."""

FINAL_EXIT_CODES: tuple[int, ...] = tuple(
    sorted(
        code
        for reason, code in EXIT_CODES.items()
        if reason not in (Reason.TRAINER_ERROR, Reason.PREEMPTED, Reason.HOST_OUT_OF_MEMORY)
    )
)
"""Exit codes that say why a trainer ended, also if its pod was being taken away. It may be killed with any other."""

USER_ERRORS: frozenset[Reason] = frozenset(
    {
        Reason.SPEC_INVALID,
        Reason.DATASET_INVALID,
        Reason.DATASET_NOT_FOUND,
        Reason.DATASET_CHANGED,
        Reason.DATASET_ACCESS_DENIED,
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_ACCESS_DENIED,
        Reason.MODEL_UNSUPPORTED,
        Reason.MODEL_CACHE_FAILED,
        Reason.TARGET_MODULES_NOT_FOUND,
        Reason.BUCKET_NOT_FOUND,
        Reason.OUTPUT_ACCESS_DENIED,
        Reason.OUTPUT_EXISTS,
        Reason.LOSS_DIVERGED,
        Reason.VERIFICATION_FAILED,
        Reason.GATE_FAILED,
    }
)
"""Reasons that another attempt with the same spec cannot fix: they are never retried."""


ReasonWord = Annotated[Reason | Annotated[str, Field(min_length=1, max_length=64)], Field(union_mode="left_to_right")]
"""A reason in a message. A word that only a newer version knows is kept as a string."""


NODE_REASONS: frozenset[Reason] = frozenset({Reason.NODE_ERROR, Reason.GPU_NOT_VISIBLE, Reason.GPU_ERROR})
"""Reasons for which another node may do better: the next attempts avoid the node."""


def reason_of_exit_code(code: int) -> str:
    """Return the reason of an exit code; ``TrainerError`` for a code that is not ours."""
    for reason, exit_code in EXIT_CODES.items():
        if exit_code == code:
            return reason
    return Reason.PREEMPTED if code == 143 else Reason.TRAINER_ERROR
