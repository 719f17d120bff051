"""Render the agent's metrics in Prometheus' text format, from its memory.

They are about single adapters, for which engines have no reliable metrics.

Written by hand: the client library would take 3 MiB of each inference pod for a few lines of text.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finetune_agent.agent import Agent
from finetune_agent.reporting import build_report
from finetune_agent.state import Memory
from finetune_api.messages import AgentAdapter
from finetune_api.version_paths import hex_digits

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Metric:
    """A metric, and its value for each set of labels."""

    name: str
    kind: str
    help: str
    samples: list[tuple[Labels, float]]


def render_metrics(agent: Agent) -> str:
    """Render the metrics of the present state."""
    return "".join(f"{line}\n" for metric in _list_metrics(agent) for line in _render(metric))


def _list_metrics(agent: Agent) -> list[Metric]:
    memory, report = agent.memory, build_report(agent)
    adapters = report.adapters
    engine = {} if report.engine is None else {"version": report.engine.version or ""}
    title = agent.desired.engine if agent.desired else ""
    return [
        Metric("ready", "gauge", "Whether the pod may take traffic.", [({}, float(report.ready))]),
        Metric(
            "engine_info", "gauge", "The engine beside the agent.", [({"engine": title, **engine}, 1.0)] * bool(title)
        ),
        Metric(
            "adapter_info",
            "gauge",
            "State of each served name; digest is the version that answers, empty without one.",
            [({**_name(item), "digest": item.active_digest or "", "state": item.state}, 1.0) for item in adapters],
        ),
        Metric(
            "adapter_load_seconds",
            "gauge",
            "Seconds from the start of the download to the end of the proof.",
            [({**_name(item), "digest": item.digest}, item.load_seconds) for item in adapters if item.load_seconds],
        ),
        Metric(
            "adapter_proof_seconds",
            "gauge",
            "Duration of the last proof of the version that answers.",
            list(_list_proofs(memory, adapters, memory.proof_seconds)),
        ),
        Metric(
            "adapter_proven_timestamp_seconds",
            "gauge",
            "Time of the last proof of the version that answers.",
            [
                (labels, time.time() - time.monotonic() + at)
                for labels, at in _list_proofs(memory, adapters, memory.proven_at)
            ],
        ),
        Metric(
            "adapter_replaced_total",
            "counter",
            "How often somebody else loaded an adapter under the served name.",
            [(_name(item), item.replaced) for item in adapters],
        ),
        Metric(
            "adapter_failed_reproofs_total",
            "counter",
            "How often a proven version no longer answered as it was proven.",
            [(_name(item), item.failed_reproofs) for item in adapters],
        ),
    ]


def _name(adapter: AgentAdapter) -> Labels:
    return {"served_name": adapter.served_name}


def _list_proofs(
    memory: Memory, adapters: Iterable[AgentAdapter], values: Mapping[tuple[str, str], float]
) -> Iterable[tuple[Labels, float]]:
    """Yield a value of the version that answers under each served name."""
    for adapter in adapters:
        if adapter.active_digest is None:
            continue
        for (name, path), value in values.items():
            if name == adapter.served_name and path.endswith(f"/{hex_digits(adapter.active_digest)}"):
                yield {**_name(adapter), "digest": adapter.active_digest}, value


def _render(metric: Metric) -> Iterable[str]:
    name = f"finetune_agent_{metric.name}"
    yield f"# HELP {name} {metric.help}"
    yield f"# TYPE {name} {metric.kind}"
    for labels, value in metric.samples:
        text = ",".join(f'{key}="{_escape(content)}"' for key, content in labels.items())
        yield f"{name}{{{text}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
