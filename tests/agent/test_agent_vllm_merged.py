"""The agent beside the real vLLM, which was started with a merged model as an engine without LoRA is."""

import shutil
from pathlib import Path

import pytest

from finetune_api.version_paths import version_directory
from tests.agent.adapters import merged_model
from tests.agent.fake_merged_engine import publish_merged
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.vllm_server import running_vllm
from tools.testing.waiting import free_port, wait_for

pytestmark = [pytest.mark.trains, pytest.mark.exhaustive, pytest.mark.timeout(1500)]

NAME = "base"
"""The served name with which the test's vLLM is started."""


def test_a_merged_model_is_proven_by_the_prompts_that_vllm_echoes(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    source = tmp_path / "model"
    shutil.copytree(merged_model(), source)
    version = publish_merged(s3_server, bucket, source)
    with RunningAgent(tmp_path / "pod", s3_server, free_port()) as agent:
        path = version_directory(agent.settings.adapters_directory, NAME, version.digest)
        agent.want(agent.adapter(NAME, version), rolling=True, engine="merged")
        wait_for(path.is_dir, 120, "the model is downloaded")
        with running_vllm(tmp_path, path, lora=False) as vllm:
            agent.engine_port = vllm.port
            agent.want(agent.adapter(NAME, version), rolling=True, engine="merged")
            agent.wait_ready(120)
            report = agent.adapter_report(NAME)
            assert report.active_digest == version.digest
            assert "of the trained effect is there" in report.proof
            assert report.load_seconds is not None
