"""Match labels against a label selector, and write a selector as kubectl does. Pure."""

from collections.abc import Mapping

from finetune_api.core_v1.selectors import LabelSelector, LabelSelectorRequirement


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Return whether the labels meet all conditions. An absent label meets NotIn and DoesNotExist, as in Kubernetes."""
    wanted = (selector.match_labels or {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        _meets(requirement, labels) for requirement in selector.match_expressions or ()
    )


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
