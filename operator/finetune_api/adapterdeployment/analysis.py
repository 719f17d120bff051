"""Define the analysis of a canary's step: what must hold before the next step begins."""

import re
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from finetune_api.base import DnsLabel, Model, NameRef
from finetune_api.limits import MAX_NUMBER

ONE_ANALYSIS = "exactly one of prometheus, webhook, job and analysisTemplateRef must be set"
ONE_BOUND = "max or min must be set"
BOUNDS = "min must not be above max"
PLACEHOLDERS = ("pods", "stablePods", "namespace", "servedName", "digest", "model", "stableModel")
_KNOWN = ", ".join(f"{{{{ {name} }}}}" for name in PLACEHOLDERS)
UNKNOWN_PLACEHOLDER = f"placeholders of a query are {_KNOWN}"
UNKNOWN_IN_ARGUMENT = f"placeholders of an argument are {_KNOWN}"
Url = Annotated[
    str,
    Field(max_length=1024, pattern=r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?$"),
]
URL_NOTE = "Without user, query and fragment. The administrator must allow it (chart value analysis.allowedUrls)."
_TEXT = r"^([^{]|\{[^{]|\{\{ (" + "|".join(PLACEHOLDERS) + r") \}\})*\{?$"
"""Pattern of a text whose placeholders are all known."""
MAX_ARGS = 20


class PrometheusAnalysis(Model):
    """A number that a Prometheus computes must lie within bounds."""

    url: Url = Field(
        description=f"Address of the Prometheus, for example http://prometheus.monitoring:9090. {URL_NOTE}"
    )
    query: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="PromQL that gives one number. {{ pods }} becomes the names of the canary's pods and "
        "{{ stablePods }} those of the others, joined by |. {{ model }} becomes the name under which the engine has "
        "the new version and {{ stableModel }} that of the version before: servedName or, with canary.traffic, "
        "<servedName>@<digest>. {{ namespace }}, {{ servedName }} and {{ digest }} become what their names say."
    )
    max: Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = Field(
        None, description="Highest number that passes."
    )
    min: Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = Field(
        None, description="Lowest number that passes."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "has(self.max) || has(self.min)", "message": ONE_BOUND},
        {"rule": f"self.query.matches(r'{_TEXT}')", "message": UNKNOWN_PLACEHOLDER, "fieldPath": ".query"},
        {"rule": "!has(self.max) || !has(self.min) || self.min <= self.max", "message": BOUNDS, "fieldPath": ".min"},
    ]

    @model_validator(mode="after")
    def _check_bounds(self) -> "PrometheusAnalysis":
        if re.fullmatch(_TEXT.strip("^$"), self.query) is None:
            raise ValueError(UNKNOWN_PLACEHOLDER)
        if self.max is None and self.min is None:
            raise ValueError(ONE_BOUND)
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(BOUNDS)
        return self


class WebhookAnalysis(Model):
    """A service of yours decides: 2xx passes, 4xx and 5xx fail, any other answer is inconclusive."""

    url: Url = Field(description=f"Address to which the body of a Flagger webhook is posted as JSON. {URL_NOTE}")


class JobAnalysis(Model):
    """A Job of yours decides: the version passes if the Job completes."""

    cron_job_ref: NameRef = Field(
        description="CronJob whose jobTemplate the operator makes the Job of. It may be suspended: its schedule does "
        "not matter. Each container gets the canary as FINETUNE_PODS, FINETUNE_STABLE_PODS, FINETUNE_SERVED_NAME, "
        "FINETUNE_DIGEST, FINETUNE_PREVIOUS_DIGEST, FINETUNE_MODEL, FINETUNE_STABLE_MODEL and FINETUNE_STEP."
    )


class AnalysisArgument(Model):
    """A value for an argument of an AnalysisTemplate."""

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Name of the argument.")
    value: Annotated[str, Field(max_length=4096)] = Field(
        description="Its value, with the same placeholders as a query of Prometheus."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": f"self.value.matches(r'{_TEXT}')", "message": UNKNOWN_IN_ARGUMENT, "fieldPath": ".value"}
    ]

    @model_validator(mode="after")
    def _check_value(self) -> "AnalysisArgument":
        if re.fullmatch(_TEXT.strip("^$"), self.value) is None:
            raise ValueError(UNKNOWN_IN_ARGUMENT)
        return self


class AnalysisTemplateRef(Model):
    """An AnalysisTemplate of Argo Rollouts decides: the operator makes an AnalysisRun of it."""

    name: DnsLabel = Field(description="Name of the AnalysisTemplate, in the same namespace.")
    args: list[AnalysisArgument] = Field(
        default_factory=list, description="Values of its arguments.", max_length=MAX_ARGS
    )


class Analysis(Model):
    """What must hold before the next step begins: exactly one of these."""

    prometheus: PrometheusAnalysis | None = Field(
        None, description="A number that a Prometheus computes, and its bounds."
    )
    webhook: WebhookAnalysis | None = Field(
        None, description="A service of yours, which passes the version with an answer of 2xx."
    )
    job: JobAnalysis | None = Field(
        None,
        description="A Job of yours, which passes the version by completing. The administrator must allow it (chart "
        "value analysis.jobs.enabled).",
    )
    analysis_template_ref: AnalysisTemplateRef | None = Field(
        None,
        description="An AnalysisTemplate of Argo Rollouts, whose controller must run in the cluster. The administrator "
        "must allow it (chart value analysis.analysisRuns.enabled).",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "[has(self.prometheus), has(self.webhook), has(self.job), has(self.analysisTemplateRef)]"
            ".filter(given, given).size() == 1",
            "message": ONE_ANALYSIS,
        }
    ]

    @property
    def url(self) -> str | None:
        """Return the address that the operator is to call; None if it is to create an object."""
        source = self.prometheus or self.webhook
        return source.url if source is not None else None

    @model_validator(mode="after")
    def _check_source(self) -> "Analysis":
        sources = (self.prometheus, self.webhook, self.job, self.analysis_template_ref)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(ONE_ANALYSIS)
        return self
