"""Benchmark a roll-out: from a changed version until all pods serve it. ``python -m bench.rollout``.

The control plane, the operator, the S3 service and the agents are real. The engines are doubles, and this process plays
the kubelet.
"""

import argparse
import json
import os
import sys
import tempfile
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.percentiles import spread
from bench.rollout.scenario import Rollout, measure
from bench.rollout.timeline import PodTimes
from devcluster import cluster as clusters
from devcluster.cluster import Cluster
from devcluster.progress import step
from tools.testing.crds import install_crds
from tools.testing.waiting import until

PARTS = tuple(field.name for field in fields(PodTimes))


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, measure, and print the results."""
    parser = argparse.ArgumentParser(description="Measure the time until all pods serve a new version.")
    parser.add_argument("--pods", default="1,10,50", help="numbers of pods, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="roll-outs of each number")
    parser.add_argument("--cluster", help="a running cluster of devcluster; default: one of its own, taken down after")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    options = parser.parse_args(arguments)
    numbers = [int(number) for number in options.pods.split(",")]
    name = options.cluster or f"bench-rollout-{os.getpid()}"
    results: dict[int, dict[str, Any]] = {}
    try:
        cluster = clusters.get(name) if options.cluster else clusters.up(name, "control-plane")
        install_crds(cluster)
        for number in numbers:
            results[number] = summarize(in_namespace(cluster, number, options.rounds))
    finally:
        if not options.cluster:
            clusters.down(name)
        if options.output == "json":
            print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "pods": results}, indent=2))
        else:
            Console().print(make_table(results))
    return 0


def in_namespace(cluster: Cluster, pods: int, rounds: int) -> list[Rollout]:
    """Measure in a new namespace, and show the progress on standard error."""
    namespace = f"rollout-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    account = ["-n", namespace, "get", "serviceaccount", "default", "--ignore-not-found"]
    try:
        with tempfile.TemporaryDirectory() as directory, step(f"roll-outs to {pods} pods") as show:
            until("the service account", lambda: cluster.kubectl(*account))
            return measure(cluster, namespace, pods, rounds, Path(directory), show)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def summarize(rollouts: list[Rollout]) -> dict[str, Any]:
    """Return median and 99th percentile in seconds: of all pods of all rounds, and until all pods of a round serve."""
    pods = [pod for rollout in rollouts for pod in rollout.pods]
    return {
        "rounds": len(rollouts),
        "all_pods": spread([max(pod.total for pod in rollout.pods) for rollout in rollouts]),
        "status": spread([rollout.status_seconds for rollout in rollouts]),
        "first_turn": spread([min(pod.turn for pod in rollout.pods) for rollout in rollouts]),
        "pod": spread([pod.total for pod in pods]),
        "own": spread([pod.own for pod in pods]),
        "operator_cpu": spread([rollout.operator_cpu for rollout in rollouts]),
        "agent_cpu": spread([rollout.agent_cpu for rollout in rollouts]),
        "parts": {part: spread([getattr(pod, part) for pod in pods]) for part in PARTS},
    }


def make_table(results: dict[int, dict[str, Any]]) -> Table:
    """Return the table of the results: a column for each number of pods."""
    table = Table(title=f"Seconds from a changed version (median / p99), {os.cpu_count()} cores")
    table.add_column("")
    for number in results:
        table.add_column(f"{number} pods", justify="right")

    def add(title: str, *path: str) -> None:
        cells = []
        for result in results.values():
            value: Any = result
            for key in path:
                value = value[key]
            cells.append(f"{value['median']:.2f} / {value['p99']:.2f}")
        table.add_row(title, *cells)

    add("until all pods serve it", "all_pods")
    add("until the status says so", "status")
    add("until the first pods are told by the ConfigMap", "first_turn")
    add("each pod", "pod")
    add("  of that the operator and the agent", "own")
    for part in PARTS:
        add(f"    {part}", "parts", part)
    add("CPU time of the operator", "operator_cpu")
    add("CPU time of each agent", "agent_cpu")
    return table


if __name__ == "__main__":
    sys.exit(main())
