"""The table of `make chaos`: what was injected, and what happened."""

from xml.etree import ElementTree

import pytest

from tools.chaos import find_injected, find_outcome

PROPERTIES = '<properties><property name="injected" value="kill -9"/></properties>'


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ("", "the end is the same"),
        ('<failure message="a Job was made twice&#10;more"/>', "FAILURE: a Job was made twice"),
        ('<error message="no cluster"/>', "ERROR: no cluster"),
        ('<skipped message="a real node needs root"/>', "SKIPPED: a real node needs root"),
    ],
)
def test_each_fault_has_its_outcome(content: str, outcome: str) -> None:
    name = "test_the_end_is_the_same[after a write]"
    case = ElementTree.fromstring(f'<testcase name="{name}">{PROPERTIES}{content}</testcase>')
    assert find_injected(case) == "kill -9: after a write"
    assert find_outcome(case) == outcome
