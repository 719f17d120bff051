"""Define why an attempt ends, and map other libraries' exceptions to these reasons, without torch."""

import errno
import traceback

from finetune_api.reasons import Reason
from finetune_artifacts.errors import ArtifactError

DISK_FULL_MESSAGES = ("No space left on device", "os error 28", "StorageFull", "Disk quota exceeded")
"""Texts by which safetensors and torch report a full disk without an OSError."""
GPU_MEMORY_MESSAGES = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts by which libraries that do not allocate through torch report a full GPU."""
GPU_FAULT_MESSAGES = ("CUDA error:", "CUDA driver error:", "uncorrectable ECC error", "CUBLAS_STATUS_", "CUDNN_STATUS_")
"""Texts by which CUDA and its libraries report a broken GPU."""
DEVICE_ASSERT = "device-side assert"
"""Text of the only CUDA error that data can cause: an index beyond the end of a table."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of an OSError for a full disk."""
PROCESS_GROUP_MESSAGES = ("NCCL", "gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
"""Texts by which torch.distributed reports that another process has ended or does not answer."""


class Failure(Exception):  # noqa: N818 -- as in FailurePolicy: it is the attempt that failed
    """Ends an attempt or a preflight with a reason; ``field`` is the field of the spec to look at, if any."""

    def __init__(self, reason: Reason, message: str, field: str = "") -> None:
        """Store the reason, the message for the user, and the field of the spec."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field


class Preempted(BaseException):
    """The pod was asked to stop. This is not an ``Exception``, so that no library's handler catches it."""


def classify(error: BaseException) -> tuple[Reason, str]:
    """Return the reason and the message for any exception."""
    match error:
        case Preempted():
            return Reason.PREEMPTED, str(error) or "asked to stop"
        case Failure():
            return error.reason, f"{error.field}: {error.message}" if error.field else error.message
        case ArtifactError():
            return error.reason, error.message
        case MemoryError():
            return (
                Reason.HOST_OUT_OF_MEMORY,
                "the trainer container ran out of memory: raise spec.resources.limits.memory",
            )
        case OSError(errno=number) if number in DISK_FULL_ERRNOS:
            return Reason.TRAINER_ERROR, _disk_full_message(f"{error.filename or 'a file'} ({error.strerror})")
    name, text = type(error).__name__, str(error)
    if any(sign in text for sign in DISK_FULL_MESSAGES):
        return Reason.TRAINER_ERROR, _disk_full_message(f"a file ({_first_line(text)})")
    if name == "OutOfMemoryError" or any(sign in text for sign in GPU_MEMORY_MESSAGES):
        return Reason.OUT_OF_MEMORY, f"the GPU has too little memory: {_first_line(text)}"
    if DEVICE_ASSERT in text:
        return Reason.TRAINER_ERROR, (
            f"an index lies beyond the end of a table on the GPU ({_first_line(text)}): is there a token without an "
            "embedding, or a row longer than the model's positions?"
        )
    if any(sign in text for sign in GPU_FAULT_MESSAGES):
        return Reason.GPU_ERROR, f"the GPU failed: {_first_line(text)}"
    if name.startswith("Dist") or (name == "RuntimeError" and any(sign in text for sign in PROCESS_GROUP_MESSAGES)):
        return Reason.NCCL_ERROR, f"the processes of the training lost one another: {_first_line(text)}"
    if "DefaultCPUAllocator" in text or "can't allocate memory" in text.lower():
        return Reason.HOST_OUT_OF_MEMORY, "the trainer container ran out of memory: raise spec.resources.limits.memory"
    if name == "SafetensorError":
        return (
            Reason.MODEL_UNSUPPORTED,
            f"a weights file of the model cannot be read ({_first_line(text)}): it is damaged, upload it again",
        )
    return Reason.TRAINER_ERROR, describe_exception(error)


def _disk_full_message(content: str) -> str:
    return f"there is no space left for {content}: give the pod more ephemeral storage"


def describe_exception(error: BaseException) -> str:
    """Describe an exception in one line: its type, its message, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    location = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_first_line(str(error))}{location}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:600]
