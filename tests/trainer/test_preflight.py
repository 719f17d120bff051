"""What a preflight says of a job, good or bad: the reason, the field, what was found, and what to do."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import zstandard

from finetune_api.messages import PreflightResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.preflight import check
from finetune_trainer.runtime.settings import Settings
from tools.testing.preflight_image import run_preflight
from tools.testing.s3_server import write_secret
from tools.testing.tiny_model import change_config, make_tiny_model
from tools.testing.trainer_jobs import CHATS, ROWS, Workbench, jsonl


def only_problem(settings: Settings) -> tuple[str, str, str]:
    """Return the one problem of a job."""
    result = check(settings, patience_seconds=1)
    assert len(result.problems) == 1, result.problems
    problem = result.problems[0]
    return problem.reason, problem.field, problem.message


def test_a_good_job_passes_and_is_estimated(bench: Workbench) -> None:
    result = check(bench.settings(method={"lora": {"rank": 4}}))
    assert result.problems == []
    assert result.estimate is not None
    assert result.estimate.trainable_parameters == 8192
    assert result.estimate.total_steps == 6
    assert result.estimate.gpu_memory_bytes is None, "this job asks for no GPU"
    assert (
        "spec.dataset.format auto: the dataset is read as promptCompletion (columns prompt, completion)"
        in result.warnings
    )
    assert bench.objects() == [], "the probe must leave nothing behind"


def tiny(bench: Workbench, directory: Path) -> Path:
    """Return a tiny model on the claim ``tiny``, to be changed."""
    (bench.mounts / "claims" / "tiny").symlink_to(make_tiny_model(directory))
    return directory


def test_the_gpu_memory_of_a_job_with_a_gpu_is_estimated(bench: Workbench) -> None:
    result = check(bench.settings(resources={"gpusPerNode": 1}, training={"epochs": 2}))
    assert result.estimate is not None
    assert result.estimate.gpu_memory_bytes is not None
    assert 1.5 * 2**30 < result.estimate.gpu_memory_bytes < 1.6 * 2**30, "a tiny model, and what CUDA itself takes"
    assert result.estimate.total_steps is None, "the rows are not counted before the training"


def test_a_model_that_the_estimate_does_not_know_passes_with_a_warning(bench: Workbench, tmp_path: Path) -> None:
    change_config(tiny(bench, tmp_path / "novel"), model_type="stablelm")
    spec = {"model": {"uri": "pvc://tiny"}, "method": {"lora": {"rank": 4}}, "resources": {"gpusPerNode": 1}}
    result = check(bench.settings(**spec))
    assert result.problems == []
    assert result.estimate is not None
    assert result.estimate.trainable_parameters == 8192
    assert result.estimate.gpu_memory_bytes is not None
    assert any("model_type 'stablelm' has no closed form" in text for text in result.warnings)


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], ["self_attn.o_proj"], ["model.layers.1.mlp.up_proj"]]
)
def test_the_estimate_is_what_peft_counts(bench: Workbench, targets: str | list[str]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(bench.mounts / "claims" / "models" / "tiny")
    size = base.num_parameters()
    tuned = get_peft_model(base, LoraConfig(r=6, target_modules=targets, task_type="CAUSAL_LM"))
    trainable, _ = tuned.get_nb_trainable_parameters()
    result = check(bench.settings(method={"lora": {"rank": 6, "targetModules": targets}}))
    assert result.estimate is not None
    assert result.estimate.trainable_parameters == trainable
    assert result.estimate.total_parameters == size + trainable


def output(bench: Workbench, **changes: Any) -> dict[str, Any]:
    """Return the output section with some of s3's fields changed."""
    section: dict[str, Any] = bench.job()["spec"]["output"]
    return section | {"s3": section["s3"] | changes}


def test_a_bucket_that_does_not_exist(bench: Workbench) -> None:
    reason, path, message = only_problem(bench.settings(output=output(bench, bucket="no-such-bucket")))
    assert (reason, path) == (Reason.BUCKET_NOT_FOUND, "spec.output.s3.bucket")
    assert "'no-such-bucket'" in message
    assert bench.server.endpoint in message


@pytest.mark.parametrize(("access_key", "secret_key"), [("test-access", "not-the-key"), ("nobody", "not-the-key")])
def test_wrong_credentials(bench: Workbench, access_key: str, secret_key: str) -> None:
    write_secret(bench.mounts / "secrets" / "s3-credentials", access_key, secret_key)
    reason, path, message = only_problem(bench.settings())
    assert (reason, path) == (Reason.OUTPUT_ACCESS_DENIED, "spec.output.secretRef")
    assert "credentials are not valid" in message
    assert secret_key not in message


def test_a_secret_without_the_needed_key_is_reported_with_the_keys_it_has(bench: Workbench) -> None:
    (bench.mounts / "secrets" / "s3-credentials" / "AWS_SECRET_ACCESS_KEY").unlink()
    reason, path, message = only_problem(bench.settings())
    assert (reason, path) == (Reason.OUTPUT_ACCESS_DENIED, "spec.output.secretRef")
    assert message == "Secret 's3-credentials' must have AWS_SECRET_ACCESS_KEY: its keys are: AWS_ACCESS_KEY_ID"


def test_a_secret_that_is_not_there(bench: Workbench) -> None:
    section = bench.job()["spec"]["output"] | {"secretRef": {"name": "forgotten"}}
    _, path, message = only_problem(bench.settings(output=section))
    assert path == "spec.output.secretRef"
    assert "no such Secret" in message


def test_an_endpoint_where_nobody_answers(bench: Workbench) -> None:
    reason, path, message = only_problem(bench.settings(output=output(bench, endpoint="http://127.0.0.1:9")))
    assert (reason, path) == (Reason.UPLOAD_FAILED, "spec.output.s3.endpoint")
    assert "http://127.0.0.1:9" in message


def test_a_prefix_with_another_jobs_adapter(bench: Workbench) -> None:
    manifest = {
        "kind": "Adapter",
        "job": {"namespace": "team", "name": "older", "uid": "77"},
        "createdAt": "2026-01-01T00:00:00Z",
        "baseModel": "x",
        "peftType": "LORA",
        "files": [],
    }
    bench.server.store().client.put_object(
        Bucket=bench.bucket, Key="team/job/adapter/manifest.json", Body=json.dumps(manifest).encode()
    )
    reason, path, message = only_problem(bench.settings())
    assert (reason, path) == (Reason.OUTPUT_EXISTS, "spec.output.s3.prefix")
    assert "FineTuneJob team/older" in message


def test_rows_without_the_needed_column_are_named_by_their_numbers(bench: Workbench) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    for number in (3, 7, 8, 20, 21, 30, 31):
        rows[number - 1] = {"prompt": "a question", "answer": "an answer"}
    bench.dataset(jsonl(rows))
    reason, path, message = only_problem(bench.settings())
    assert (reason, path) == (Reason.DATASET_INVALID, "spec.dataset.columns")
    assert message.startswith(f"7 of {len(ROWS)} rows of configmap://data/train.jsonl cannot be used: ")
    assert "line 3: has no column 'completion'; found columns: prompt, answer" in message
    assert "line 21:" in message
    assert "line 30:" not in message, "at most five are shown"
    assert "; 2 more" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (
            '{"question": "a"}\n',
            "train.jsonl line 1 of configmap://data/train.jsonl has the columns question; expected messages",
        ),
        ('{"prompt": "a", "completion": 7}\n', "train.jsonl line 1: column 'completion' must be text, found a number"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "train.jsonl line 2: is not JSON"),
        ('{"prompt": "a", "completion": "b"}\n["a"]\n', "train.jsonl line 2: is not a JSON object"),
        ('{"prompt": "a", "completion": " "}\n', "has no row with a text to learn from"),
        (
            '{"messages": [{"role": "user", "content": "hi"}]}\n',
            "has no message of the role assistant to learn from; found roles: user",
        ),
        ('{"messages": [{"role": "user"}]}\n', "message 1 in column 'messages' must have the texts role and content"),
        ("To be, or not to be\n", "write a JSON object on each line"),
    ],
)
def test_datasets_that_cannot_be_used(bench: Workbench, text: str, expected: str) -> None:
    bench.dataset(text)
    reason, _, message = only_problem(bench.settings())
    assert reason is Reason.DATASET_INVALID
    assert expected in message


@pytest.mark.parametrize(
    ("text", "key", "layout"),
    [
        (jsonl(CHATS), "train.jsonl", "messages (columns messages)"),
        ('{"text": "a row"}\n{"text": "and another", "id": 7}\n', "train.jsonl", "text (columns text; not used: id)"),
        ("To be, or not to be\n", "hamlet.txt", "plain text"),
    ],
)
def test_the_format_is_detected_from_the_first_row(bench: Workbench, text: str, key: str, layout: str) -> None:
    uri = bench.dataset(text, key)
    result = check(bench.settings(dataset={"uri": uri}))
    assert result.problems == []
    assert f"spec.dataset.format auto: the dataset is read as {layout}" in result.warnings


PARQUET = pyarrow.BufferOutputStream()
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), PARQUET)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("train.jsonl.gz", gzip.compress(jsonl(ROWS).encode())),
        ("train.zst", zstandard.compress(jsonl(ROWS).encode())),
        ("train.json", json.dumps(ROWS).encode()),
        ("train.parquet", PARQUET.getvalue().to_pybytes()),
        ("train.csv", b"prompt,completion\n" + b"a,b\n" * 20),
    ],
)
def test_other_files_are_looked_into_in_s3_and_on_claims(bench: Workbench, key: str, content: bytes) -> None:
    bench.server.store().client.put_object(Bucket=bench.bucket, Key=f"rows/{key}", Body=content)
    (bench.mounts / "claims" / "rows" / "below").mkdir(parents=True)
    (bench.mounts / "claims" / "rows" / "below" / key).write_bytes(content)
    (bench.mounts / "claims" / "rows" / "README.md").write_text("not data")
    uris = [f"s3://{bench.bucket}/rows/{key}", f"pvc://rows/below/{key}"]
    if key != "train.zst":  # a name that says nothing is only taken where it is given
        uris += [f"s3://{bench.bucket}/rows", "pvc://rows/below"]
    for uri in uris:
        result = check(bench.settings(dataset={"uri": uri}))
        assert result.problems == [], uri
        assert (
            "spec.dataset.format auto: the dataset is read as promptCompletion (columns prompt, completion)"
            in result.warnings
        )


def test_a_bad_row_of_parquet_is_named_by_its_number(bench: Workbench) -> None:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"prompt": "a", "completion": None}]), sink)
    bench.dataset(sink.getvalue().to_pybytes(), "train.parquet")
    _, _, message = only_problem(bench.settings(dataset={"uri": "configmap://data/train.parquet"}))
    assert f"train.parquet row {len(ROWS) + 1}: column 'completion' must be text, found null" in message


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "pvc://rows/nothing.jsonl",
            "pvc://rows/nothing.jsonl is neither a file nor a directory of data files: rows has: other.jsonl",
        ),
        ("pvc://nobody/rows.jsonl", "nothing exists there"),
        ("pvc://rows/../../secrets/s3-credentials/AWS_SECRET_ACCESS_KEY", "leads out of the claim"),
    ],
)
def test_an_invalid_path_of_a_claim(bench: Workbench, uri: str, expected: str) -> None:
    (bench.mounts / "claims" / "rows").mkdir()
    (bench.mounts / "claims" / "rows" / "other.jsonl").write_text(jsonl(ROWS))
    _, path, message = only_problem(bench.settings(dataset={"uri": uri}))
    assert path == "spec.dataset.uri"
    assert expected in message


def test_held_out_data_is_looked_at_too(bench: Workbench) -> None:
    held_out = bench.dataset('{"prompt": "a"}\n', "test.jsonl")
    dataset = {"uri": "configmap://data/train.jsonl", "validation": {"uri": held_out}}
    reason, _, message = only_problem(bench.settings(dataset=dataset))
    assert reason is Reason.DATASET_INVALID
    assert (
        "1 of 1 rows of configmap://data/test.jsonl cannot be used: test.jsonl line 1: has no column 'completion'"
        in message
    )


def test_data_that_the_objective_cannot_learn_from_never_reaches_a_gpu(bench: Workbench) -> None:
    reason, path, message = only_problem(bench.settings(objective="dpo"))
    assert (reason, path) == (Reason.DATASET_INVALID, "spec.dataset.format")
    assert "objective dpo learns from a better and a worse answer" in message


def test_a_template_is_tried_on_the_rows(bench: Workbench) -> None:
    dataset = {"uri": "configmap://data/train.jsonl", "template": {"text": "{{ prompt }}{{ answer }}"}}
    _, _, message = only_problem(bench.settings(dataset=dataset))
    assert "train.jsonl line 1: template.text uses a value that the row lacks: 'answer' is undefined" in message


def test_a_dataset_in_s3_is_read_only_as_far_as_needed(bench: Workbench) -> None:
    body = jsonl(ROWS).encode() * 3000
    assert len(body) > 8_000_000
    bench.server.store().client.put_object(Bucket=bench.bucket, Key="data/train.jsonl", Body=body + b"not a row\n")
    result = check(bench.settings(dataset={"uri": f"s3://{bench.bucket}/data/train.jsonl"}))
    assert result.problems == []


def test_a_dataset_that_is_not_there(bench: Workbench) -> None:
    reason, path, message = only_problem(bench.settings(dataset={"uri": f"s3://{bench.bucket}/data/nothing.jsonl"}))
    assert (reason, path) == (Reason.DATASET_NOT_FOUND, "spec.dataset.uri")
    assert f"s3://{bench.bucket}/data/nothing.jsonl does not exist" in message
    reason, _, message = only_problem(bench.settings(dataset={"uri": "configmap://data/other.jsonl"}))
    assert reason is Reason.DATASET_NOT_FOUND
    assert "its keys are: train.jsonl" in message


def test_target_modules_that_the_model_lacks(bench: Workbench) -> None:
    reason, path, message = only_problem(
        bench.settings(method={"qlora": {"targetModules": ["q_attn", "v_proj", "v_attn"]}})
    )
    assert (reason, path) == (Reason.TARGET_MODULES_NOT_FOUND, "spec.method.qlora.targetModules")
    assert message == (
        "the model has no linear module named q_attn, v_attn; "
        "it has: down_proj, gate_proj, up_proj, k_proj, o_proj, q_proj, v_proj. "
        "Choose among these, or write all-linear"
    )


def test_a_model_in_s3_is_looked_at_by_range_reads(bench: Workbench) -> None:
    for file in (bench.mounts / "claims" / "models" / "tiny").iterdir():
        bench.server.store().client.put_object(
            Bucket=bench.bucket, Key=f"models/tiny/{file.name}", Body=file.read_bytes()
        )
    result = check(bench.settings(model={"uri": f"s3://{bench.bucket}/models/tiny"}, method={"lora": {"rank": 4}}))
    assert result.problems == []
    assert result.estimate is not None
    assert result.estimate.trainable_parameters == 8192


def test_pickled_weights_are_refused(bench: Workbench) -> None:
    directory = bench.directory / "pickled"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (bench.mounts / "claims" / "old").symlink_to(directory)
    reason, path, message = only_problem(bench.settings(model={"uri": "pvc://old"}))
    assert (reason, path) == (Reason.MODEL_UNSUPPORTED, "spec.model.uri")
    assert "pytorch_model.bin" in message
    assert "safetensors" in message


def test_a_model_that_is_not_there(bench: Workbench) -> None:
    reason, _, message = only_problem(bench.settings(model={"uri": "pvc://models/other"}))
    assert reason is Reason.MODEL_NOT_FOUND
    assert "there is no such directory" in message
    reason, _, _ = only_problem(bench.settings(model={"uri": f"s3://{bench.bucket}/models/other"}))
    assert reason is Reason.MODEL_NOT_FOUND


def test_a_claims_path_cannot_lead_out_of_the_claim(bench: Workbench) -> None:
    reason, _, message = only_problem(bench.settings(model={"uri": "pvc://models/../../secrets/s3-credentials"}))
    assert reason is Reason.SPEC_INVALID
    assert "leads out of the claim" in message


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_chat_messages_need_a_chat_template(bench: Workbench, tmp_path: Path, objective: str) -> None:
    (bench.mounts / "claims" / "plain").symlink_to(make_tiny_model(tmp_path / "plain", chat=False))
    turns = CHATS[0]["messages"]
    pair = {"prompt": turns[:1], "chosen": turns[1:2], "rejected": turns[3:]}
    bench.dataset(jsonl(CHATS if objective == "sft" else [pair]))
    reason, path, message = only_problem(bench.settings(model={"uri": "pvc://plain"}, objective=objective))
    assert (reason, path) == (Reason.MODEL_UNSUPPORTED, "spec.dataset.format")
    assert "no chat template" in message


def test_all_problems_are_reported_at_once(bench: Workbench) -> None:
    bench.dataset("not json\n")
    settings = bench.settings(
        output=output(bench, bucket="no-such-bucket"), method={"lora": {"targetModules": ["q_attn"]}}
    )
    reasons = [problem.reason for problem in check(settings, patience_seconds=1).problems]
    assert reasons == [Reason.BUCKET_NOT_FOUND, Reason.DATASET_INVALID, Reason.TARGET_MODULES_NOT_FOUND]


@pytest.fixture
def preflight_pod(bench: Workbench, preflight_image: Path) -> Callable[[str], tuple[int, bytes, str]]:
    """Run the preflight as its pod does; return exit code, termination message and log."""

    def run(job: str) -> tuple[int, bytes, str]:
        return run_preflight(preflight_image, job, bench.mounts, bench.directory)

    return run


def test_the_pod_says_its_result_without_torch(
    bench: Workbench, preflight_pod: Callable[[str], tuple[int, bytes, str]]
) -> None:
    code, message, log = preflight_pod(json.dumps(bench.job()))
    assert code == 0, log
    assert PreflightResult.model_validate_json(message).problems == []
    bench.dataset(jsonl([{"prompt": "x" * 3000, "answer": "y" * 3000} for _ in range(50)]))
    job = bench.job(
        dataset={"uri": "configmap://data/train.jsonl", "format": "promptCompletion"},
        output=output(bench, bucket="no-such-bucket"),
    )
    code, message, log = preflight_pod(json.dumps(job))
    assert code == EXIT_CODES[Reason.BUCKET_NOT_FOUND]
    assert len(message) <= 4096
    assert len(PreflightResult.model_validate_json(message).problems) == 2
    assert "test-secret-key" not in log + message.decode()


def test_a_job_that_the_models_refuse_is_a_result_too(
    bench: Workbench, preflight_pod: Callable[[str], tuple[int, bytes, str]]
) -> None:
    job = bench.job(method={"lora": {"rank": 0}})
    code, message, _ = preflight_pod(json.dumps(job))
    assert code == EXIT_CODES[Reason.SPEC_INVALID]
    assert PreflightResult.model_validate_json(message).problems[0].field == "spec.method.lora.rank"


def test_rows_that_the_chat_template_refuses_are_named(bench: Workbench, tmp_path: Path) -> None:
    model = tiny(bench, tmp_path / "model")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
    (model / "chat_template.jinja").write_text(template + (model / "chat_template.jinja").read_text())
    system = {"messages": [{"role": "system", "content": "Be brief."}, *CHATS[0]["messages"]]}
    bench.dataset(jsonl([*CHATS[:3], system, CHATS[3], system]))
    reason, field, message = only_problem(bench.settings(model={"uri": "pvc://tiny"}))
    assert (reason, field) == (Reason.DATASET_INVALID, "spec.dataset.columns")
    assert "2 of 6 rows" in message
    assert "train.jsonl line 4: the model's chat template refuses it (No system role.)" in message


def test_a_token_without_an_embedding_is_refused(bench: Workbench, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tiny(bench, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    size = len(tokenizer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(model)
    assert check(bench.settings(model={"uri": "pvc://tiny"}), patience_seconds=1).problems == [], "no row has the token"
    bench.dataset(jsonl([{"prompt": "a", "completion": "<tool>b"}]))
    reason, field, message = only_problem(bench.settings(model={"uri": "pvc://tiny"}))
    assert (reason, field) == (Reason.MODEL_UNSUPPORTED, "spec.model.uri")
    assert f"embeddings for {size} tokens only" in message
    assert f"the tokenizer has {size + 1}" in message


def test_a_broken_tokenizer_is_refused_with_its_file_and_versions(bench: Workbench, tmp_path: Path) -> None:
    model = tiny(bench, tmp_path / "model")
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["merges"] = [{"a": 1}]
    (model / "tokenizer.json").write_text(json.dumps(content))
    reason, field, message = only_problem(bench.settings(model={"uri": "pvc://tiny"}))
    assert (reason, field) == (Reason.MODEL_UNSUPPORTED, "spec.model.uri")
    assert "cannot be loaded from tokenizer.json" in message
    assert "transformers 5." in message
