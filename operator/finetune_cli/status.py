"""Run ``finetune status``: show objects and their state, as tables or as JSON and YAML for scripts."""

import json
import sys
from typing import Any

import yaml

from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.label_selector import format_selector
from finetune_api.timestamps import format_duration
from finetune_api.version_paths import shorten
from finetune_cli.cluster import PLURALS, Cluster, Object
from finetune_cli.columns import fit, format_table
from finetune_cli.text import age, condition, outcome, phase, progress, report


def show_all(cluster: Cluster, all_namespaces: bool, output: str) -> None:
    """Print every FineTuneJob and AdapterDeployment of the namespace, or of all namespaces."""
    namespace = None if all_namespaces else cluster.namespace
    objects = {kind: cluster.objects(kind, namespace) for kind in PLURALS}
    items = [{"kind": kind, **item} for kind, of_kind in objects.items() for item in of_kind]
    if output in ("json", "yaml"):
        _write({"items": items}, output)
        return
    if not items:
        scope = "any namespace" if all_namespaces else f"namespace {namespace}"
        sys.stdout.write(f"no FineTuneJobs and no AdapterDeployments in {scope}\n")
        return
    tables = [
        format_table(*_table(kind, of_kind, all_namespaces, output == "wide"))
        for kind, of_kind in objects.items()
        if of_kind
    ]
    sys.stdout.write("\n".join("".join(f"{line}\n" for line in table) for table in tables))


def show(cluster: Cluster, name: str, output: str) -> None:
    """Print the objects of a name with all details. Raises NotFoundError."""
    items = cluster.find(name)
    if output in ("json", "yaml"):
        _write(items[0] if len(items) == 1 else {"items": items}, output)
        return
    described = ("".join(f"{line}\n" for line in describe(item, output == "wide")) for item in items)
    sys.stdout.write("\n".join(described))


def describe(item: Object, wide: bool) -> list[str]:
    """Describe an object in lines: its state and the reason for it, its results, and its history."""
    status, meta = item.get("status", {}), item["metadata"]
    ready = condition(item, "Ready")
    lines = [f"{item['kind']} {meta['namespace']}/{meta['name']}: {phase(item)}"]
    if ready.get("message"):
        lines += fit(f"{ready['reason']}: {ready['message']}", 2)
    for text in filter(None, [progress(item), *outcome(item), *report(item)]):
        lines += fit(text, 2)
    lines += _conditions(item, wide)
    if reasons := (status.get("trainingChoice") or {}).get("why"):
        lines += ["", "Chosen where spec.training is unset:", *(line for reason in reasons for line in fit(reason, 4))]
    for attempt in status.get("attempts") or ():
        lines += _attempt(attempt)
    lines += _canary(item)
    for pod in status.get("podStatus") or ():
        lines += _pod(pod)
    return lines + _history(status.get("history") or [])


def _conditions(item: Object, wide: bool) -> list[str]:
    """Return a line for each condition, with messages that were not shown yet, or with all if ``wide``."""
    shown = {condition(item, "Ready").get("message")}
    lines = []
    for entry in item.get("status", {}).get("conditions") or ():
        if entry["lastTransitionTime"].startswith("1970"):
            continue
        lines.append(f"{entry['type']}: {entry['status']}, {entry['reason']}, for {age(entry['lastTransitionTime'])}")
        message = entry.get("message")
        if message and (wide or message not in shown):
            lines += fit(message, 4)
        shown.add(message)
    return ["", *lines] if lines else []


def _attempt(entry: Object) -> list[str]:
    parts = [entry.get("reason") or "running"]
    if entry.get("exitCode") is not None:
        parts.append(f"exit {entry['exitCode']}")
    if entry.get("resumedFromStep") is not None:
        parts.append(f"from step {entry['resumedFromStep']}")
    if entry.get("nodeName"):
        parts.append(f"node {entry['nodeName']}")
    lines = ["", f"Attempt {entry['number']}, {entry.get('podName', entry['jobName'])}: {', '.join(parts)}"]
    for change in entry.get("adjustments") or ():
        lines += fit(f"{change['field']} {change['before']} → {change['after']}", 4)
    return lines + (fit(entry["message"], 4) if entry.get("message") else [])


def _canary(item: Object) -> list[str]:
    """Describe in lines how far the canary is, and what let it pass its earlier steps."""
    canary = item.get("status", {}).get("canary")
    if canary is None:
        return []
    steps = (item["spec"].get("strategy", {}).get("canary") or {}).get("steps") or []
    parts = [f"Canary of {shorten(canary['digest'])}, begun {age(canary['startedAt'])} ago"]
    step = f"step {canary.get('passedSteps', 0) + 1} of {len(steps)}"
    if canary.get("pods"):
        parts.append(f"{step}, pods: {canary['pods']}")
    if canary.get("trafficPercent") is not None:
        parts.append(f"{step}, {canary['trafficPercent']} % of the requests")
    if canary.get("reachedAt"):
        parts.append(f"reached {age(canary['reachedAt'])} ago")
    passed = [line for text in canary.get("evidence") or () for line in fit(text, 4)]
    return ["", *fit(", ".join(parts), 0), *passed]


def _pod(entry: Object) -> list[str]:
    parts = [entry["state"]]
    if entry.get("reason"):
        parts.append(entry["reason"])
    if entry.get("digest"):
        parts.append(shorten(entry["digest"]))
    if entry.get("loadSeconds") is not None:
        parts.append(f"loaded in {entry['loadSeconds']:.1f}s")
    message = fit(entry["message"], 4) if entry.get("message") else []
    return ["", f"Pod {entry['name']}: {', '.join(parts)}", *message]


def _history(entries: list[Object]) -> list[str]:
    """Describe what happened to the versions of an adapter, the newest first."""
    lines = ["", "History, the newest first:"] if entries else []
    for entry in entries:
        ended = f", until {age(entry['until'])} ago" if entry.get("until") else ""
        reason = f", {entry['reason']}" if entry.get("reason") else ""
        event = f"{entry['event']} {shorten(entry['digest'])}"
        lines += fit(f"{event}{reason}, {age(entry['since'])} ago{ended}, {entry['uri']}", 2)
        for text in (entry.get("message"), *(entry.get("evidence") or ())):
            lines += fit(text, 4) if text else []
    return lines


def _table(kind: str, items: list[Object], with_namespace: bool, wide: bool) -> tuple[list[str], list[list[str]]]:
    if kind == "FineTuneJob":
        headers = ["FineTuneJob", "Phase", "Step", "Loss", "ETA", "Ready", "Reason", "Age"]
        more, cells, wide_cells = ["Tok/s", "Attempts", "Adapter", "Report"], _job_cells, _wide_job_cells
    else:
        headers = ["AdapterDeployment", "Served name", "Target", "Pods", "Ready", "Reason", "Age"]
        more, cells, wide_cells = ["Digest", "Adapter"], _deployment_cells, _wide_deployment_cells
    rows = [[_name(item, with_namespace), *cells(item), *(wide_cells(item) if wide else [])] for item in items]
    return [*headers, *(more if wide else [])], rows


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


def _wide_job_cells(item: Object) -> list[str]:
    status = item.get("status", {})
    speed = (status.get("progress") or {}).get("tokensPerSecond")
    return [
        "" if speed is None else f"{speed:.0f}",
        str(len(status.get("attempts") or ())),
        (status.get("adapter") or {}).get("uri", ""),
        (status.get("report") or {}).get("uri", ""),
    ]


def _deployment_cells(item: Object) -> list[str]:
    pods = item.get("status", {}).get("pods") or {}
    ready = condition(item, "Ready")
    return [
        item["spec"]["servedName"],
        _target_name(item["spec"]["target"]),
        f"{pods.get('updated', 0)}/{pods.get('total', 0)}",
        ready.get("status", "Unknown"),
        ready.get("reason", ""),
        age(item["metadata"]["creationTimestamp"]),
    ]


def _target_name(target: Object) -> str:
    """Return the name or the selector of the target, also of a kind that a newer CRD may have."""
    if "selector" in target:
        return format_selector(LabelSelector.model_validate(target["selector"], extra="ignore"))
    references = (value for value in target.values() if isinstance(value, dict) and "name" in value)
    return str(target.get("deploymentRef", next(references, {})).get("name", ""))


def _wide_deployment_cells(item: Object) -> list[str]:
    active = item.get("status", {}).get("active") or {}
    return [shorten(active.get("digest", "")), active.get("uri", "")]


def _write(value: Any, output: str) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
