"""``finetune estimate``: numbers to check by hand, where the configuration comes from, and the error without one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.estimate.report import ChangeEstimate, JobEstimate
from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, changed
from tests.cli.run import CommandResult, finetune
from tools.testing.hub_server import TOKEN, Hub, running_hub
from tools.testing.llama_8b import LLAMA_8B
from tools.testing.s3_server import running_s3

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
JOB = changed(
    FINETUNE_JOB,
    {
        "spec.model": {"uri": "hf://meta-llama/Llama-3.1-8B"},
        "spec.method": {"lora": {"rank": 16, "targetModules": ATTENTION}},
        "spec.training": {
            "perDeviceBatchSize": 4,
            "maxLength": 2048,
            "epochs": 2,
            "gradientCheckpointing": "never",
        },
    },
)
HEAVY = ("torch", "transformers", "peft", "boto3", "huggingface_hub", "kubernetes", "numpy")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write Llama-3.1-8B's config.json."""
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(LLAMA_8B))
    return path


def estimate(job: dict[str, Any], *arguments: str, environment: dict[str, str] | None = None) -> CommandResult:
    """Run ``finetune estimate`` on a job."""
    return finetune("estimate", "-", *arguments, stdin=yaml.safe_dump(job), environment=environment)


def test_json_has_the_documented_shape_and_pefts_numbers(config: Path) -> None:
    output = json.loads(estimate(JOB, "--model-config", str(config), "--rows", "10000", "--output", "json").out)
    assert output.pop("name") == JOB["metadata"]["name"]
    estimated = JobEstimate.model_validate(output)
    assert (estimated.trainable_parameters, estimated.total_parameters) == (13_631_488, 8_030_261_248 + 13_631_488)
    assert estimated.total_steps == 4900, "of 10,000 rows 200 are held out"
    assert estimated.tokens_per_step == 8192
    parts = estimated.memory.model_dump()
    total, _ = parts.pop("total"), parts.pop("verification")
    assert total == sum(parts.values())
    assert [gpu.name for gpu in estimated.gpus][:1] + [gpu.name for gpu in estimated.gpus][-1:] == ["T4", "B200"]
    assert {gpu.name: gpu.fits for gpu in estimated.gpus}["A10"] == "no"
    assert {gpu.name: gpu.fits for gpu in estimated.gpus}["H200"] == "yes"


def test_what_to_change_goes_from_harmless_to_not(config: Path) -> None:
    output = json.loads(estimate(JOB, "--model-config", str(config), "--output", "json").out)
    changes = [ChangeEstimate.model_validate(change) for change in output["changes"]]
    assert [next(iter(change.fields)).removeprefix("spec.") for change in changes] == [
        "training.perDeviceBatchSize",
        "training.perDeviceBatchSize",
        "training.gradientCheckpointing",
        "training.maxLength",
        "method",
    ]
    assert changes[1].fields == {
        "spec.training.perDeviceBatchSize": 1,
        "spec.training.gradientAccumulationSteps": 4,
    }
    assert [change.fields for change in changes[-2:]] == [
        {"spec.training.maxLength": 1024},
        {"spec.method": {"qlora": {"targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"]}}},
    ]
    sizes = [output["memory"]["total"], *(change.bytes for change in changes)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_batch_that_is_unset_is_the_one_that_the_trainer_chooses(config: Path) -> None:
    training = {"maxLength": 1024, "maxSteps": 50}
    job = changed(JOB, {"spec.training": training, "spec.method": {"qlora": {}}})
    of_all = json.loads(estimate(job, "--model-config", str(config), "--output", "json").out)
    of_one = json.loads(estimate(job, "--model-config", str(config), "--gpu", "L4", "--output", "json").out)
    assert of_all["tokensPerStep"] == of_one["tokensPerStep"] == 16 * 1024
    assert any("they are 1 and 16 here" in text for text in of_all["assumptions"]), "what a job needs at least"
    assert of_one["gpus"][0]["fits"] == "yes"
    (assumption,) = (text for text in of_one["assumptions"] if "are unset" in text)
    assert "they are 8 and 2 here" in assumption
    assert assumption.endswith("Short examples are packed as well.")


def test_full_fine_tuning_is_told_of_lora(config: Path) -> None:
    job = changed(JOB, {"spec.method": {"full": {}}})
    output = json.loads(estimate(job, "--model-config", str(config), "--output", "json").out)
    assert {"spec.method": {"lora": {}}} in [change["fields"] for change in output["changes"]]
    assert {"spec.training.optimizer": "paged_adamw_8bit"} in [change["fields"] for change in output["changes"]]


def test_the_verification_of_a_quantised_job_is_in_bf16_on_the_cpu_if_need_be(config: Path) -> None:
    job = changed(
        JOB,
        {
            "spec.method": {"qlora": {}},
            "spec.training.perDeviceBatchSize": 1,
            "spec.training.gradientCheckpointing": "always",
        },
    )
    output = json.loads(estimate(job, "--model-config", str(config), "--output", "json").out)
    memory = output["memory"]
    assert memory["total"] < 10e9 < 16e9 < memory["verification"]
    assert {gpu["name"]: gpu["fits"] for gpu in output["gpus"]}["A10"] == "yes"
    assert any(
        text.startswith("The verification needs more memory than the training") for text in output["assumptions"]
    )


def test_a_comparison_with_full_fine_tuning_is_reported_beforehand(config: Path) -> None:
    job = changed(JOB, {"spec.evaluation": {"compareWithFull": True}})
    output = json.loads(estimate(job, "--model-config", str(config), "--output", "json").out)
    without = json.loads(estimate(JOB, "--model-config", str(config), "--output", "json").out)
    assert output["comparisonBytes"] > 120e9 > output["memory"]["total"] == without["memory"]["total"]
    (assumption,) = (text for text in output["assumptions"] if text.startswith("compareWithFull"))
    assert "needs 201.0 GiB and fits on none of these GPUs" in assumption
    assert "comparisonBytes" not in without


@pytest.mark.parametrize("last", range(4))
def test_the_changes_do_what_they_say(config: Path, last: int) -> None:
    output = json.loads(estimate(JOB, "--model-config", str(config), "--output", "json").out)
    fields: dict[str, Any] = {}
    for change in output["changes"][: last + 1]:
        fields |= change["fields"]
    again = json.loads(estimate(changed(JOB, fields), "--model-config", str(config), "--output", "json").out)
    assert again["memory"]["total"] == output["changes"][last]["bytes"]


def test_a_price_makes_a_cost(config: Path) -> None:
    answer = estimate(
        JOB, "--model-config", str(config), "--rows", "10000", "--gpu", "a100-80gb", "--gpu-price-per-hour", "2",
        "--output", "json",
    )  # fmt: skip
    assert answer.code == 0
    (gpu,) = json.loads(answer.out)["gpus"]
    assert gpu["seconds"] == pytest.approx(4900 * 8192 / gpu["tokensPerSecond"], rel=0.01)
    assert gpu["cost"] == pytest.approx(gpu["seconds"] / 3600 * 2, abs=0.01)


def test_several_gpus_share_the_rows_and_are_all_paid_for(config: Path) -> None:
    two = changed(JOB, {"spec.resources": {"gpusPerNode": 2}})
    arguments = (
        "--model-config", str(config), "--rows", "10000", "--gpu", "a100-80gb", "--gpu-price-per-hour", "2",
        "--output", "json",
    )  # fmt: skip
    on_one_gpu, on_two_gpus = (json.loads(estimate(job, *arguments).out) for job in (JOB, two))
    assert on_two_gpus["totalSteps"] == on_one_gpu["totalSteps"] / 2
    assert on_two_gpus["gpus"][0]["tokensPerSecond"] == pytest.approx(
        2 * on_one_gpu["gpus"][0]["tokensPerSecond"], abs=1
    )
    assert on_two_gpus["gpus"][0]["cost"] == pytest.approx(on_one_gpu["gpus"][0]["cost"], abs=0.02)
    nccl = on_two_gpus["memory"].pop("communication")
    assert nccl == 2**29
    on_two_gpus["memory"]["total"] -= nccl
    assert on_two_gpus["memory"] | {"communication": 0} == on_one_gpu["memory"]


def test_sharding_leaves_each_gpu_a_part_of_the_base(config: Path) -> None:
    """Llama-3.1-8B in bf16: 32 layers of 218,112,000 numbers, and 1,050,677,248 outside of them."""
    sharded = changed(JOB, {"spec.resources": {"gpusPerNode": 8}, "spec.training.sharding": "full"})
    memory = json.loads(estimate(sharded, "--model-config", str(config), "--output", "json").out)["memory"]
    layer, outside = 218_112_000, 1_050_677_248
    assert memory["weights"] == 2 * ((32 * layer + outside) / 8 + outside + 2 * layer)
    full_memory = json.loads(estimate(JOB, "--model-config", str(config), "--output", "json").out)["memory"]
    assert memory["adapter"] == full_memory["adapter"], "what is trained is whole on each"
    assert memory["verification"] < full_memory["verification"] / 3


def test_the_speed_is_that_of_the_source_documents(config: Path) -> None:
    """Llama-3.1-8B on an A100: LoRA 3,200 tokens/s, QLoRA 2,100, full fine-tuning about two thirds of LoRA's."""
    speeds = {}
    for method in ("lora", "qlora", "full"):
        job = changed(JOB, {"spec.method": {method: {}}})
        output = json.loads(estimate(job, "--model-config", str(config), "--gpu", "A100 80GB", "--output", "json").out)
        speeds[method] = output["gpus"][0]["tokensPerSecond"]
    assert speeds["lora"] == pytest.approx(3200, rel=0.1)
    assert speeds["qlora"] == pytest.approx(2100, rel=0.1)
    assert speeds["full"] == pytest.approx(speeds["lora"] * 2 / 3, rel=0.02)


def test_a_pipe_gets_plain_lines(config: Path) -> None:
    ran = estimate(JOB, "--model-config", str(config.parent), "--rows", "10000")
    assert ran.code == 0, ran.err
    assert "13,631,488 of 8,043,892,736 parameters are trained (0.17%)" in ran.out
    assert "4,900 steps of at most 8,192 tokens" in ran.out
    assert "15.0 GiB  weights" in ran.out
    assert 'training.gradientCheckpointing: "always" (the same result, about a third slower)' in ran.out
    assert "has not been compared with a peak measured on a GPU yet" in ran.out
    assert "\x1b[" not in ran.out


def test_a_gpu_that_is_too_small_is_an_error(config: Path) -> None:
    ran = estimate(JOB, "--model-config", str(config), "--gpu", "L4")
    assert ran.code == 1
    assert "L4 has 21.9 GiB" in ran.err
    assert "What to change" in ran.out


def test_gradient_checkpointing_is_on_only_where_a_gpu_is_too_small_without(config: Path) -> None:
    job = changed(JOB, {"spec.training.gradientCheckpointing": "auto"})
    output = json.loads(estimate(job, "--model-config", str(config), "--output", "json").out)
    gpus = {gpu["name"]: gpu for gpu in output["gpus"]}
    assert (gpus["H200"]["gradientCheckpointing"], gpus["H200"]["fits"]) == (False, "yes")
    assert (gpus["A100 40GB"]["gradientCheckpointing"], gpus["A100 40GB"]["fits"]) == (True, "yes")
    never = json.loads(estimate(JOB, "--model-config", str(config), "--output", "json").out)
    assert {gpu["name"]: gpu["fits"] for gpu in never["gpus"]}["A100 40GB"] == "no"
    assert any(text.startswith("gradientCheckpointing auto") for text in output["assumptions"])
    for_one_gpu = estimate(job, "--model-config", str(config), "--gpu", "A100 40GB")
    assert for_one_gpu.code == 0
    assert "yes, recomputing" in for_one_gpu.out
    assert "What to change" not in for_one_gpu.out
    prefix = changed(job, {"spec.method": {"prefixTuning": {}}})
    output = json.loads(estimate(prefix, "--model-config", str(config), "--output", "json").out)
    assert not any(gpu["gradientCheckpointing"] for gpu in output["gpus"]), "prefix tuning does not go with it"


@pytest.mark.parametrize(("gpu", "number"), [("H200", 0), ("A100 40GB", 2), ("A10", 3)])
def test_for_one_gpu_no_more_is_changed_than_it_takes(config: Path, gpu: str, number: int) -> None:
    output = json.loads(estimate(JOB, "--model-config", str(config), "--gpu", gpu, "--output", "json").out)
    changes = output["changes"]
    assert len(changes) == number
    assert [change["fits"] for change in changes[:-1]] == [[]] * max(number - 1, 0)
    assert not changes or changes[-1]["fits"] == [gpu]


def test_packed_tokens_make_rows(config: Path) -> None:
    job = changed(JOB, {"spec.training.packing": True})
    output = json.loads(estimate(job, "--model-config", str(config), "--tokens", "81920000", "--output", "json").out)
    assert output["totalSteps"] == 2 * 10_000


@pytest.mark.parametrize(
    ("dataset", "steps"),
    [
        ({}, 2 * 3),
        ({"validation": {"fraction": 0.5}}, 2 * 2),
        ({"validation": {"uri": "configmap://rows/other.jsonl"}}, 2 * 3),
        ({"maxSamples": 4}, 2 * 1),
        ({"uri": "configmap://rows/other.jsonl"}, None),
    ],
)
def test_the_rows_of_a_configmap_in_the_file_are_counted(
    config: Path, dataset: dict[str, Any], steps: int | None
) -> None:
    job = changed(JOB, {"spec.dataset": {"uri": "configmap://rows/train.jsonl"} | dataset})
    rows = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "rows"}, "data": {"train.jsonl": "{}\n" * 12}}
    file = yaml.safe_dump_all([rows, job])
    output = json.loads(finetune("estimate", "-", "--model-config", str(config), "--output", "json", stdin=file).out)
    assert output.get("totalSteps") == steps


def test_nothing_heavy_is_imported(config: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    code = (
        "import sys\nfrom finetune_cli.estimate import Options, estimate\n"
        f"estimate({str(tmp_path / 'job.yaml')!r}, {str(config)!r}, Options(None, None, None, None), 'json')\n"
        f"sys.stderr.write(repr([name for name in {HEAVY} if name in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == "[]"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--gpu", "H1000"], "--gpu: there is no GPU named 'H1000' in the table; it has: T4, "),
        ({}, ["--gpu-price-per-hour", "2"], "--gpu-price-per-hour needs --gpu: name the GPU too"),
        ({}, ["--model-config", "/no/such/config.json"], "cannot read the model's configuration"),
        ({"spec.model": {"uri": "pvc://models/llama"}}, [], "give the model's config.json with --model-config PATH"),
        ({"spec.method": {"lora": {"rank": 0}}}, [], "spec.method.lora.rank"),
    ],
)
def test_what_cannot_be_answered(changes: dict[str, Any], arguments: list[str], message: str) -> None:
    ran = estimate(changed(JOB, changes), *arguments)
    assert ran.code == 1
    assert message in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model_type": "mamba"},
            "the estimate knows no closed form for model_type 'mamba'; it knows: bloom, deepseek_v3",
        ),
        ({"model_type": "llama"}, "config.json of model_type 'llama' has no hidden_size"),
        (LLAMA_8B | {"hidden_size": "large"}, "hidden_size must be a positive whole number, found 'large'"),
        (["llama"], "is not a JSON object"),
    ],
)
def test_a_configuration_that_cannot_be_used(config: Path, content: Any, message: str) -> None:
    config.write_text(json.dumps(content))
    ran = estimate(JOB, "--model-config", str(config))
    assert ran.code == 1
    assert message in ran.err


def test_modules_that_the_model_does_not_have(config: Path) -> None:
    ran = estimate(changed(JOB, {"spec.method.lora.targetModules": ["c_attn"]}), "--model-config", str(config))
    assert ran.code == 1
    assert "it has: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in ran.err


def test_a_file_without_a_job(config: Path) -> None:
    ran = estimate(ADAPTER_DEPLOYMENT, "--model-config", str(config))
    assert ran.code == 1
    assert "has no FineTuneJob in it" in ran.err


@pytest.fixture
def hub(config: Path) -> Iterator[Hub]:
    """Run a hub with the model, and with the same model gated."""
    with running_hub({"acme/open": config.parent, "acme/gated": config.parent}, gated={"acme/gated"}) as running:
        yield running


def from_hub(hub: Hub, repo: str, revision: str | None = None, token: str = "") -> CommandResult:
    """Estimate a job on a model of the hub."""
    model = {"uri": f"hf://{repo}"} | ({"revision": revision} if revision else {})
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return estimate(changed(JOB, {"spec.model": model}), "--output", "json", environment=environment)


def test_the_configuration_comes_from_the_hub(hub: Hub) -> None:
    assert json.loads(from_hub(hub, "acme/open").out)["trainableParameters"] == 13_631_488
    assert json.loads(from_hub(hub, "acme/gated", token=TOKEN).out)["trainableParameters"] == 13_631_488
    assert set(hub.sent_bytes) <= {"config.json", ""}, "nothing but the configuration is asked for"


def test_the_hub_says_why_not(hub: Hub) -> None:
    gated = from_hub(hub, "acme/gated")
    assert gated.code == 1
    assert f"is a gated model: accept its licence at {hub.endpoint}/acme/gated, and set HF_TOKEN" in gated.err
    assert "hf://acme/open has no config.json" in from_hub(hub, "acme/open", revision="v9").err
    hub.endpoint = "http://127.0.0.1:9"
    unreachable = from_hub(hub, "acme/open")
    assert "cannot be reached at http://127.0.0.1:9/acme/open/resolve/main/config.json" in unreachable.err
    assert "--model-config PATH" in unreachable.err


@pytest.mark.cluster
def test_the_configuration_comes_from_s3(config: Path, tmp_path: Path) -> None:
    with running_s3(tmp_path / "s3") as server:
        bucket = server.create_bucket("models")
        server.store().client.put_object(Bucket=bucket, Key="llama/config.json", Body=config.read_bytes())
        job = changed(JOB, {"spec.model": {"uri": f"s3://{bucket}/llama", "s3": {"endpoint": server.endpoint}}})
        keys = {path.name: path.read_text() for path in server.secret.iterdir()}
        assert json.loads(estimate(job, "--output", "json", environment=keys).out)["trainableParameters"] == 13_631_488
        missing = changed(job, {"spec.model.uri": f"s3://{bucket}/none"})
        refused = estimate(missing, environment=keys)
    assert refused.code == 1
    assert "--model-config PATH" in refused.err
