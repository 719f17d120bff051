"""Define selectors of labels and nodes, and the affinities that use them."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.core_v1.lists import LABEL_KEY, MAX_ITEMS, Label, Labels, Name, Strings, Text
from finetune_api.limits import MAX_COUNT

SelectorKey = Annotated[str, Field(max_length=317, pattern=LABEL_KEY)]
Weight = Annotated[int, Field(ge=1, le=100)]


class LabelSelectorRequirement(Model):
    """A condition on a label."""

    key: SelectorKey = Field(description="Key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="Relation of key and values.")
    values: Annotated[list[Label], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Values, with the operators In and NotIn."
    )


class LabelSelector(Model):
    """Objects by their labels. All conditions must hold."""

    match_labels: Labels | None = Field(None, description="Labels that an object must have.")
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Conditions on labels."
    )


class NodeSelectorRequirement(Model):
    """A condition on a label or field of a node."""

    key: SelectorKey = Field(description="Key of the label, or name of the field.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="Relation of key and values."
    )
    values: Strings | None = Field(None, description="Values; with the operators Gt and Lt one whole number.")


Requirements = Annotated[list[NodeSelectorRequirement], Field(max_length=MAX_ITEMS)]


class NodeSelectorTerm(Model):
    """Conditions on a node that must all hold."""

    match_expressions: Requirements | None = Field(None, description="Conditions on the node's labels.")
    match_fields: Requirements | None = Field(None, description="Conditions on the node's fields: metadata.name.")


class NodeSelector(Model):
    """Nodes for which at least one term holds."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="Terms, of which one must match."
    )


class PreferredSchedulingTerm(Model):
    """Nodes that are preferred."""

    weight: Weight = Field(description="Weight of the preference.")
    preference: NodeSelectorTerm = Field(description="Term that a preferred node meets.")


class NodeAffinity(Model):
    """Nodes on which the pod may or should run."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        None, description="Nodes on which the pod may run."
    )
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=MAX_ITEMS)] | None
    ) = Field(None, description="Nodes on which the pod should run.")


class PodAffinityTerm(Model):
    """Pods near which, or far from which, the pod runs."""

    topology_key: SelectorKey = Field(
        description="Key of a node label. Nodes with the same value are one topology domain."
    )
    label_selector: LabelSelector | None = Field(None, description="The other pods.")
    namespaces: Annotated[list[Name], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Namespaces of the other pods. Unset, without namespaceSelector: that of the job."
    )
    namespace_selector: LabelSelector | None = Field(None, description="Namespaces of the other pods, by label.")
    match_label_keys: Strings | None = Field(
        None, description="Keys of labels whose values in the pod itself also select the other pods."
    )
    mismatch_label_keys: Strings | None = Field(
        None, description="Keys of labels whose values in the pod itself must differ from those of the other pods."
    )


class WeightedPodAffinityTerm(Model):
    """A preference for pods."""

    weight: Weight = Field(description="Weight of the preference.")
    pod_affinity_term: PodAffinityTerm = Field(description="Term that is preferred.")


class PodAffinity(Model):
    """Pods near which, or in podAntiAffinity far from which, the pod must or should run."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodAffinityTerm], Field(max_length=MAX_ITEMS)] | None
    ) = Field(None, description="Terms that must all match.")
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[WeightedPodAffinityTerm], Field(max_length=MAX_ITEMS)] | None
    ) = Field(None, description="Terms that are preferred.")


class Affinity(Model):
    """Where the scheduler puts the pod."""

    node_affinity: NodeAffinity | None = Field(None, description="Nodes on which the pod may or should run.")
    pod_affinity: PodAffinity | None = Field(None, description="Pods near which it runs.")
    pod_anti_affinity: PodAffinity | None = Field(None, description="Pods far from which it runs.")


class Toleration(Model):
    """A pod's toleration."""

    key: SelectorKey | None = Field(None, description="Taint key. Unset, with operator Exists: all keys.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Relation of key and value.")
    value: Text | None = Field(None, description="Taint value, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect. Unset: all effects."
    )
    toleration_seconds: int | None = Field(
        None, description="Seconds for which a NoExecute taint is tolerated.", le=MAX_COUNT
    )


class TopologySpreadConstraint(Model):
    """How pods are spread over topology domains, such as zones or nodes."""

    max_skew: int = Field(
        description="Maximum difference in the number of matching pods between two domains.", ge=1, le=MAX_COUNT
    )
    topology_key: SelectorKey = Field(
        description="Key of a node label. Nodes with the same value are one topology domain."
    )
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        description="What happens to a pod that would break the constraint."
    )
    label_selector: LabelSelector | None = Field(None, description="The pods that are counted.")
    min_domains: int | None = Field(None, description="Minimum number of eligible domains.", ge=1, le=MAX_COUNT)
    node_affinity_policy: Literal["Honor", "Ignore"] | None = Field(
        None, description="Honor: count only nodes that the pod's affinity and nodeSelector allow. Ignore: count all."
    )
    node_taints_policy: Literal["Honor", "Ignore"] | None = Field(
        None, description="Honor: count only nodes whose taints the pod tolerates. Ignore: count all."
    )
    match_label_keys: Strings | None = Field(
        None, description="Keys of labels whose values in the pod itself also select the pods that are counted."
    )
