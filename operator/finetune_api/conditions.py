"""Define the standard Kubernetes condition, and the types that our two kinds use."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.timestamps import Timestamp


class ConditionType(StrEnum):
    """The types of conditions that our two kinds use.

    GitOps tools (kstatus) read Ready, Reconciling and Stalled; the last two are there only while they are True.
    """

    ACCEPTED = "Accepted"
    PREFLIGHT_PASSED = "PreflightPassed"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    EVALUATED = "Evaluated"
    SUCCEEDED = "Succeeded"
    MERGED = "Merged"
    INJECTED = "Injected"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(Model):
    """One aspect of the object's state, as in ``metav1.Condition``."""

    type: str = Field(description="Type of the condition, in CamelCase.", max_length=316)
    status: Literal["True", "False", "Unknown"] = Field(description="Status of the condition.")
    observed_generation: int | None = Field(
        None, description="The metadata.generation that the condition was set for.", ge=0
    )
    last_transition_time: Timestamp = Field(
        description="When the status last changed, RFC 3339.", json_schema_extra={"format": "date-time"}
    )
    reason: str = Field(description="A CamelCase word for programs.", min_length=1, max_length=1024)
    message: str = Field(
        description="A sentence for people: what is wrong, where, what was found and what to do.", max_length=32768
    )
