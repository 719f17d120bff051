"""Read the header of a safetensors file: names, types and shapes of its tensors, without the weights and torch."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_artifacts.storage import ObjectInfo, Storage

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The format's own limit."""
FIRST_READ_BYTES = 512 * 1024
"""Length of the first read, which is enough for most headers."""


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor: its type (``BF16``, ``F32``, …) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(read: Callable[[int, int], bytes], size: int | None = None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by their names.

    Args:
        read: ``read(start, length)`` returns bytes of the file.
        size: Size of the file in bytes, if it is known.

    Raises:
        ValueError: If it is no safetensors file, or has another size than its header says.
    """
    content = read(0, FIRST_READ_BYTES)
    if len(content) < 8:
        raise ValueError("the file is too short for safetensors")
    (length,) = struct.unpack("<Q", content[:8])
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError("the file does not begin with a safetensors header")
    header = content[8 : 8 + length]
    if len(header) < length:
        header += read(8 + len(header), length - len(header))
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = {
            name: Tensor(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for name, entry in entries.items()
        }
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("the file does not begin with a safetensors header") from error
    if size is not None and size != end:
        raise ValueError(f"it has {size} bytes, but its header says {end}: it was cut off, or is damaged")
    return tensors


def read_file_header(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a local file. Raises ValueError and OSError."""
    with path.open("rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        return read_header(read, path.stat().st_size)


def read_object_header(storage: Storage, info: ObjectInfo) -> dict[str, Tensor]:
    """Read the tensors of an object, by range reads. Raises ValueError and ArtifactError."""
    return read_header(lambda start, length: storage.read_range(info.uri, start, length), info.size)
