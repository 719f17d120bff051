"""Which pods may move now: a table, and a roll-out played to its end."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.policies.rollout import PodView, roll_out


def pod(name: str, **fields: bool) -> PodView:
    return replace(PodView(name, proven=False, refused=False, on_previous=True, available=True), **fields)  # type: ignore[arg-type]


A, B, C = pod("a"), pod("b"), pod("c")
DONE: dict[str, Any] = {"proven": True, "on_previous": False}
AWAY: dict[str, Any] = {"available": False}

CASES: dict[str, tuple[list[PodView], list[str] | None, int, frozenset[str], list[str] | None]] = {
    "one begins": ([A, B, C], [], 1, frozenset(), ["a"]),
    "two may": ([A, B, C], [], 2, frozenset(), ["a", "b"]),
    "one always stays": ([A, B, C], [], 9, frozenset(), ["a", "b"]),
    "an only pod moves": ([A], [], 1, frozenset(), ["a"]),
    "one that moves is waited for": ([replace(A, **AWAY), B, C], ["a"], 1, frozenset(), ["a"]),
    "done, but not back in the Service": ([replace(A, **DONE, **AWAY), B, C], ["a"], 1, frozenset(), ["a"]),
    "the next follows": ([replace(A, **DONE), B, C], ["a"], 1, frozenset(), ["a", "b"]),
    "all done": ([replace(A, **DONE), replace(B, **DONE)], ["a", "b"], 1, frozenset(), None),
    "with two places in the budget, one refusal holds up no other pod": (
        [replace(A, refused=True), B, C],
        ["a"],
        2,
        frozenset(),
        ["a", "b"],
    ),
    "the one that refuses keeps its place": (
        [replace(A, refused=True), replace(B, **DONE), C],
        ["a", "b"],
        2,
        frozenset(),
        ["a", "b", "c"],
    ),
    "two refusals stop it": (
        [replace(A, refused=True), replace(B, refused=True), C, pod("d")],
        ["a", "b"],
        2,
        frozenset(),
        ["a", "b"],
    ),
    "after so many refusals not even a pod that is down": (
        [replace(A, refused=True), replace(B, **AWAY), C],
        ["a"],
        1,
        frozenset(),
        ["a"],
    ),
    "a refusal stops it": ([replace(A, refused=True), B, C], ["a"], 1, frozenset(), ["a"]),
    "a refusal calls no moving pod back": ([replace(A, refused=True), B, C], ["a", "b"], 1, frozenset(), ["a", "b"]),
    "a pod that is down goes first": ([A, replace(B, **AWAY), C], [], 1, frozenset(), ["b"]),
    "a pod on neither version goes first": ([A, B, replace(C, on_previous=False)], [], 1, frozenset(), ["c"]),
    "a pod that was replaced is forgotten": ([A, B], ["z"], 1, frozenset(), ["a"]),
    "another adapter's move counts": ([A, B, C], [], 1, frozenset({"c"}), ["c"]),
    "a new pod waits": ([replace(A, **AWAY), B, C, pod("d")], ["a"], 1, frozenset(), ["a"]),
    "no pods": ([], [], 1, frozenset(), []),
}


@pytest.mark.parametrize(("pods", "assigned", "maximum", "absent", "expected"), CASES.values(), ids=CASES.keys())
def test_roll_out(
    pods: list[PodView], assigned: list[str] | None, maximum: int, absent: frozenset[str], expected: list[str] | None
) -> None:
    new_assignment = roll_out(pods, assigned, maximum, absent).assigned
    assert (None if new_assignment is None else list(new_assignment)) == expected


def test_a_roll_out_moves_every_pod_and_never_more_than_allowed() -> None:
    pods = {name: pod(name) for name in "abcde"}
    assigned: list[str] | None = []
    for _ in range(20):
        rollout = roll_out(list(pods.values()), assigned, 2)
        assigned = None if rollout.assigned is None else list(rollout.assigned)
        if rollout.complete:
            break
        assert len(rollout.moving) <= 2
        for name in rollout.moving:
            pods[name] = replace(pods[name], **DONE)
    assert assigned is None
    assert all(view.proven for view in pods.values())
