"""Problems of a safetensors file, found without torch."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from finetune_artifacts.safetensors import find_bad_numbers, read_file_header

pytestmark = pytest.mark.unit

ENDINGS = {"F16": "e", "F32": "f", "F64": "d"}
PLAIN = [0.0, -0.0, 1.5, -2.25, 6.1e-5, 65504.0]


def write(path: Path, dtype: str, content: bytes, shape: list[int], **entry: Any) -> Path:
    """Write a file of one tensor ``w``, with other fields in its header."""
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)], **entry}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path


def pack(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":  # the upper half of a float32
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{ENDINGS[dtype]}", *values)


def problems(path: Path) -> list[str]:
    return find_bad_numbers(path, read_file_header(path))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_a_number_is_found_wherever_it_is(tmp_path: Path, dtype: str, bad: float) -> None:
    assert problems(write(tmp_path / "good", dtype, pack(dtype, PLAIN), [len(PLAIN)])) == []
    for position in range(len(PLAIN)):
        values = [*PLAIN[:position], bad, *PLAIN[position + 1 :]]
        assert problems(write(tmp_path / "bad", dtype, pack(dtype, values), [len(PLAIN)])) == [
            "tensor w has values that are infinite or not a number (NaN)"
        ]


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_the_largest_numbers_are_numbers(tmp_path: Path, dtype: str) -> None:
    largest = [3.3e38, -3.3e38, 1.7e38]
    assert problems(write(tmp_path / "w", dtype, pack(dtype, largest), [3])) == []


def test_a_bad_number_in_a_later_block_is_found(tmp_path: Path) -> None:
    numbers = 600_000
    content = bytes(4 * (numbers - 1)) + pack("F32", [math.inf])
    assert len(problems(write(tmp_path / "w", "F32", content, [numbers]))) == 1


@pytest.mark.parametrize(
    ("dtype", "shape", "entry", "text"),
    [
        ("F8_E4M3", [8], {}, "has type F8_E4M3: save it as F16, BF16, F32, F64"),
        ("I8", [8], {}, "has type I8"),
        ("F32", [10**12], {}, "has 8 bytes, which do not fit its shape [1000000000000]"),
        ("F32", [-1, -2], {}, "do not fit its shape"),
        ("F32", [2], {"data_offsets": [-4, 8]}, "has 12 bytes"),
    ],
)
def test_a_header_that_does_not_describe_the_bytes(
    tmp_path: Path, dtype: str, shape: list[int], entry: dict[str, Any], text: str
) -> None:
    problem_list = problems(write(tmp_path / "w", dtype, bytes(8), shape, **entry))
    assert (len(problem_list), text in "".join(problem_list)) == (1, True)


@pytest.mark.parametrize("length", [2**40, 2**63, 1])
def test_a_header_of_a_terabyte_is_never_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ValueError, match="does not begin with a safetensors header"):
        read_file_header(path)
