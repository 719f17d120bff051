"""Names of children: deterministic, valid, and different for different parents."""

import re

import pytest

from finetune_operator.resources.names import CLEAN_UP, PREFLIGHT, TRAINER, job_name, read_attempt, short

LONG = "a" * 150 + "." + "b" * 40


@pytest.mark.parametrize(
    ("parent", "role", "attempt", "name"),
    [
        ("shakespeare", PREFLIGHT, 1, "shakespeare-preflight"),
        ("shakespeare", PREFLIGHT, 2, "shakespeare-preflight-2"),
        ("shakespeare", TRAINER, 1, "shakespeare-train-1"),
        ("shakespeare", TRAINER, 1000, "shakespeare-train-1000"),
    ],
)
def test_names(parent: str, role: str, attempt: int, name: str) -> None:
    assert job_name(parent, role, attempt) == name
    assert read_attempt(name, parent, role) == attempt
    assert read_attempt(name, parent, CLEAN_UP) is None
    assert read_attempt(f"{name}0", f"{parent}0", role) is None


@pytest.mark.parametrize("parent", [LONG, LONG[:63], LONG[:55], "x" * 52 + "." + "y" * 20])
@pytest.mark.parametrize("role", [PREFLIGHT, TRAINER])
def test_long_names_are_valid_and_stay_apart(parent: str, role: str) -> None:
    name = job_name(parent, role, 7)
    assert len(name) <= 63
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)
    assert name != job_name(parent + "c", role, 7)
    assert len(short(parent)) <= 63
    assert short(parent) != short(parent + "c") or len(parent) < 63
