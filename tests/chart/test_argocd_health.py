"""The health check that docs/gitops.md gives for Argo CD, run by a Lua without standard libraries, as Argo CD's is."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tools.testing.process import run_script

LUPA = "lupa==2.6"
RUN = """
import json, sys
from lupa.lua51 import LuaRuntime

def table(value):
    if isinstance(value, dict):
        return lua.table_from({key: table(item) for key, item in value.items()})
    if isinstance(value, list):
        return lua.table_from([table(item) for item in value])
    return value

check, objects = json.load(sys.stdin)
found = []
for item in objects:
    lua = LuaRuntime(register_eval=False)
    lua.execute("for name in pairs(_G) do if name ~= 'ipairs' and name ~= '_G' then _G[name] = nil end end")
    lua.globals().obj = table(item)
    answer = lua.execute(check)
    found.append([answer["status"], answer["message"]])
print(json.dumps(found))
"""
Condition = tuple[str, str]
CASES: dict[str, tuple[dict[str, object], str]] = {
    "just created": ({"conditions": [("Ready", "Unknown")]}, "Progressing"),
    "no status": ({}, "Progressing"),
    "of an older spec": ({"observedGeneration": 1, "conditions": [("Ready", "True")]}, "Progressing"),
    "in work": (
        {"observedGeneration": 2, "conditions": [("Ready", "Unknown"), ("Reconciling", "True")]},
        "Progressing",
    ),
    "waiting": ({"observedGeneration": 2, "conditions": [("Reconciling", "True"), ("Ready", "False")]}, "Progressing"),
    "failed": ({"observedGeneration": 2, "conditions": [("Ready", "False"), ("Stalled", "True")]}, "Degraded"),
    "done": ({"observedGeneration": 2, "conditions": [("Ready", "True")]}, "Healthy"),
}


@pytest.fixture(scope="module")
def health() -> dict[str, list[str]]:
    """Return the status and message that the check gives in each case."""
    block = next(
        text
        for text in re.findall(r"```yaml\n(.*?)```", Path("docs/gitops.md").read_text(), re.DOTALL)
        if "argocd-cm" in text
    )
    data = yaml.safe_load(block)["data"]
    checks = {
        data[f"resource.customizations.health.finetune-operator.io_{kind}"]
        for kind in ("FineTuneJob", "AdapterDeployment")
    }
    assert len(checks) == 1
    objects = json.dumps([checks.pop(), [resource(status) for status, _ in CASES.values()]])
    return dict(zip(CASES, json.loads(run_script(RUN, [LUPA], stdin=objects)), strict=True))


def resource(status: dict[str, object]) -> dict[str, object]:
    """Return an object of generation 2 with this status."""
    conditions = status.get("conditions", [])
    assert isinstance(conditions, list)
    conditions_with_text = [
        {"type": kind, "status": value, "reason": f"{kind}Reason", "message": "why"} for kind, value in conditions
    ]
    return {
        "metadata": {"generation": 2},
        **({"status": {**status, "conditions": conditions_with_text}} if status else {}),
    }


@pytest.mark.parametrize("case", CASES)
def test_the_health_that_argo_cd_shows(health: dict[str, list[str]], case: str) -> None:
    assert health[case][0] == CASES[case][1]


def test_the_message_says_why(health: dict[str, list[str]]) -> None:
    assert health["failed"][1] == "StalledReason: why"
    assert health["done"][1] == "ReadyReason: why"
