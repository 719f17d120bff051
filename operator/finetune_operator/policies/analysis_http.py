"""Build the HTTP request of an analysis, and judge the answer. Pure."""

import json
import math
from dataclasses import dataclass
from typing import Any

from finetune_api.adapterdeployment import Analysis, PrometheusAnalysis
from finetune_api.limits import quote
from finetune_api.version_paths import short_digits
from finetune_operator.policies.analysis import AnalysisRequest, Outcome, fill


@dataclass(frozen=True)
class HttpRequest:
    """The HTTP request of an analysis."""

    url: str
    query: dict[str, str]
    """Parameters of the URL."""
    body: dict[str, Any] | None
    """JSON to post; None: GET."""


def build_request(request: AnalysisRequest) -> HttpRequest:
    """Build the request: a query of Prometheus, or the body of a Flagger webhook."""
    analysis, subject = request.analysis, request.subject
    if analysis.prometheus is not None:
        url = f"{analysis.prometheus.url.rstrip('/')}/api/v1/query"
        return HttpRequest(url, {"query": fill(analysis.prometheus.query, subject)}, None)
    metadata = {
        "servedName": subject.served_name,
        "digest": subject.digest,
        "previousDigest": subject.previous_digest,
        "step": str(subject.id.step),
        "pods": ",".join(subject.pods),
        "stablePods": ",".join(subject.stable_pods),
        "model": subject.model,
        "stableModel": subject.stable_model,
    }
    body = {
        "name": subject.id.name,
        "namespace": subject.id.namespace,
        "phase": "Progressing",
        "checksum": short_digits(subject.digest),
        "metadata": metadata,
    }
    return HttpRequest(analysis.url or "", {}, body)


def judge(analysis: Analysis, status: int, content: bytes) -> Outcome:
    """Judge an answer by its HTTP status and the beginning of its content."""
    if analysis.prometheus is not None:
        return _judge_number(analysis.prometheus, status, content)
    if 200 <= status < 300:
        return Outcome("Passed", f"the webhook answered {status}")
    text = quote(content.decode(errors="replace"))
    answer = f"the webhook answered {status}" + (f": {text}" if text else "")
    if 300 <= status < 400:
        return Outcome("Inconclusive", f"the webhook answered {status}, and redirects are not followed")
    return Outcome("Failed", answer)


def _judge_number(analysis: PrometheusAnalysis, status: int, content: bytes) -> Outcome:
    try:
        answer = json.loads(content)
        if status != 200 or answer["status"] != "success":
            text = quote(str(answer.get("error", "no error is named")))
            return Outcome("Inconclusive", f"Prometheus answered {status}: {text}")
        samples = _read_samples(answer["data"])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return Outcome("Inconclusive", f"{analysis.url} answered {status}, and not as a Prometheus does")
    if len(samples) != 1:
        remedy = "sum() or another aggregation makes one number of them" if samples else "is the metric there?"
        return Outcome("Inconclusive", f"the query of Prometheus has {len(samples)} results: {remedy}")
    value = samples[0]
    if math.isnan(value):
        return Outcome("Inconclusive", "the query of Prometheus gives NaN: did the pods have any requests?")
    if analysis.max is not None and value > analysis.max:
        return Outcome("Failed", f"Prometheus: {value:g} is above max {analysis.max:g}")
    if analysis.min is not None and value < analysis.min:
        return Outcome("Failed", f"Prometheus: {value:g} is below min {analysis.min:g}")
    bounds = [
        f"{name} {bound:g}" for name, bound in (("min", analysis.min), ("max", analysis.max)) if bound is not None
    ]
    return Outcome("Passed", f"Prometheus: {value:g} is within {', '.join(bounds)}")


def _read_samples(data: dict[str, Any]) -> list[float]:
    """Read the numbers of an instant query: one of a scalar, one for each series of a vector."""
    if data["resultType"] == "scalar":
        return [float(data["result"][1])]
    return [float(sample["value"][1]) for sample in data["result"]]
