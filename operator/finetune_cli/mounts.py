"""Provide a pod's mounts for ``finetune run``: directories instead of claims, and the file's ConfigMaps."""

import base64
import shutil
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.offline import DATA_FIELDS, read_field
from finetune_api.uris import ConfigMapUri, PvcUri, parse_uri
from finetune_cli.errors import CliError

Content = dict[str, dict[str, bytes]]
"""The files of each ConfigMap."""


def parse_mounts(mounts: tuple[str, ...], spec: FineTuneJobSpec, content: Content, code: int) -> dict[str, Path]:
    """Parse the ``--mount NAME=DIR`` options. Raises CliError for a missing directory, and for a missing mount."""
    directories = {}
    for text in mounts:
        name, separator, path = text.partition("=")
        if not separator or not name:
            raise CliError(f"--mount {text}: found no =: write NAME=DIR, for example models=/data/models", code)
        directory = Path(path).expanduser().resolve()
        if not directory.is_dir():
            raise CliError(f"--mount {text}: {directory} is not a directory", code)
        directories[name] = directory
    for field, uri in list_addresses(spec).items():
        parsed = parse_uri(uri)
        if isinstance(parsed, PvcUri) and parsed.claim not in directories:
            raise CliError(
                f"{field}: {uri} is on a PersistentVolumeClaim, which is not here: "
                f"name a directory to use instead with --mount {parsed.claim}=DIR",
                code,
            )
        if isinstance(parsed, ConfigMapUri) and parsed.name not in {*directories, *content}:
            raise CliError(
                f"{field}: {uri} is in a ConfigMap, which is not here: put it into the file, "
                f"or name a directory to use instead with --mount {parsed.name}=DIR",
                code,
            )
    return directories


def list_addresses(spec: FineTuneJobSpec) -> dict[str, str]:
    """Return the addresses that the trainer reads, by their fields."""
    resource = {"spec": spec.to_json()}
    return {field: uri for field in DATA_FIELDS if (uri := read_field(resource, field))}


def read_config_maps(documents: list[Any]) -> Content:
    """Return the content of the ConfigMaps in the file."""
    return {
        item["metadata"]["name"]: {
            **{key: str(text).encode() for key, text in (item.get("data") or {}).items()},
            **{key: base64.b64decode(text) for key, text in (item.get("binaryData") or {}).items()},
        }
        for item in documents
        if isinstance(item, dict) and item.get("kind") == "ConfigMap"
    }


def mount(root: Path, mounted: dict[str, Path], content: Content) -> None:
    """Create the mounts of a pod below ``root``. A directory of ``--mount`` replaces a ConfigMap of the file."""
    shutil.rmtree(root, ignore_errors=True)
    for kind in ("claims", "configmaps"):
        (root / kind).mkdir(parents=True)
        for name, directory in mounted.items():
            (root / kind / name).symlink_to(directory)
    for name, files in content.items():
        if name in mounted:
            continue
        (root / "configmaps" / name).mkdir()
        for key, text in files.items():
            (root / "configmaps" / name / key).write_bytes(text)
