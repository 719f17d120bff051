"""Run ``finetune status``: show objects and their state, as tables for people or as JSON for scripts."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_api.timestamps import format_duration
from finetune_cli.cluster import PLURALS, Cluster, Object
from finetune_cli.text import age, condition, outcome, phase, progress


def show_all(cluster: Cluster, all_namespaces: bool, output: str) -> None:
    """Print every FineTuneJob and AdapterDeployment of the namespace, or of all namespaces."""
    namespace = None if all_namespaces else cluster.namespace
    objects = {kind: cluster.objects(kind, namespace) for kind in PLURALS}
    if output == "json":
        _json({"items": [{"kind": kind, **item} for kind, items in objects.items() for item in items]})
        return
    console = Console(soft_wrap=not sys.stdout.isatty())
    if not any(objects.values()):
        console.print(
            "no FineTuneJobs and no AdapterDeployments in "
            + ("any namespace" if all_namespaces else f"namespace {namespace}")
        )
        return
    if objects["FineTuneJob"]:
        _table(
            console,
            ["FineTuneJob", "Phase", "Step", "Loss", "ETA", "Ready", "Reason", "Age"],
            [[_name(item, all_namespaces), *_job_cells(item)] for item in objects["FineTuneJob"]],
        )
    if all(objects.values()):
        console.print()
    if objects["AdapterDeployment"]:
        _table(
            console,
            ["AdapterDeployment", "Served name", "Target", "Pods", "Ready", "Reason", "Age"],
            [[_name(item, all_namespaces), *_deployment_cells(item)] for item in objects["AdapterDeployment"]],
        )


def show(cluster: Cluster, name: str, output: str) -> None:
    """Print the objects of a name with all details. Raises NotFoundError."""
    items = cluster.find(name)
    if output == "json":
        _json(items[0] if len(items) == 1 else {"items": items})
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for number, item in enumerate(items):
        if number:
            console.print()
        _show(console, item)


def _show(console: Console, item: Object) -> None:
    status, meta = item.get("status", {}), item["metadata"]
    console.print(f"{item['kind']} {meta['namespace']}/{meta['name']}: {phase(item)}")
    for line in filter(None, [progress(item), *outcome(item)]):
        console.print(f"  {line}")
    _table(
        console,
        ["Condition", "Status", "Reason", "Since", "Message"],
        [
            [entry["type"], entry["status"], entry["reason"], age(entry["lastTransitionTime"]), entry["message"]]
            for entry in status.get("conditions") or []
            if not entry["lastTransitionTime"].startswith("1970")
        ],
    )
    if attempts := status.get("attempts"):
        _table(
            console,
            ["Attempt", "Job", "Reason", "Exit", "Resumed from", "Changed", "Message"],
            [_attempt_cells(entry) for entry in attempts],
        )
    if pods := status.get("podStatus"):
        _table(console, ["Pod", "State", "Digest", "Load", "Message"], [_pod_cells(entry) for entry in pods])


def _table(console: Console, headers: list[str], rows: list[list[str]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        last = number == len(headers) - 1
        table.add_column(header, no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _name(item: Object, with_namespace: bool) -> str:
    meta = item["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if with_namespace else str(meta["name"])


def _job_cells(item: Object) -> list[str]:
    reported = item.get("status", {}).get("progress") or {}
    ready = condition(item, "Ready")
    return [
        phase(item),
        f"{reported['step']}/{reported['totalSteps']}" if reported else "",
        f"{reported['loss']:.3f}" if reported.get("loss") is not None else "",
        format_duration(reported["etaSeconds"]) if reported.get("etaSeconds") else "",
        ready.get("status", "Unknown"),
        ready.get("reason", ""),
        age(item["metadata"]["creationTimestamp"]),
    ]


def _deployment_cells(item: Object) -> list[str]:
    pods = item.get("status", {}).get("pods") or {}
    ready = condition(item, "Ready")
    return [
        item["spec"]["servedName"],
        item["spec"]["target"]["deploymentRef"]["name"],
        f"{pods.get('updated', 0)}/{pods.get('total', 0)}",
        ready.get("status", "Unknown"),
        ready.get("reason", ""),
        age(item["metadata"]["creationTimestamp"]),
    ]


def _attempt_cells(entry: Object) -> list[str]:
    resumed, code = entry.get("resumedFromStep"), entry.get("exitCode")
    return [
        str(entry["number"]),
        entry["jobName"],
        entry.get("reason") or "running",
        "" if code is None else str(code),
        "" if resumed is None else f"step {resumed}",
        "\n".join(
            f"{change['field']} {change['before']} → {change['after']}" for change in entry.get("adjustments", [])
        ),
        entry.get("message") or "",
    ]


def _pod_cells(entry: Object) -> list[str]:
    seconds = entry.get("loadSeconds")
    return [
        entry["name"],
        entry["state"] + (f" ({entry['reason']})" if entry.get("reason") else ""),
        (entry.get("digest") or "")[:19],
        "" if seconds is None else f"{seconds:.1f}s",
        entry.get("message") or "",
    ]


def _json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
