"""The log as JSON: each line is an object that programs can filter by job and attempt."""

import json
import logging
import sys
from pathlib import Path

import pytest

from devcluster.cluster import Cluster
from finetune_operator.logs import ABOUT, JsonFormatter
from tools.testing.fake_kubelet import Kubelet, good_run
from tools.testing.kubernetes_api import Api
from tools.testing.operator_process import Operator


def test_a_line_is_an_object_with_what_it_is_about() -> None:
    record = logging.LogRecord("finetune_operator.x", logging.INFO, "", 0, "a job: %s", ("äö\nü",), None)
    setattr(record, ABOUT, {"name": "a", "attempt": 2})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert {"time", "level", "logger"} <= fields.keys()
    assert (fields["message"], fields["name"], fields["attempt"]) == ("a job: äö\nü", "a", 2)


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: no")


@pytest.mark.cluster
def test_the_whole_log_is_json_and_has_each_transition_once(cluster: Cluster, api: Api, tmp_path: Path) -> None:
    operator = Operator(cluster.kubeconfig, api.namespace, tmp_path / "log", {"FINETUNE_OPERATOR_LOG_FORMAT": "json"})
    operator.start()
    api.create_job("told")
    with Kubelet(api, "told", good_run):
        api.await_condition("told", "Ready", "True")
    operator.stop()
    lines = [json.loads(line) for line in operator.log.read_text().splitlines()]
    logged = [(line["reason"], line.get("attempt")) for line in lines if line.get("name") == "told"]
    story = [("Accepted", None), ("PreflightPassed", None), ("AttemptStarted", 1), ("Succeeded", 1)]
    assert [transition for transition in logged if transition[0] != "Unschedulable"] == story
