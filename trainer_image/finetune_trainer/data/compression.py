"""Open a dataset file and decompress it while it is read."""

import gzip
import io
import zlib
from typing import Any, BinaryIO, cast

import zstandard

from finetune_api.reasons import Reason
from finetune_trainer.data.sources import DataFile
from finetune_trainer.runtime.failures import Failure

PEEK_BYTES = 1 << 16


def damaged_file(name: str, problem: str) -> Failure:
    """Return the Failure for a file that cannot be read at all."""
    return Failure(Reason.DATASET_INVALID, f"{name} {problem}", "spec.dataset.uri")


class DecompressedFile(io.BufferedReader):
    """Read a compressed file; errors of the decompression name the file."""

    def __init__(self, name: str, inner: BinaryIO, errors: tuple[type[Exception], ...]) -> None:
        """Wrap a reader.

        Args:
            name: The file's name for messages.
            inner: The reader that decompresses.
            errors: What the reader raises for a damaged file.
        """
        super().__init__(_Decompression(name, inner, errors), PEEK_BYTES)


class _Decompression(io.RawIOBase):
    """Turn the errors of a decompressing reader into a Failure that names the file."""

    def __init__(self, name: str, inner: BinaryIO, errors: tuple[type[Exception], ...]) -> None:
        """Wrap a reader; the arguments are those of DecompressedFile."""
        self._name, self._inner, self._errors = name, inner, errors

    def readable(self) -> bool:
        """Return True: this stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into ``buffer``, and return their number."""
        try:
            piece = self._inner.read(len(buffer))
        except self._errors as error:
            raise damaged_file(self._name, f"cannot be unpacked, it is damaged or cut off ({error})") from error
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close the reader as well."""
        self._inner.close()
        super().close()


def open_decompressed(file: DataFile) -> io.BufferedReader:
    """Open a file, and decompress it if its first bytes are those of gzip or zstd."""
    stream = file.open()
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        opened = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
        return DecompressedFile(file.name, opened, (OSError, EOFError, zlib.error))
    if magic == b"\x28\xb5\x2f\xfd":
        reader = cast(
            BinaryIO, zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=True)
        )
        return DecompressedFile(file.name, reader, (zstandard.ZstdError,))
    return io.BufferedReader(cast(io.RawIOBase, stream), PEEK_BYTES)
