"""Compute SHA-256 in both notations: ``sha256:<hex>`` in manifests, base64 in S3's headers."""

import base64
import hashlib
from pathlib import Path


def digest_of(content: bytes) -> str:
    """Return ``sha256:<hex>`` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_of_file(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file, without loading it as a whole."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def checksum_of(content: bytes) -> str:
    """Return the value of S3's ``x-amz-checksum-sha256`` for some bytes."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def composite_checksum(parts: list[str]) -> str:
    """Return S3's checksum of a multipart object: the SHA-256 of its parts' SHA-256, and their number."""
    return f"{checksum_of(b''.join(base64.b64decode(part) for part in parts))}-{len(parts)}"
