"""Define the exception of this package."""

from enum import StrEnum

from finetune_api.reasons import Reason


class Purpose(StrEnum):
    """What a storage is used for. It decides the reason of a fault."""

    OUTPUT = "output"
    DATASET = "dataset"
    MODEL = "model"
    ADAPTER = "adapter"


class Fault(StrEnum):
    """What is wrong, whatever the storage is used for."""

    NO_BUCKET = "no bucket"
    NO_OBJECT = "no object"
    DENIED = "access denied"
    UNREACHABLE = "unreachable"
    NOT_S3 = "not an S3 service"
    WRONG_REGION = "wrong region"
    NO_SPACE = "no space"
    CORRUPT = "corrupt"
    EXISTS = "exists"
    UNSAFE = "unsafe"
    CHANGED = "changed"
    NO_CONDITIONS = "no conditional writes"
    SUPERSEDED = "superseded"
    OTHER = "other"


_COMMON = {
    Fault.NO_BUCKET: Reason.BUCKET_NOT_FOUND,
    Fault.CORRUPT: Reason.DIGEST_MISMATCH,
    Fault.SUPERSEDED: Reason.PREEMPTED,
}
_REASONS: dict[Purpose, dict[Fault, Reason]] = {
    Purpose.OUTPUT: {Fault.DENIED: Reason.OUTPUT_ACCESS_DENIED, Fault.EXISTS: Reason.OUTPUT_EXISTS},
    Purpose.DATASET: {Fault.NO_OBJECT: Reason.DATASET_NOT_FOUND, Fault.DENIED: Reason.DATASET_ACCESS_DENIED},
    Purpose.MODEL: {
        Fault.NO_OBJECT: Reason.MODEL_NOT_FOUND,
        Fault.DENIED: Reason.MODEL_ACCESS_DENIED,
        Fault.UNSAFE: Reason.MODEL_UNSUPPORTED,
    },
    Purpose.ADAPTER: {Fault.DENIED: Reason.ADAPTER_ACCESS_DENIED, Fault.UNSAFE: Reason.ADAPTER_UNSUPPORTED},
}


class ArtifactError(Exception):
    """A storage refused, did not answer, or contains something else than expected.

    Attributes:
        purpose: What the storage is used for.
        fault: What is wrong.
        message: What is wrong, at which endpoint, bucket and key, and what to do. Never contains a secret.
    """

    def __init__(self, purpose: Purpose, fault: Fault, message: str) -> None:
        """Store the fault with the purpose of the storage."""
        super().__init__(message)
        self.purpose = purpose
        self.fault = fault
        self.message = message

    @property
    def reason(self) -> Reason:
        """Return the reason for the status and the exit code."""
        default = Reason.UPLOAD_FAILED if self.purpose is Purpose.OUTPUT else Reason.DOWNLOAD_FAILED
        return _REASONS[self.purpose].get(self.fault) or _COMMON.get(self.fault, default)
