"""Read a safetensors file without torch: its header, and whether all of its numbers are finite."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO

from finetune_artifacts import git_lfs
from finetune_artifacts.storage import ObjectInfo, Storage

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The format's own limit."""
FIRST_READ_BYTES = 512 * 1024
"""Length of the first read, which is enough for most headers."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a header. ``dtype`` is safetensors' name of the type, for example ``BF16``."""

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] = field(default=(0, 0), compare=False)
    """First byte in the file, and the one after the last."""


def read_header(read: Callable[[int, int], bytes], size: int | None = None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by their names.

    Args:
        read: ``read(start, length)`` returns bytes of the file.
        size: Size of the file in bytes, if it is known.

    Raises:
        ValueError: It is not a safetensors file, or its size differs from the header's.
    """
    content = read(0, FIRST_READ_BYTES)
    if git_lfs.is_pointer(content):
        raise ValueError(f"it {git_lfs.POINTER_REMEDY}")
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
            name: Tensor(
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                (8 + length + int(entry["data_offsets"][0]), 8 + length + int(entry["data_offsets"][1])),
            )
            for name, entry in entries.items()
        }
        end = max((tensor.span[1] for tensor in tensors.values()), default=8 + length)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("the file does not begin with a safetensors header") from error
    if size is not None and size != end:
        raise ValueError(f"it has {size} bytes, but its header says {end}: it is truncated or damaged")
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


@dataclass(frozen=True)
class _Float:
    """How a type of floating-point numbers is stored, with the lowest byte first.

    A number is infinite or NaN if all bits of its exponent are set.
    """

    width: int
    """Bytes of a number."""
    high: int
    """Bits of the exponent in the last byte."""
    low: int
    """Bits of the exponent in the byte before."""


_FLOATS = {
    "F16": _Float(2, 0x7C, 0x00),
    "BF16": _Float(2, 0x7F, 0x80),
    "F32": _Float(4, 0x7F, 0x80),
    "F64": _Float(8, 0x7F, 0xF0),
}
_BLOCK_BYTES = 1024 * 1024


def find_bad_numbers(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Find what is wrong with the numbers of a local file, one sentence each.

    Args:
        path: The file.
        tensors: Its header.

    Raises:
        OSError: If it cannot be read.
    """
    problems = []
    with path.open("rb") as file:
        for name, tensor in sorted(tensors.items()):
            kind = _FLOATS.get(tensor.dtype)
            start, end = tensor.span
            if kind is None:
                problems.append(f"tensor {name} has type {tensor.dtype}: save it as {', '.join(_FLOATS)}")
            elif min(start, *tensor.shape, 0) < 0 or end - start != math.prod(tensor.shape) * kind.width:
                problems.append(f"tensor {name} has {end - start} bytes, which do not fit its shape {[*tensor.shape]}")
            elif not all(_are_finite(content, kind) for content in _read_blocks(file, start, end)):
                problems.append(f"tensor {name} has values that are infinite or not a number (NaN)")
    return problems


def _read_blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from ``start`` to ``end``, in blocks of whole numbers."""
    file.seek(start)
    for position in range(start, end, _BLOCK_BYTES):
        yield file.read(min(_BLOCK_BYTES, end - position))


def _are_finite(content: bytes, kind: _Float) -> bool:
    """Return whether no number has all bits of its exponent set. Works on whole bytes: no loop over numbers."""
    high = content[kind.width - 1 :: kind.width].translate(_mark(kind.high))
    if 1 not in high:
        return True
    low = content[kind.width - 2 :: kind.width].translate(_mark(kind.low))
    return not int.from_bytes(high) & int.from_bytes(low)


@cache
def _mark(mask: int) -> bytes:
    """Return the table that translates a byte to 1 if it has all bits of the mask, else to 0."""
    return bytes(byte & mask == mask for byte in range(256))
