"""Parse the addresses that users write: ``hf://``, ``s3://``, ``pvc://``, ``configmap://`` and ``file://``."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

HUB_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
HUB_URI = rf"hf://{HUB_NAME}(/{HUB_NAME})?"
"""Pattern of the address of a repository on the hub."""
BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]*"
CLAIM_URI = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
SAFE_PATH = r"(/+(\.|\.*[^/.][^/]*))"
"""Pattern of one part of a path that does not lead out of its volume."""
PASSWORD = re.compile(r"([a-z0-9]+://)[^/@]*:[^/@]*@")
"""Start of an address with a name and a password."""


@dataclass(frozen=True)
class HfUri:
    """``hf://org/name``: a repository of the model hub. The hub's canonical repositories have no ``org``."""

    repo: str


@dataclass(frozen=True)
class StorageUri:
    """Address of an object, or of a prefix of objects, in any storage: a key below a root.

    Attributes:
        root: Bucket, or path of a directory.
        key: Has no leading and no trailing slash. Empty for the root itself.
    """

    root: str
    key: str

    def child(self, name: str) -> Self:
        """Return the address of ``name`` below this prefix."""
        return replace(self, key=f"{self.key}/{name}" if self.key else name)


@dataclass(frozen=True)
class S3Uri(StorageUri):
    """``s3://bucket/key``: an object, or a prefix of objects, in S3."""

    @property
    def bucket(self) -> str:
        """Return the name of the bucket."""
        return self.root

    def __str__(self) -> str:
        """Return the address as it is written in a spec."""
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"


@dataclass(frozen=True)
class DirectoryUri(StorageUri):
    """A file, or a prefix of files, in a directory of this machine. Its text is the path."""

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return Path(self.root, self.key)

    def __str__(self) -> str:
        """Return the path on the local disk."""
        return str(self.path)


@dataclass(frozen=True)
class PvcUri:
    """``pvc://claim/path``: a path inside a PersistentVolumeClaim of the same namespace."""

    claim: str
    path: str


@dataclass(frozen=True)
class ConfigMapUri:
    """``configmap://name/key``: one key of a ConfigMap of the same namespace."""

    name: str
    key: str


@dataclass(frozen=True)
class FileUri:
    """``file:///path`` or ``file://path``: a file or directory of the workstation, which no pod can read."""

    path: str


Uri = HfUri | S3Uri | PvcUri | ConfigMapUri | FileUri


def parse_uri(text: str) -> Uri:
    """Parse an address.

    Raises:
        ValueError: The text is no address; the message says which form is expected.
    """
    scheme, separator, rest = text.partition("://")
    first, _, remainder = rest.strip("/").partition("/")
    if not separator or not first:
        raise ValueError(
            f"{text!r} is not an address: write hf://org/name, s3://bucket/key, pvc://claim/path or "
            "configmap://name/key, for `finetune run` also file:///path"
        )
    match scheme:
        case "file":
            return FileUri(rest)
        case "hf":
            return HfUri(rest.strip("/"))
        case "s3":
            return S3Uri(first, remainder)
        case "pvc":
            return PvcUri(first, remainder)
        case "configmap":
            if not remainder or "/" in remainder:
                raise ValueError(f"{text!r} must have the form configmap://name/key")
            return ConfigMapUri(first, remainder)
    raise ValueError(f"{text!r} has the unknown scheme {scheme!r}: use hf, s3, pvc or configmap")


def split_hub_address(text: str) -> str:
    """Return how to write a hub's address that has more in it than the repository; empty if it is another address."""
    match = re.fullmatch(rf"hf:/*((?:datasets|models)/)?({HUB_NAME}/{HUB_NAME})([@:/?#].*)?", text.strip())
    if not match or (match[1] is None and match[3] is None):
        return ""
    repository, rest = match[2], match[3] or ""
    if revision := re.match(r"(?:@|:|/(?:tree|resolve|blob)/|\?rev(?:ision)?=)([\w.-]+)", rest):
        return f"write uri: hf://{repository} and revision: {revision[1]}"
    if not rest.strip("/"):
        return f"write hf://{repository}"
    return f"write hf://{repository} without {rest}: the address names a whole repository"


def parse_s3_uri(text: str) -> S3Uri:
    """Parse ``s3://bucket/key``.

    Raises:
        ValueError: The text is no address, or has another scheme.
    """
    uri = parse_uri(text)
    if not isinstance(uri, S3Uri):
        raise ValueError(f"{text!r} must have the form s3://bucket/key")
    return uri
