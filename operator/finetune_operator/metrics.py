"""Define the operator's metrics. Their own registry lets several operators run in one process."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The metrics of one operator; /metrics prints ``registry``."""

    def __init__(self) -> None:
        """Create the metrics, with all counters at 0."""
        self.registry = CollectorRegistry()
        self.last_pass_at = time.monotonic()
        self.last_pass = Gauge(
            "finetune_operator_last_pass_timestamp_seconds", "When a pass was last completed.", registry=self.registry
        )
        self.reconciles = Counter(
            "finetune_operator_reconciles_total",
            "Passes, by kind and result.",
            ["kind", "result"],
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "finetune_operator_reconcile_seconds", "Duration of a pass.", ["kind"], registry=self.registry
        )
        self.queue_depth = Gauge(
            "finetune_operator_queue_depth", "Keys that wait for a worker.", registry=self.registry
        )
        self.kube_requests = Counter(
            "finetune_operator_kube_requests_total",
            "Calls to the API server, without the watches; create, apply, patch, patch_status and delete are writes.",
            ["verb", "resource"],
            registry=self.registry,
        )
        self.kube_seconds = Histogram(
            "finetune_operator_kube_request_seconds", "Duration of these calls.", ["verb"], registry=self.registry
        )
        self.reports = Counter(
            "finetune_operator_reports_total",
            "Reports of pods, by path and HTTP status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.watch_events = Counter(
            "finetune_operator_watch_events_total", "Watch events, by kind.", ["kind"], registry=self.registry
        )
        self.missed = Counter(
            "finetune_operator_watch_missed_total",
            "Changes that the periodic list found before the watch did, by kind; a few are normal.",
            ["kind"],
            registry=self.registry,
        )

    def count_call(self, verb: str, resource: str, seconds: float) -> None:
        """Count one call to the API server."""
        self.kube_requests.labels(verb, resource).inc()
        self.kube_seconds.labels(verb).observe(seconds)

    def note_pass(self) -> None:
        """Record that a pass was completed."""
        self.last_pass_at = time.monotonic()
        self.last_pass.set(time.time())
