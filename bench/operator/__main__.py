"""Benchmark the operator: FineTuneJobs run one after another on a control plane with fake nodes."""

import argparse
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from bench.operator import at_once, finished, idle
from bench.operator.scenario import Measurements, measure
from bench.percentiles import spread
from devcluster import cluster as clusters
from devcluster.cluster import Cluster
from tools.testing.crds import install_crds

T = TypeVar("T")
Benchmark = Callable[[Cluster, str, int, Path, Callable[[int], None]], T]
"""Takes cluster, namespace, number of FineTuneJobs, a directory, and a function that receives how many are done."""


IDLE: dict[str, Benchmark[list[float]]] = {
    "Kubeflow Trainer": idle.measure_kubeflow,
    "finetune-operator": idle.measure,
}
KUBEFLOW: dict[str, Benchmark[at_once.AtOnce]] = {"Kubeflow Trainer": at_once.measure_kubeflow}
AT_ONCE: dict[str, Benchmark[at_once.AtOnce]] = {
    "a preflight each": at_once.measure,
    "one preflight": partial(at_once.measure, reuse=True),
}


def main() -> int:
    """Parse the arguments, run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument(
        "--cluster", help="a running kwok cluster of devcluster; default: one of its own, taken down afterwards"
    )
    parser.add_argument(
        "--finished",
        type=int,
        metavar="JOBS",
        help="instead start an operator among this many finished FineTuneJobs (1000 take two minutes)",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="JOBS",
        help="instead create this many FineTuneJobs at once, first with a preflight each, then with one for all",
    )
    parser.add_argument(
        "--kubeflow",
        action="store_true",
        help="compare with TrainJobs of Kubeflow on the same control plane: only the time to the first Job, or all of "
        "--at-once (Go builds its managers the first time)",
    )
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    name = arguments.cluster or f"bench-{os.getpid()}"
    try:
        if arguments.cluster:
            cluster = clusters.get(name)
        elif arguments.finished:
            cluster = clusters.up(name, "control-plane")
        else:
            cluster = clusters.up(name, "kwok", nodes=4, gpus=1000 if arguments.at_once else 8)
        if arguments.at_once:
            contenders = KUBEFLOW | AT_ONCE if arguments.kubeflow else AT_ONCE
            results = {
                title: asdict(in_namespace(cluster, arguments.at_once, run)) for title, run in contenders.items()
            }
        elif arguments.kubeflow:
            results = {title: spread(in_namespace(cluster, arguments.runs, run)) for title, run in IDLE.items()}
        elif arguments.finished:
            results = asdict(in_namespace(cluster, arguments.finished, finished.measure))
        else:
            results = summarize(in_namespace(cluster, arguments.runs, measure), arguments.runs)
    finally:
        if not arguments.cluster:
            clusters.down(name)
    if arguments.output == "json":
        print(json.dumps(results, indent=2))
    elif arguments.at_once:
        print_columns(f"{arguments.at_once} jobs at once", results)
    elif arguments.kubeflow:
        print_columns(f"creation → first Job, in ms, {arguments.runs} jobs one after another", results)
    elif arguments.finished:
        print_start(results)
    else:
        print_table(results)
    return 0


def in_namespace(cluster: Cluster, number: int, run: Benchmark[T]) -> T:
    """Run a benchmark in a new namespace, and show its progress on standard error."""
    install_crds(cluster)
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    try:
        with tempfile.TemporaryDirectory() as directory, Console(stderr=True).status("") as status:
            return run(
                cluster,
                namespace,
                number,
                Path(directory),
                lambda done: status.update(f"job {done} of {number}"),
            )
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def summarize(measurements: Measurements, runs: int) -> dict[str, Any]:
    """Return all results, with medians and percentiles."""
    total = sum(measurements.writes.values())
    return {
        "runs": runs,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "to_first_job_ms": spread(measurements.to_preflight),
        "preflight_to_trainer_ms": spread(measurements.to_trainer),
        "writes_per_job": total / runs,
        "writes_per_job_by_operators_metrics": measurements.counted_by_operator / runs,
        "writes": {kind: number / runs for kind, number in measurements.writes.items()},
        "operator_memory_mib": measurements.memory_mib,
        "operator_cpu_ms_per_job": measurements.cpu_ms_per_job,
    }


def print_start(results: dict[str, Any]) -> None:
    """Print what a start among finished jobs cost."""
    table = Table(title=f"A start among {results['jobs']} finished FineTuneJobs", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("ready after", f"{results['ready_seconds']:.1f} s")
    table.add_row("memory", f"{results['memory_mib']:.0f} MiB")
    table.add_row("  at its peak", f"{results['peak_mib']:.0f} MiB")
    table.add_row("CPU time", f"{results['cpu_seconds']:.1f} s")
    table.add_row("idle", f"{results['idle_percent']:.2f} % of a core")
    table.add_row("writes", str(results["writes"]))
    Console().print(table)


def print_columns(title: str, results: dict[str, Any]) -> None:
    """Print the results of several runs side by side, and their ratios to the first."""
    first, *others = results.values()
    table = Table(title=f"{title}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in ("", *results, *("ratio" for _ in others)):
        table.add_column(name, justify="right" if name else "left")
    for name, value in first.items():
        ratios = [f"{column[name] / value:.2f}" if value else "" for column in others]
        table.add_row(name.replace("_", " "), *(f"{column[name]:.1f}" for column in results.values()), *ratios)
    Console().print(table)


def print_table(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    table = Table(
        title=f"{results['runs']} FineTuneJobs, idle operator, {results['cores']} cores, load {results['load']:.1f}"
    )
    for column in ("", "median", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    rows = (
        ("apply → first Job", "to_first_job_ms"),
        ("finished preflight → trainer Job", "preflight_to_trainer_ms"),
    )
    for title, key in rows:
        table.add_row(title, f"{results[key]['median']:.1f} ms", f"{results[key]['p99']:.1f} ms")
    table.add_row("API writes per FineTuneJob", f"{results['writes_per_job']:.2f}", "")
    for kind, number in results["writes"].items():
        table.add_row(f"  {kind}", f"{number:.2f}", "")
    table.add_row("operator's CPU per FineTuneJob", f"{results['operator_cpu_ms_per_job']:.0f} ms", "")
    table.add_row("operator's memory", f"{results['operator_memory_mib']:.0f} MiB", "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
