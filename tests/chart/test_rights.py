"""Each right that the chart gives the operator is used by a call in its code, and each call has its right."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from finetune_operator.kube import kinds
from finetune_operator.kube.kinds import CUSTOM, WATCHED, Kind

Right = tuple[str, str, str]
"""API group, resource and verb."""
OPERATOR = Path("operator/finetune_operator")
HELPERS = Path("charts/finetune-operator/templates/_helpers.tpl").read_text()
VERBS = {
    "get": ("get",), "list": ("list",), "create": ("create",), "replace": ("update",), "merge": ("patch",),
    "delete": ("delete",), "apply": ("patch",), "write_status": ("patch",),
}  # fmt: skip
"""The verbs of each method of the client."""
CREATED_BY_APPLY = {kinds.CONFIG_MAP, *kinds.MODEL_REWRITES.values()}
"""Kinds whose objects may not exist yet when they are applied. A Deployment is applied with its uid, so it exists."""
UNNAMED = {
    "reconcile/write_status.py": CUSTOM,
    "resync.py": WATCHED,
    "reconcile/finetunejob/apply.py": (kinds.JOB, kinds.POD),
    "analyses/objects.py": (kinds.JOB, kinds.ANALYSIS_RUN),
    "reconcile/adapterdeployment/gather.py": (kinds.DEPLOYMENT, kinds.STATEFUL_SET),
    "reconcile/adapterdeployment/apply.py": (kinds.DEPLOYMENT, kinds.STATEFUL_SET),
}
"""Kinds of the calls that name their kind by a variable, by file."""


def used() -> set[Right]:
    """Return the rights that the operator's code uses."""
    rights = {(kind.group, kind.plural, verb) for kind in WATCHED for verb in ("list", "watch")}
    for file in OPERATOR.rglob("*.py"):
        for method, name in re.findall(r"kube\.(\w+)\(\s*(\w+)", file.read_text()):
            if method in VERBS:
                rights |= {right for kind in kinds_of(file, name) for right in rights_of(kind, method)}
    # OpenShift allows blockOwnerDeletion only to accounts that may update the owner's finalizers.
    owners = {
        name for file in OPERATOR.rglob("*.py") for name in re.findall(r"owner_reference\(([A-Z]\w+)", file.read_text())
    }
    return rights | {(kind.group, f"{kind.plural}/finalizers", "update") for kind in map(kind_of, owners)}


def rights_of(kind: Kind, method: str) -> Iterator[Right]:
    resource = f"{kind.plural}/status" if method == "write_status" else kind.plural
    for verb in VERBS[method]:
        yield kind.group, resource, verb
    if method == "apply" and kind in CREATED_BY_APPLY:
        yield kind.group, resource, "create"


def kinds_of(file: Path, name: str) -> tuple[Kind, ...]:
    if name == "MODEL_REWRITES":
        return tuple(kinds.MODEL_REWRITES.values())
    return UNNAMED[file.relative_to(OPERATOR).as_posix()] if name in ("kind", "resource") else (kind_of(name),)


def kind_of(name: str) -> Kind:
    kind = getattr(kinds, name)
    assert isinstance(kind, Kind)
    return kind


def given() -> set[Right]:
    """Return the rights to namespaced objects that the chart gives with all of its values on, leases aside."""
    definition = re.search(r'define "finetune-operator\.rules" -}}\n(.*?)\n\{\{- end }}\n\n', HELPERS, re.DOTALL)
    assert definition
    with_all_values = re.sub(r"^\{\{-.*", "", definition[1], flags=re.MULTILINE)
    return {
        (group, resource, verb)
        for rule in yaml.safe_load(with_all_values)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_each_right_is_used_and_each_call_has_its_right() -> None:
    leases = {right for right in used() if right[1] == kinds.LEASE.plural}
    assert given() == used() - leases


def test_the_operator_has_no_right_to_secrets() -> None:
    assert not {right for right in given() if right[1] == "secrets" or "*" in right}
