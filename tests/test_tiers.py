"""Each test has one tier, the unit tier runs without torch, and the node's tier runs beside the others."""

import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests import tiers
from tests.tiers import NoTorch, tiers_of
from tools import run_tests


def test_every_collected_test_has_exactly_one_tier(request: pytest.FixtureRequest) -> None:
    assert [item.nodeid for item in request.session.items if len(tiers_of(item)) != 1] == []


def test_no_file_is_left_out_of_the_tier_of_one_of_its_tests(request: pytest.FixtureRequest) -> None:
    """Tests what a session without a selection of tiers collects: all."""
    left_out = {
        item.path for item in request.session.items if not tiers.may_have_tests_of(tiers_of(item)[0], item.path)
    }
    assert left_out == set()


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("e2e/test_a.py", "", {"node"}),
        ("trainer/test_a.py", "", {"trains"}),
        ("trainer/test_a.py", "@pytest.mark.unit\ndef test_a(): ...", {"trains", "unit"}),
        ("trainer/test_a.py", "pytestmark = [pytest.mark.unit, pytest.mark.timeout(9)]", {"unit"}),
        ("agent/test_a.py", "", {"unit", "cluster", "node"}),
        ("agent/test_a.py", "@pytest.mark.trains\ndef test_a(): ...", {"unit", "cluster", "node", "trains"}),
        ("agent/test_a.py", "pytestmark = pytest.mark.cluster", {"cluster"}),
        ("trainer/conftest.py", "", {"unit", "cluster", "node", "trains", "gpu"}),
    ],
)
def test_a_session_of_one_tier_imports_only_what_may_have_its_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, text: str, expected: set[str]
) -> None:
    monkeypatch.setattr(tiers, "TESTS", tmp_path)
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(text)
    assert {tier for tier in tiers.TIERS if tiers.may_have_tests_of(tier, path)} == expected


@pytest.mark.parametrize(
    ("expression", "tier"),
    [("unit", "unit"), ("node and not exhaustive", "node"), ("", None), ("not unit", None), ("unit or node", None)],
)
def test_the_tier_that_alone_runs_is_read_from_the_marker_expression(expression: str, tier: str | None) -> None:
    assert tiers.selected(expression) == tier


def test_a_session_of_the_unit_tier_has_not_imported_torch(request: pytest.FixtureRequest) -> None:
    if request.config.option.markexpr == "unit":
        assert "torch" not in sys.modules


def test_the_import_hook_refuses_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTorch(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"Mark the test with pytest\.mark\.trains"):
        import torch  # noqa: F401 -- the import is what is tested


def test_the_node_runs_beside_the_other_tiers_and_alone_it_writes_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both, outputs = threading.Barrier(2, timeout=30), dict[str, Path | None]()

    def run(tier: run_tests.Tier, *, exhaustive: bool, output: Path | None = None) -> run_tests.Result:
        outputs[tier.name] = output
        if output:
            output.write_text("seen")
        if len(run_tiers) > 1:
            both.wait()
        return run_tests.Result(tier.name, 0, 1.0, 1, {}, Counter(), Counter())

    monkeypatch.setattr(run_tests, "run", run)
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path)
    run_tiers = [run_tests.Tier("trains", "worksteal"), run_tests.Tier("node", None, beside=True)]
    assert [result.tier for result in run_tests.run_all(run_tiers, exhaustive=False)] == ["trains", "node"]
    assert outputs == {"trains": None, "node": tmp_path / "node.log"}
    run_tiers = run_tiers[1:]
    run_tests.run_all(run_tiers, exhaustive=False)
    assert outputs["node"] is None


def test_the_summary_has_the_time_of_all_tiers_together() -> None:
    results = [
        run_tests.Result("unit", 0, 120.0, 5, {}, Counter(), Counter()),
        run_tests.Result(
            "node", 1, 600.0, 2, {"tests.e2e.test_a": "no\nyes"}, Counter({"a real node needs root": 1}), Counter()
        ),
    ]
    lines = run_tests.summary(results, 660.0)
    assert lines[3].split() == ["all", "7", "11.0"]
    skipped = "skipped 1 of tier node: a real node needs root"
    assert lines[4:] == ["FAILED tests.e2e.test_a", "    no", "    yes", skipped]


def test_the_summary_ends_long_messages(tmp_path: Path) -> None:
    report = tmp_path / "unit.xml"
    text = "&#10;".join(["assert 1 == 2" + "x" * 9000] * 50)
    report.write_text(
        f'<testsuites><testsuite><testcase classname="a" name="b"><failure message="{text}"/></testcase>'
        '<testcase classname="a" name="c"><error message="lost"/></testcase></testsuite></testsuites>'
    )
    result = run_tests.read(report, "unit", 1, 1.0)
    assert list(result.failed) == ["a.b", "a.c"]
    lines = run_tests.summary([result])[2:]
    assert (lines[0], lines[-2:]) == ("FAILED a.b", ["FAILED a.c", "    lost"])
    assert len(lines) < 20
    assert max(map(len, lines)) < 400


def test_the_page_keeps_the_results_of_tiers_that_did_not_run() -> None:
    first = run_tests.page("", [a_result("node", tests=5), a_result("trains", tests=2)])
    assert [line for line in first.splitlines() if line.startswith("## ")] == ["## trains", "## node"]
    assert "- skipped 1: no GPU" in first
    assert "| `tests.test_a.test_b` | 5 |" in first
    second = run_tests.page(first, [a_result("trains", tests=3)])
    assert second != first
    assert second.replace(": 3 tests", ": 2 tests").replace("| 3 |", "| 2 |") == first


def test_the_page_names_failed_tests_without_their_messages() -> None:
    """A message has paths of the machine; the page is committed."""
    page = run_tests.page("", [a_result("node", tests=2, failed={"tests.test_a.test_b": "/home/me/x is missing"})])
    assert "1 failed" in page
    assert "- FAILED `tests.test_a.test_b`" in page
    assert "/home/me" not in page


def a_result(tier: str, *, tests: int, failed: dict[str, str] | None = None) -> run_tests.Result:
    """Return the result of a tier whose tests are rows of one test, with one skipped."""
    rows = Counter({"tests.test_a.test_b": tests})
    return run_tests.Result(tier, int(bool(failed)), 60.0, tests, failed or {}, Counter({"no GPU": 1}), rows)


@pytest.mark.parametrize(
    ("tier", "exhaustive", "marker"),
    [
        ("unit", False, "unit"),
        ("trains", False, "trains and not exhaustive"),
        ("trains", True, "trains and exhaustive"),
    ],
)
def test_each_test_belongs_to_one_of_the_two_runs(tier: str, exhaustive: bool, marker: str) -> None:
    assert run_tests.marker(tier, exhaustive=exhaustive) == marker
    assert tiers.selected(marker) == tier
