"""Check a label selector, match labels against it, and write it as kubectl does. Pure."""

from collections.abc import Mapping

from pydantic import ValidationError

from finetune_api import structural
from finetune_api.core_v1.lists import LABEL_KEY
from finetune_api.core_v1.selectors import LabelSelector, LabelSelectorRequirement

WRONG_VALUES = "operators In and NotIn need values, and Exists and DoesNotExist take none: add values, or remove them"
WRONG_KEY = (
    "a key of matchLabels cannot be that of a label: write name or domain/name, where the name has "
    "at most 63 letters, digits, dots, dashes and underscores, and begins and ends with a letter or digit"
)


def build_selector_rules(empty: str) -> list[dict[str, str]]:
    """Build the CEL rules of a field ``selector``; ``empty`` is the message for one without any condition."""
    return [
        {
            "rule": "!has(self.selector) || (has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0) "
            "|| (has(self.selector.matchExpressions) && self.selector.matchExpressions.size() > 0)",
            "message": empty,
            "fieldPath": ".selector",
        },
        {
            "rule": "!has(self.selector) || !has(self.selector.matchExpressions) || self.selector.matchExpressions.all("
            "item, (has(item.values) && item.values.size() > 0) == (item.operator in ['In', 'NotIn']))",
            "message": WRONG_VALUES,
            "fieldPath": ".selector.matchExpressions",
        },
        {
            "rule": "!has(self.selector) || !has(self.selector.matchLabels) || "
            f"self.selector.matchLabels.all(key, key.matches('{LABEL_KEY}'))",
            "message": WRONG_KEY,
            "fieldPath": ".selector.matchLabels",
        },
    ]


def check_selector(selector: LabelSelector, empty: str) -> None:
    """Check the same as the CEL rules. Raises ValueError."""
    expressions = selector.match_expressions or []
    if not selector.match_labels and not expressions:
        raise ValueError(empty)
    if any(bool(item.values) != (item.operator in ("In", "NotIn")) for item in expressions):
        raise ValueError(WRONG_VALUES)
    if not has_label_keys(selector):
        raise ValueError(WRONG_KEY)


def has_label_keys(selector: LabelSelector) -> bool:
    """Return whether the keys are those of labels: the API server refuses to list objects by others."""
    return all(structural.matches(key, LABEL_KEY) for key in selector.match_labels or ())


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Return whether the labels meet all conditions. An absent label meets NotIn and DoesNotExist, as in Kubernetes."""
    required = (selector.match_labels or {}).items()
    return all(labels.get(key) == value for key, value in required) and all(
        _meets(requirement, labels) for requirement in selector.match_expressions or ()
    )


def parse_selector(value: object) -> LabelSelector | None:
    """Parse a selector from JSON; None if it is not valid, as one of a newer version may be."""
    try:
        return LabelSelector.model_validate(value)
    except ValidationError:
        return None


def format_selector(selector: LabelSelector) -> str:
    """Write a selector in one line: ``app=bot,team in (a,b),!draft``. Equal selectors are written equally."""
    labels = [f"{key}={value}" for key, value in sorted((selector.match_labels or {}).items())]
    return ",".join([*labels, *sorted(_format_requirement(item) for item in selector.match_expressions or ())])


def _meets(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in (requirement.values or ())
        case "NotIn":
            return value not in (requirement.values or ())
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None


def _format_requirement(requirement: LabelSelectorRequirement) -> str:
    values = ",".join(sorted(requirement.values or ()))
    match requirement.operator:
        case "In":
            return f"{requirement.key} in ({values})"
        case "NotIn":
            return f"{requirement.key} notin ({values})"
        case "Exists":
            return requirement.key
        case "DoesNotExist":
            return f"!{requirement.key}"
