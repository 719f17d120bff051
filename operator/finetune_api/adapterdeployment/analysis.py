"""Define the analysis of a canary's step: what must hold before the next step begins."""

import re
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.limits import MAX_NUMBER

ONE_ANALYSIS = "exactly one of prometheus and webhook must be set"
ONE_BOUND = "max or min must be set"
BOUNDS = "min must not be above max"
PLACEHOLDERS = ("pods", "stablePods", "namespace", "servedName", "digest")
UNKNOWN_PLACEHOLDER = "placeholders of a query are " + ", ".join(f"{{{{ {name} }}}}" for name in PLACEHOLDERS)
Url = Annotated[
    str,
    Field(max_length=1024, pattern=r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?$"),
]
URL_NOTE = "Without user, query and fragment. The administrator must allow it (chart value analysis.allowedUrls)."
_QUERY = r"^([^{]|\{[^{]|\{\{ (" + "|".join(PLACEHOLDERS) + r") \}\})*\{?$"


class PrometheusAnalysis(Model):
    """A number that a Prometheus computes must lie within bounds."""

    url: Url = Field(
        description=f"Address of the Prometheus, for example http://prometheus.monitoring:9090. {URL_NOTE}"
    )
    query: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="PromQL that gives one number. {{ pods }} becomes the names of the canary's pods and "
        "{{ stablePods }} those of the others, joined by |; {{ namespace }}, {{ servedName }} and {{ digest }} become "
        "what their names say."
    )
    max: Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = Field(
        None, description="Highest number that passes."
    )
    min: Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = Field(
        None, description="Lowest number that passes."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "has(self.max) || has(self.min)", "message": ONE_BOUND},
        {"rule": f"self.query.matches(r'{_QUERY}')", "message": UNKNOWN_PLACEHOLDER, "fieldPath": ".query"},
        {"rule": "!has(self.max) || !has(self.min) || self.min <= self.max", "message": BOUNDS, "fieldPath": ".min"},
    ]

    @model_validator(mode="after")
    def _check_bounds(self) -> "PrometheusAnalysis":
        if re.fullmatch(_QUERY.strip("^$"), self.query) is None:
            raise ValueError(UNKNOWN_PLACEHOLDER)
        if self.max is None and self.min is None:
            raise ValueError(ONE_BOUND)
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(BOUNDS)
        return self


class WebhookAnalysis(Model):
    """A service of yours decides: 2xx passes, 4xx and 5xx fail, any other answer is inconclusive."""

    url: Url = Field(description=f"Address to which the body of a Flagger webhook is posted as JSON. {URL_NOTE}")


class Analysis(Model):
    """What must hold before the next step begins: exactly one of these."""

    prometheus: PrometheusAnalysis | None = Field(
        None, description="A number that a Prometheus computes, and its bounds."
    )
    webhook: WebhookAnalysis | None = Field(
        None, description="A service of yours, which passes the version with an answer of 2xx."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": "has(self.prometheus) != has(self.webhook)", "message": ONE_ANALYSIS}
    ]

    @property
    def url(self) -> str:
        """Return the address that the operator is to call."""
        source = self.prometheus or self.webhook
        return source.url if source is not None else ""

    @model_validator(mode="after")
    def _check_source(self) -> "Analysis":
        if (self.prometheus is None) == (self.webhook is None):
            raise ValueError(ONE_ANALYSIS)
        return self
