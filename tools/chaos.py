"""Run the tests that inject faults, and print a table of what was injected and what happened: `make chaos`."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

REPORT = Path(__file__).parents[1] / "build" / "test-results" / "chaos.xml"
INJECTED = "injected"
"""Property of a test in the report: the text of its marker ``chaos``."""


def main() -> int:
    """Run the tests; return the exit code of pytest."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "chaos", "--dist", "loadfile", "-n", "2", f"--junitxml={REPORT}"]
    exit_code = subprocess.run([*command, *sys.argv[1:]], check=False).returncode
    if REPORT.exists():
        print_table(REPORT)
    return exit_code


def print_table(report: Path) -> None:
    """Print a line for each fault in a JUnit report of pytest."""
    table = Table("injected", "what happened", "seconds", title="Faults")
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        table.add_row(find_injected(case), find_outcome(case), f"{float(case.get('time', 0)):.0f}")
    Console(highlight=False, markup=False).print(table)


def find_injected(case: ElementTree.Element) -> str:
    """Return what a test injected, with its parameter."""
    text = next((item.get("value", "") for item in case.iter("property") if item.get("name") == INJECTED), "")
    _, _, parameter = case.get("name", "").partition("[")
    return f"{text}: {parameter.removesuffix(']')}" if parameter else text


def find_outcome(case: ElementTree.Element) -> str:
    """Return what happened in a test: its name as a sentence if it passed, else the first line of its message."""
    for kind in ("failure", "error", "skipped"):
        outcome = case.find(kind)
        if outcome is not None:
            return f"{kind.upper()}: {outcome.get('message', '').splitlines()[0] if outcome.get('message') else ''}"
    name, _, _ = case.get("name", "").partition("[")
    return name.removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    sys.exit(main())
