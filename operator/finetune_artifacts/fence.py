"""Fence the storage of a job: of all its pods, only the one that claimed it last may write.

A pod that was frozen, or cut off from the cluster, may continue after another pod has taken its place. So each attempt
claims the storage when it begins, and reads the claim before each write. A write in flight is caught by a condition:
the object must not have changed since the claim was read. Deletions, and services without conditional writes, rely on
reading the claim alone.
"""

import uuid
from dataclasses import dataclass, field, fields
from pathlib import Path

from pydantic import Field, ValidationError

from finetune_api.base import Lenient
from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.s3 import S3Storage
from finetune_artifacts.s3_transfer import Condition, upload_file
from finetune_artifacts.storage import ObjectInfo
from finetune_artifacts.upload import manifest_bytes

TRIES = 5
"""Maximum number of tries of a write while another process writes the same object."""


class Claim(Lenient):
    """The Job, by its number, and the process that may write. Pods of one Job have the same number."""

    attempt: int
    holder: str = Field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class FencedStorage(S3Storage):
    """An S3 storage that writes only as long as it holds the claim at ``claim_uri``."""

    claim_uri: StorageUri = field(kw_only=True)
    claim: Claim = field(kw_only=True)

    def put_file(self, uri: StorageUri, path: Path, sha256: str) -> None:
        """Upload a file, and check that it arrived."""
        for _ in range(TRIES):
            self.check_claim()
            info = self.head(uri)
            condition = Condition(IfNoneMatch="*") if info is None else Condition(IfMatch=info.etag)
            try:
                return upload_file(self, uri, path, sha256, condition)
            except ArtifactError as error:
                if error.fault is Fault.NO_CONDITIONS:
                    return upload_file(self, uri, path, sha256)
                if error.fault not in (Fault.CHANGED, Fault.NO_OBJECT):
                    raise
        raise self.explain_change(uri)

    def put_new(self, uri: StorageUri, content: bytes) -> bool:
        """Write an object; replace only one of an earlier attempt. Return whether it was written."""
        for _ in range(TRIES):
            self.check_claim()
            if super().put_new(uri, content):
                return True
            info = self.head(uri)
            if info is not None and (not self.is_superseded(info) or read_object(self, uri) == content):
                return False
            if info is not None and self.replace(uri, content, info.etag):
                return True
        raise self.explain_change(uri)

    def delete(self, uri: StorageUri) -> bool:
        """Delete an object; one that does not exist is no error. Return whether the bucket keeps its old versions."""
        self.check_claim()
        return super().delete(uri)

    def is_superseded(self, info: ObjectInfo) -> bool:
        """Return whether an earlier attempt at this job wrote the object, while this one holds the claim."""
        return bool(self.owner) and info.owner == self.owner

    def check_claim(self) -> None:
        """Check that this process holds the claim.

        Raises:
            ArtifactError: SUPERSEDED: another attempt holds the claim, or the claim was deleted.
        """
        try:
            content = read_object(self, self.claim_uri)
        except ArtifactError as error:
            if error.fault is not Fault.NO_OBJECT:
                raise
            raise self.explain_loss("its claim was deleted") from error
        if content != manifest_bytes(self.claim):
            raise self.explain_loss("another one has taken its place")

    def release_claim(self) -> None:
        """Delete the claim after the job is finished, so that a pod that wakes up later cannot write."""
        self.delete(self.claim_uri)

    def explain_loss(self, cause: str) -> ArtifactError:
        """Return the error of an attempt that does not hold the claim."""
        text = f"this attempt may not write any more, because {cause} ({self.claim_uri})"
        return ArtifactError(self.purpose, Fault.SUPERSEDED, text)

    def explain_change(self, uri: StorageUri) -> ArtifactError:
        """Return the error for an object that changes between all tries."""
        return ArtifactError(
            self.purpose, Fault.CHANGED, f"another process writes {uri} at the same time: find it and stop it"
        )


def claim_storage(storage: S3Storage, claim_uri: StorageUri, attempt: int) -> FencedStorage:
    """Claim a storage for this process. Earlier claims are void. ``attempt`` is the number of its Job.

    Raises:
        ArtifactError: SUPERSEDED: a pod of a later Job has claimed it.
    """
    values = {item.name: getattr(storage, item.name) for item in fields(S3Storage)}
    fenced = FencedStorage(**values, claim_uri=claim_uri, claim=Claim(attempt=attempt))
    content = manifest_bytes(fenced.claim)
    for _ in range(TRIES):
        info = storage.head(claim_uri)
        if info is None:
            if storage.put_new(claim_uri, content):
                return fenced
        elif _read_attempt(storage, claim_uri) > attempt:
            raise fenced.explain_loss("a later one has begun")
        elif storage.replace(claim_uri, content, info.etag):
            return fenced
    raise fenced.explain_change(claim_uri)


def _read_attempt(storage: S3Storage, claim_uri: StorageUri) -> int:
    """Read the number of the attempt that holds the claim; 0 if there is no valid claim."""
    try:
        return Claim.model_validate_json(read_object(storage, claim_uri)).attempt
    except ValidationError:
        return 0
    except ArtifactError as error:
        if error.fault is Fault.NO_OBJECT:
            return 0
        raise
