"""A second job of the same checks trains at once, on the real API server and by the real operator."""

from pathlib import Path

import pytest

from devcluster.cluster import Cluster
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import PREFLIGHT_PASSED
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster


def test_a_changed_learning_rate_does_not_repeat_the_preflight(cluster: Cluster, api: Api, tmp_path: Path) -> None:
    settings = {"FINETUNE_OPERATOR_PREFLIGHT_REUSE_SECONDS": "3600"}
    operator = Operator(cluster.kubeconfig, api.namespace, tmp_path / "log", settings).start()
    try:
        api.create_job("a", training={"epochs": 2})
        api.end_pod("a-preflight", 0, PREFLIGHT_PASSED)
        api.await_condition("a", "PreflightPassed", "True")
        api.create_job("b", training={"epochs": 2, "learningRate": 0.01})
        api.create_job("c", training={"epochs": 3})
        status = api.await_condition("b", "PreflightPassed", "True")
        assert "FineTuneJob a" in api.message("b", "PreflightPassed")
        assert "preflights" not in status
        assert status["modelRevision"] == PREFLIGHT_PASSED["modelRevision"]
        until("the trainer's Job", lambda: api.job_names("b") == ["b-train-1"])
        until("a preflight of its own", lambda: api.job_names("c") == ["c-preflight"])
    finally:
        operator.end()
