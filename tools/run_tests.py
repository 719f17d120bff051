"""Run the tests tier by tier, and print one summary: `make test`, `make test-fast` and `make test-all`.

The tier of the node runs beside the others, because it mostly waits: for downloads, for images, for pods.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "test-results"
PAGE = ROOT / "docs" / "tests.md"
MOST_WORKERS = 8
"""Workers of a parallel tier at most: each of the trainer's needs 2 GiB of memory."""


@dataclass(frozen=True)
class Tier:
    """Describes a tier of tests.

    Attributes:
        name: Its marker.
        distribution: How pytest-xdist shares its tests between workers; None runs them one after another.
        beside: Whether it runs beside the other tiers, with its output in a file.
    """

    name: str
    distribution: str | None
    beside: bool = False

    @property
    def log(self) -> Path:
        """Return the file that receives the output of a tier that runs beside others."""
        return RESULTS / f"{self.name}.log"


TIERS = (
    Tier("unit", "worksteal"),
    Tier("trains", "worksteal"),
    Tier("cluster", "loadfile"),  # the tests of a file share an operator
    Tier("node", None, beside=True),  # one node has the processors and simulated GPUs for one job at a time
)


@dataclass(frozen=True)
class Result:
    """Holds the results of one run of a tier.

    Attributes:
        skipped: How many tests were skipped for each reason.
        matrices: How many rows of each parametrized test ran.
    """

    tier: str
    exit_code: int
    seconds: float
    tests: int
    failed: list[str]
    skipped: Counter[str]
    matrices: Counter[str]


def main() -> int:
    """Run the tiers that the command line names; return 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiers", default=",".join(tier.name for tier in TIERS), help="default: %(default)s")
    parser.add_argument("--all", action="store_true", help=f"run exhaustive matrices too, and write {PAGE.name}")
    arguments = parser.parse_args()
    chosen = arguments.tiers.split(",")
    if unknown := set(chosen) - {tier.name for tier in TIERS}:
        parser.error(f"unknown tiers: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    results = run_all([tier for tier in TIERS if tier.name in chosen], exhaustive=arguments.all)
    seconds = time.monotonic() - began
    print("\n" + "\n".join(summary(results, seconds)))
    if arguments.all:
        PAGE.write_text(page(results, seconds))
    return int(any(result.exit_code for result in results))


def run_all(tiers: list[Tier], *, exhaustive: bool) -> list[Result]:
    """Run tiers one after another, and beside them those that may; show the output of these at the end."""
    others = [tier for tier in tiers if not tier.beside]
    beside = [tier for tier in tiers if tier.beside and others]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=max(len(beside), 1)) as pool:
        for tier in beside:
            print(
                f"The tier {tier.name} runs beside the others; its output is in {tier.log.relative_to(ROOT)}",
                flush=True,
            )
        waiting = [pool.submit(run, tier, exhaustive=exhaustive, output=tier.log) for tier in beside]
        results = [run(tier, exhaustive=exhaustive) for tier in tiers if tier not in beside]
        for tier, future in zip(beside, waiting, strict=True):
            results.append(future.result())
            print(f"\nOutput of the tier {tier.name}:\n{tier.log.read_text()}")
    return results


def run(tier: Tier, *, exhaustive: bool, output: Path | None = None) -> Result:
    """Run one tier with pytest, with its output in a file if one is given."""
    report = RESULTS / f"{tier.name}.xml"
    report.unlink(missing_ok=True)
    markers = tier.name if exhaustive or tier.name == "unit" else f"{tier.name} and not exhaustive"
    command = [sys.executable, "-m", "pytest", "-m", markers, f"--junitxml={report}"]
    if tier.distribution:
        command += ["-n", str(workers()), "--dist", tier.distribution]
    began = time.monotonic()
    with output.open("w") if output else nullcontext() as file:
        exit_code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False).returncode
    return read(report, tier.name, exit_code, time.monotonic() - began)


def workers() -> int:
    """Return how many workers share a parallel tier: one for each processor that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MOST_WORKERS)


def read(report: Path, tier: str, exit_code: int, seconds: float) -> Result:
    """Read the JUnit report of a tier. A run that was killed has none."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else []
    failed = [name_of(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    skipped = Counter(skip.get("message", "no reason") for skip in skips)
    matrices = Counter(name_of(case).partition("[")[0] for case in cases if "[" in case.get("name", ""))
    return Result(tier, exit_code, seconds, len(cases), failed, skipped, matrices)


def name_of(case: ElementTree.Element) -> str:
    """Return module and name of a test."""
    return f"{case.get('classname')}.{case.get('name')}"


def summary(results: list[Result], seconds: float) -> list[str]:
    """Return the lines of the closing summary: the tiers, then failures, then reasons of skipped tests.

    ``seconds`` is what all tiers took together, which is less than their sum.
    """
    lines = [f"{'tier':10}{'tests':>8}{'failed':>8}{'skipped':>9}{'minutes':>9}"]
    for result in results:
        counts = f"{result.tests:8}{len(result.failed):8}{result.skipped.total():9}{result.seconds / 60:9.1f}"
        crashed = f"  pytest ended with exit code {result.exit_code}" if result.exit_code and not result.failed else ""
        lines.append(f"{result.tier:10}{counts}{crashed}")
    lines.append(f"{'all':10}{sum(result.tests for result in results):8}{'':17}{seconds / 60:9.1f}")
    lines += [f"FAILED {name}" for result in results for name in result.failed]
    lines += [
        f"skipped {count} of tier {result.tier}: {reason}"
        for result in results
        for reason, count in result.skipped.items()
    ]
    return lines


def page(results: list[Result], seconds: float) -> str:
    """Return the page with the results of all tests. ``seconds`` is their total time."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    outcome = "no test failed" if not any(result.exit_code for result in results) else "some tests failed"
    matrices = sum((result.matrices for result in results), Counter[str]())
    return "\n".join(
        [
            "# The last run of all tests",
            "",
            "<!-- Generated by `make test-all`. Do not edit. -->",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}, {workers()} processors: {outcome}.",
            "",
            "```text",
            *summary(results, seconds),
            "```",
            "",
            "The largest matrices, each with the number of its rows:",
            "",
            *[f"- `{name}`: {rows}" for name, rows in matrices.most_common(20)],
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
