"""``python -m bench.operator``: an idle operator on a control plane with fake nodes, FineTuneJob after FineTuneJob."""

import argparse
import json
import os
import statistics
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.operator.scenario import Measured, measure
from devcluster import cluster as clusters
from devcluster.cluster import Cluster
from tools.testing.operator_process import install_crds

PEER = {"to_first_job_ms": {"median": 34.0, "p99": 65.0}, "writes_per_job": 9.5}
"""Kubeflow Trainer 2.0.0 with JobSet 0.8.2 on a machine like ours: the time from TrainJob to Job, and all writes."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument(
        "--cluster", help="a running kwok cluster of devcluster; default: one of its own, taken down afterwards"
    )
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    name = arguments.cluster or f"bench-{os.getpid()}"
    try:
        cluster = clusters.get(name) if arguments.cluster else clusters.up(name, "kwok", nodes=4, gpus=8)
        found = summary(run(cluster, arguments.runs), arguments.runs)
    finally:
        if not arguments.cluster:
            clusters.down(name)
    if arguments.output == "json":
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


def run(cluster: Cluster, runs: int) -> Measured:
    """Measure in a namespace of its own, with progress on standard error."""
    install_crds(cluster)
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    try:
        with tempfile.TemporaryDirectory() as directory, Console(stderr=True).status("") as status:
            return measure(
                cluster, namespace, runs, Path(directory), lambda done: status.update(f"FineTuneJob {done} of {runs}")
            )
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def summary(measured: Measured, runs: int) -> dict[str, Any]:
    """Return everything that was measured, with medians and percentiles."""
    total = sum(measured.writes.values())
    return {
        "runs": runs,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "to_first_job_ms": spread(measured.to_preflight),
        "preflight_to_trainer_ms": spread(measured.to_trainer),
        "writes_per_job": total / runs,
        "writes_per_job_by_operators_metrics": measured.counted_by_operator / runs,
        "writes": {kind: number / runs for kind, number in measured.writes.items()},
        "operator_memory_mib": measured.memory_mib,
        "operator_cpu_ms_per_job": measured.cpu_ms_per_job,
        "peer": PEER,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and extremes."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median": statistics.median(ordered), "p99": p99, "min": ordered[0], "max": ordered[-1]}


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(
        title=f"{found['runs']} FineTuneJobs, idle operator, {found['cores']} cores, load {found['load']:.1f}"
    )
    for column in ("", "median", "p99", "Kubeflow Trainer 2.0 + JobSet"):
        table.add_column(column, justify="left" if not column else "right")
    peer = found["peer"]["to_first_job_ms"]
    rows = (
        ("apply → first Job", "to_first_job_ms", f"{peer['median']:.0f} / {peer['p99']:.0f} ms"),
        ("finished preflight → trainer Job", "preflight_to_trainer_ms", ""),
    )
    for title, key, other in rows:
        table.add_row(title, f"{found[key]['median']:.1f} ms", f"{found[key]['p99']:.1f} ms", other)
    table.add_row(
        "API writes per FineTuneJob", f"{found['writes_per_job']:.2f}", "", f"{found['peer']['writes_per_job']}"
    )
    for kind, number in found["writes"].items():
        table.add_row(f"  {kind}", f"{number:.2f}", "", "")
    table.add_row("operator's CPU per FineTuneJob", f"{found['operator_cpu_ms_per_job']:.0f} ms", "", "")
    table.add_row("operator's memory", f"{found['operator_memory_mib']:.0f} MiB", "", "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
