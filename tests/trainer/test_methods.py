"""Every method trains, is published in a form that is proven to equal what was trained, and says what can serve it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from peft import PeftModel
from peft.utils.integrations import dequantize_bnb_weight
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

from finetune_agent.compatibility import IncompatibleError, check_adapter
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.manifest import MergedManifest
from finetune_api.methods import Method, Vera
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_trainer.merge import merge_adapter
from finetune_trainer.methods import adalora
from finetune_trainer.methods.adapted_model import add_adapter
from finetune_trainer.methods.conversion import lora_factors
from finetune_trainer.methods.initialization import read_factors
from finetune_trainer.methods.peft_config import BaseInfo
from finetune_trainer.models import quantizable
from finetune_trainer.models.loading import load_base, make_quantization_config
from finetune_trainer.preflight import check
from finetune_trainer.preflight.serving import list_serving_warnings
from finetune_trainer.runtime.failures import Failure
from tools.testing.trainer_jobs import Workbench, train, train_until

PIECES: dict[str, Any] = {
    "maxSteps": 5,
    "perDeviceBatchSize": 1,
    "gradientAccumulationSteps": 2,
    "maxLength": 64,
    "learningRate": 5e-3,
    "scheduler": "cosine",
    "warmupRatio": 0.2,
}


@dataclass(frozen=True)
class Case:
    """A method, and what is published of it."""

    method: dict[str, Any]
    peft_type: str
    served: bool = False
    rank: int | None = None
    """Of the plain LoRA that it is published as."""
    learning_rate: float = 5e-3
    packing: bool = True
    target_modules: int = 7
    resumed: bool = True
    """Whether it is interrupted too; not where only the beginning differs from another case."""
    tolerance: float = 1e-5
    """Largest difference of a logit between what was trained and what is published."""


SMALL = {"rank": 4, "dropout": 0.1}
CASES = {
    "lora": Case({"lora": SMALL}, "LORA", True, 4),
    "loraOptions": Case(
        {
            "lora": SMALL
            | {
                "useRslora": True,
                "init": "gaussian",
                "targetModules": r".*\.layers\.0\..*\.(q|v)_proj",
                "rankPattern": {"v_proj": 8},
                "alphaPattern": {"q_proj": 64},
            }
        },
        "LORA",
        True,
        8,
        target_modules=2,
        resumed=False,
    ),
    "orthogonal": Case(
        {"lora": SMALL | {"init": "orthogonal", "targetModules": []}}, "LORA", True, 4, target_modules=2, resumed=False
    ),
    "pissa": Case({"lora": SMALL | {"init": "pissa"}}, "LORA", True, 8, tolerance=1e-4),
    "olora": Case({"lora": SMALL | {"init": "olora"}}, "LORA", True, 8, tolerance=1e-4),
    "modulesToSave": Case({"lora": SMALL | {"modulesToSave": ["norm"]}}, "LORA", False, 4, resumed=False),
    "qlora": Case({"qlora": SMALL}, "LORA", True, 4, tolerance=2.0),
    "qlora-fp4": Case(
        {"qlora": SMALL | {"quantization": {"type": "fp4"}}}, "LORA", True, 4, tolerance=4.0, resumed=False
    ),
    "qlora-int8": Case({"qlora": SMALL | {"quantization": {"type": "int8"}}}, "LORA", True, 4, tolerance=1.0),
    "loftq": Case({"qlora": SMALL | {"init": "loftq"}}, "LORA", True, 8, tolerance=2.0),
    "dora": Case({"dora": SMALL}, "LORA", False, 4),
    "qdora": Case({"dora": SMALL | {"quantization": {}}}, "LORA", False, 4, tolerance=2.0),
    "adalora": Case({"adalora": {"initRank": 4, "targetRank": 2, "dropout": 0.1}}, "ADALORA", True, learning_rate=0.1),
    "ia3": Case({"ia3": {}}, "IA3", target_modules=3),
    "vera": Case({"vera": {"rank": 16, "dropout": 0.1}}, "VERA", True, 16),
    "loha": Case({"loha": {"rank": 2, "moduleDropout": 0.1}}, "LOHA", True, 4),
    "lokr": Case({"lokr": {"rank": 4, "rankDropout": 0.1}}, "LOKR", True, 16),
    "oft": Case({"oft": {"oftBlockSize": 8}}, "OFT"),
    "miss": Case({"miss": {"rank": 8, "dropout": 0.1}}, "MISS", True, 8),
    "prefix": Case({"prefixTuning": {"numVirtualTokens": 4}}, "PREFIX_TUNING", packing=False, target_modules=0),
    "prefixProjection": Case(
        {"prefixTuning": {"numVirtualTokens": 4, "prefixProjection": True}},
        "PREFIX_TUNING",
        packing=False,
        target_modules=0,
    ),
    "prompt": Case(
        {"promptTuning": {"numVirtualTokens": 4}}, "PROMPT_TUNING", packing=False, target_modules=0, learning_rate=5e-2
    ),
    "promptText": Case(
        {
            "promptTuning": {
                "numVirtualTokens": 4,
                "promptTuningInit": "text",
                "promptTuningInitText": "Count on:",
            }
        },
        "PROMPT_TUNING",
        packing=False,
        target_modules=0,
        learning_rate=5e-2,
        resumed=False,
    ),
    "pTuning": Case({"pTuning": {"numVirtualTokens": 4}}, "P_TUNING", packing=False, target_modules=0),
    "pTuningLstm": Case(
        {"pTuning": {"numVirtualTokens": 4, "encoderReparameterizationType": "LSTM", "encoderDropout": 0.1}},
        "P_TUNING",
        packing=False,
        target_modules=0,
    ),
    "houlsby": Case({"bottleneck": {"dropout": 0.1}}, "BOTTLENECK", target_modules=2),
    "pfeiffer": Case({"bottleneck": {"placement": "pfeiffer"}}, "BOTTLENECK", target_modules=1),
    "full": Case({"full": {}}, "FULL", target_modules=0, learning_rate=1e-3),
    "boft": Case(
        {"peft": {"type": "BOFT", "options": {"boft_block_size": 4, "target_modules": ["q_proj"]}}},
        "BOFT",
        target_modules=1,
    ),
}
VARIANTS = {
    "orthogonal", "olora", "qlora-fp4", "qdora", "prefixProjection", "promptText", "pTuningLstm", "pfeiffer",
}  # fmt: skip
"""Cases that differ from another one in a single option of the same method."""
METHODS = [pytest.param(name, marks=[pytest.mark.exhaustive] if name in VARIANTS else []) for name in CASES]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_resumes_bit_identical(workbench: Callable[[], Workbench], name: str) -> None:
    case = CASES[name]
    spec = {
        "method": case.method,
        "training": PIECES | {"packing": case.packing, "learningRate": case.learning_rate},
        "checkpoint": {"everySteps": 100},
    }
    uninterrupted, resumed_bench = workbench(), workbench()
    result, _ = train(uninterrupted.settings(**spec))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert result.evaluation.loss < result.evaluation.base_loss
    manifest = uninterrupted.manifest()
    assert manifest.trained_peft_type == case.peft_type
    assert manifest.peft_type == ("LORA" if case.served else case.peft_type)
    assert ("vllm" in manifest.servable_by) == case.served
    assert ("sglang" in manifest.servable_by) == case.served
    assert any("vLLM cannot serve" in warning for warning in result.warnings) != case.served
    assert len(manifest.target_modules) == case.target_modules
    if case.rank:
        assert manifest.rank == case.rank
    assert manifest.verification["maxLogitDifference"] < case.tolerance
    assert manifest.verification["meanAdapterEffect"] > 0.001
    directory = uninterrupted.server.buckets / uninterrupted.bucket / "team" / "job" / "adapter"
    if case.served:
        check_adapter(directory, ENGINES["vllm"], 64)
    else:
        with pytest.raises(IncompatibleError):
            check_adapter(directory, ENGINES["vllm"], 64)
    if not case.resumed:
        return
    interrupted = train_until(resumed_bench.settings(**spec), 3)
    assert interrupted.reason == "Preempted", interrupted.message
    result, _ = train(resumed_bench.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 3), result.message
    for file in manifest.files:
        if file.path.endswith(".safetensors"):
            assert uninterrupted.read(f"team/job/adapter/{file.path}") == resumed_bench.read(
                f"team/job/adapter/{file.path}"
            )


@pytest.mark.parametrize("name", ["pissa", "olora", "loftq"])
def test_a_run_continues_on_a_machine_that_decomposes_with_other_last_bits(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = {"method": CASES[name].method, "training": PIECES, "checkpoint": {"everySteps": 100}}
    uninterrupted, bench = workbench(), workbench()
    train(uninterrupted.settings(**spec))
    assert train_until(bench.settings(**spec), 3).reason == "Preempted"
    module, function = (torch.linalg, "qr") if name == "olora" else (torch, "svd_lowrank")
    monkeypatch.setattr(module, function, change_last_bits(getattr(module, function)))
    result, _ = train(bench.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 3), result.message
    weights = "team/job/adapter/adapter_model.safetensors"
    assert uninterrupted.read(weights) == bench.read(weights)


def change_last_bits(decompose: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return a decomposition that differs from another in the last bits, as those of another GPU type do."""
    return lambda *given, **named: tuple(part * (1 + 1e-6) for part in decompose(*given, **named))


def test_damaged_initial_factors_are_computed_again(
    workbench: Callable[[], Workbench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = workbench()
    spec = {"method": CASES["pissa"].method, "training": PIECES, "checkpoint": {"everySteps": 100}}
    assert train_until(bench.settings(**spec), 3).reason == "Preempted"
    directory = bench.server.buckets / bench.bucket / "team" / "job" / "checkpoints" / "initial-factors"
    (file,) = directory.iterdir()
    file.write_bytes(file.read_bytes()[:-4] + b"1234")
    result, _ = train(bench.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 3), result.message
    assert f"{file.name} is damaged" in caplog.text


@pytest.mark.parametrize("name", CASES)
def test_the_preflight_says_what_vllm_will_not_serve(name: str) -> None:
    case = CASES[name]
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://org/model"},
            "dataset": {"uri": "hf://org/data"},
            "method": case.method,
            "output": {"s3": {"bucket": "models"}},
        }
    )
    warned = any("vLLM will not serve the adapter: " in warning for warning in list_serving_warnings(spec, "llama", []))
    assert warned == (not case.served and case.peft_type != "FULL")


def tuned(bench: Workbench, directory: str) -> Any:
    """Return the tiny base with the adapter that is stored in a directory of the job's prefix."""
    base = AutoModelForCausalLM.from_pretrained(bench.mounts / "claims" / "models" / "tiny", dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(bench.server.buckets / bench.bucket / "team" / "job" / directory)).eval()


def logits(model: Any) -> torch.Tensor:
    """Return a model's answer to a few tokens."""
    with torch.no_grad():
        values: torch.Tensor = model(torch.tensor([[3, 7, 20, 41, 8, 9]])).logits[0]
    return values


def test_adalora_takes_ranks_away_and_what_is_kept_beside_is_what_was_trained(bench: Workbench) -> None:
    method = {"adalora": {"initRank": 6, "targetRank": 2, "tinit": 1, "tfinal": 2}}
    training = PIECES | {"maxSteps": 8, "learningRate": 0.1}
    result, _ = train(bench.settings(method=method, training=training))
    assert result.reason == "Succeeded", result.message
    manifest = bench.manifest()
    assert manifest.trained is not None
    assert manifest.trained.uri == f"s3://{bench.bucket}/team/job/trained"
    assert {file.path for file in manifest.trained.files} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(bench.read("team/job/trained/adapter_config.json"))
    ranks = [sum(mask) for mask in config["rank_pattern"].values()]
    assert sum(ranks) == 2 * 14, "the budget of 14 modules"
    assert len(set(ranks)) > 1, "some modules lost more than others"
    assert manifest.rank == max(ranks)
    torch.testing.assert_close(logits(tuned(bench, "trained")), logits(tuned(bench, "adapter")), atol=1e-5, rtol=0)


def test_adalora_survives_an_overflow_whose_step_is_skipped(base_model: Path) -> None:
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(init_r=4, target_r=2, tinit=0, tfinal=2, deltaT=1, total_step=8, target_modules=["q_proj"])
    model = get_peft_model(load_base(base_model, torch.float32), config)
    part, ids = adalora.find_adalora(model), torch.tensor([[5, 6, 7, 8]])
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.1)
    arguments, state = TrainingArguments(), TrainerState()
    Accelerator(cpu=True)  # the optimizer reads its state
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = AcceleratedOptimizer(torch.optim.SGD(trained, lr=0.01), device_placement=False, scaler=scaler)
    overflows = {0, 1, 3, 6, 7}  # the first ones, one in between, the one that fixes the ranks, and one after it
    for step in range(8):
        model.zero_grad()
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        if step in overflows:
            for weight in trained:
                if weight.grad is not None:
                    weight.grad[0, 0] = torch.inf
        optimizer.step()
        state.global_step = step
        adalora.RankAllocationCallback().on_optimizer_step(
            arguments, state, TrainerControl(), model=model, optimizer=optimizer
        )
        for values in (part.rankallocator.exp_avg_ipt, part.rankallocator.exp_avg_unc):
            assert all(value.isfinite().all() for value in values.values()), step
    ranks = [sum(pattern) for pattern in part.peft_config["default"].rank_pattern.values()]
    assert sum(ranks) == 2 * len(ranks), "the ranks are those that were asked for"
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_adaloras_regularisation_is_a_part_of_the_loss_once_a_step(bench: Workbench) -> None:
    def first_loss(weight: float) -> float:
        method = {"adalora": {"initRank": 4, "targetRank": 2, "orthRegWeight": weight}}
        job = bench.job(method=method, training=PIECES | {"maxSteps": 2})
        job["spec"]["output"]["s3"]["prefix"] = f"orthogonality/{weight}"
        result, _ = train(bench.settings_of(job))
        assert result.reason == "Succeeded", result.message
        loss: float = json.loads(bench.read(f"orthogonality/{weight}/adapter/metrics.jsonl").splitlines()[0])["loss"]
        return loss

    # Four vectors of 64 numbers about 0.02 have a Gram matrix near zero: its distance from the identity is almost 2.
    assert first_loss(3.0) - first_loss(1.0) == pytest.approx(2 * 1.95, abs=0.1)


@pytest.mark.parametrize(
    "method",
    [
        {"lora": SMALL},
        {"qlora": SMALL},
        {"dora": SMALL | {"modulesToSave": ["norm"]}},
        {"ia3": {}},
        {"oft": {"oftBlockSize": 8}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_merged_model_answers_as_base_and_adapter(bench: Workbench, method: dict[str, Any]) -> None:
    output = bench.job()["spec"]["output"] | {"mergedModel": True}
    settings = bench.settings(method=method, output=output, training=PIECES | {"maxSteps": 3})
    result, _ = train(settings)
    assert result.reason == "Succeeded", result.message
    outcome = merge_adapter(settings)
    assert outcome.reason == "Succeeded", outcome.message
    manifest = MergedManifest.model_validate_json(bench.read("team/job/merged/manifest.json"))
    assert manifest.verification["meanMergedLogprobDifference"] < 1e-4
    directory = bench.server.buckets / bench.bucket / "team" / "job" / "merged"
    merged = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged), logits(tuned(bench, "adapter")), atol=1e-4, rtol=0)


def test_a_method_that_cannot_be_merged_is_reported(bench: Workbench) -> None:
    method = {"peft": {"type": "LILY", "options": {"target_modules": ["q_proj"], "r": 2}}}
    output = bench.job()["spec"]["output"] | {"mergedModel": True}
    result, _ = train(bench.settings(method=method, output=output, training=PIECES | {"maxSteps": 1}))
    assert result.reason is Reason.SPEC_INVALID
    assert result.message.startswith("spec.output.mergedModel: PEFT cannot merge LILY")
    assert result.progress is None, "before the first step"


@pytest.mark.parametrize("method", [{"vera": {"rank": 16}}, {"bottleneck": {}}], ids=lambda value: next(iter(value)))
def test_training_continues_from_an_adapter(bench: Workbench, method: dict[str, Any]) -> None:
    training = PIECES | {"maxSteps": 4, "scheduler": "constant", "warmupRatio": 0, "learningRate": 5e-3}
    first, _ = train(bench.settings(method=method, training=training))
    assert first.reason == "Succeeded", first.message
    assert first.adapter is not None
    assert first.evaluation is not None
    job = bench.job(method=method, training=training | {"learningRate": 1e-9})
    job["spec"]["output"]["s3"]["prefix"] = "team/second"
    job["spec"]["model"] |= {"adapter": {"uri": first.adapter.uri, "digest": first.adapter.digest}}
    assert check(bench.settings_of(job), patience_seconds=1).problems == []
    second, _ = train(bench.settings_of(job))
    assert second.reason == "Succeeded", second.message
    assert second.evaluation is not None
    assert second.evaluation.loss == pytest.approx(first.evaluation.loss, abs=1e-4), "it begins where the first ended"


def test_an_adapter_that_does_not_fit_is_refused_with_what_does_not(bench: Workbench) -> None:
    first, _ = train(bench.settings(method={"lora": SMALL}, training=PIECES | {"maxSteps": 2}))
    assert first.adapter is not None
    uri = first.adapter.uri

    def message(method: dict[str, Any], **adapter: str) -> str:
        job = bench.job(method=method, training=PIECES | {"maxSteps": 1})
        job["spec"]["output"]["s3"]["prefix"] = "team/second"
        job["spec"]["model"] |= {"adapter": {"uri": uri} | adapter}
        result, _ = train(bench.settings_of(job))
        assert result.reason is Reason.SPEC_INVALID
        assert result.message.startswith("spec.model.adapter")
        return result.message

    lora = {"lora": SMALL}
    assert "the adapter was trained with r 4: set spec.method to the same" in message({"lora": SMALL | {"rank": 8}})
    assert "the adapter was trained with other modules" in message({"lora": SMALL | {"targetModules": ["q_proj"]}})
    assert "is of type LORA, which ia3 cannot continue" in message({"ia3": {}})
    assert "expected sha256:000" in message(lora, digest="sha256:" + "0" * 64)
    path = bench.server.buckets / bench.bucket / "team/job/adapter/manifest.json"
    path.write_text(path.read_text().replace("pvc://models/tiny", "other/model"))
    assert "was trained on the base model other/model" in message(lora)


def write_small_model(directory: Path, name: str) -> None:
    """Write a random model of one layer, of a ``llama`` or a ``gpt2``."""
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 64,
    }
    config = type(transformers.AutoConfig.for_model(name))(
        **{key: value for key, value in sizes.items() if key != "num_key_value_heads" or name == "llama"}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_loftq_begins_nearer_to_the_base_than_its_quantisation_is(
    tmp_path: Path, name: str, kind: str, decomposed: list[int]
) -> None:
    write_small_model(tmp_path, name)
    original = dict(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).named_modules())
    method = Method.model_validate({"qlora": {"rank": 8, "init": "loftq", "quantization": {"type": kind}}})
    base = load_base(tmp_path, torch.float32, make_quantization_config(method, "fp32"))
    model = add_adapter(base, method, BaseInfo(tmp_path, None, 10))
    factors = lora_factors(model)
    assert len(factors) == (7 if name == "llama" else 4)
    for module, (a, b) in factors.items():
        weight: Any = original[module].weight.detach()
        weight = weight.T if name == "gpt2" else weight
        layer = model.get_base_model().get_submodule(module).get_base_layer()
        lost = weight - dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)).float()
        values = torch.linalg.svdvals(lost)
        assert (lost - b @ a).norm() < 1.01 * values[8:].norm(), "nearly the best of this rank"
    assert max(decomposed) <= 16 < 64, "no weight is decomposed in full"


def test_pissa_begins_with_the_largest_directions_without_a_whole_decomposition(
    base_model: Path, decomposed: list[int]
) -> None:
    method = Method.model_validate({"lora": {"rank": 8, "init": "pissa"}})
    original = dict(AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32).named_modules())
    model = add_adapter(load_base(base_model, torch.float32), method, BaseInfo(base_model, None, 10))
    assert max(decomposed) <= 8
    for module, (a, b) in lora_factors(model).items():
        weight: Any = original[module].weight.detach()
        residual = weight - b @ a
        best = torch.linalg.svdvals(weight)[8:].norm()
        assert residual.norm() < 1.01 * best, "nearly the best of this rank"
        assert torch.allclose(model.get_base_model().get_submodule(module).get_base_layer().weight, residual, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_olora_begins_as_pefts_does_and_decomposes_a_few_columns_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_small_model(tmp_path, name)
    widths: list[int] = []
    genuine = torch.linalg.qr

    def qr(matrix: torch.Tensor) -> Any:
        widths.append(matrix.shape[1])
        return genuine(matrix)

    original = dict(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).named_modules())
    monkeypatch.setattr(torch.linalg, "qr", qr)
    method = Method.model_validate({"lora": {"rank": 8, "init": "olora"}})
    model = add_adapter(load_base(tmp_path, torch.float32), method, BaseInfo(tmp_path, None, 10))
    assert set(widths) == {8}
    for module, (a, b) in read_factors(model).items():
        weight: Any = original[module].weight.detach()
        whole_q, whole_r = genuine(weight.T if name == "gpt2" else weight)
        torch.testing.assert_close(b, whole_q[:, :8], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a, whole_r[:8], atol=1e-5, rtol=1e-4)
    ids = torch.tensor([[3, 7, 20]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-3)


def test_a_rank_above_that_of_the_weight_learns_too(tmp_path: Path) -> None:
    write_small_model(tmp_path, "llama")
    for init in ("pissa", "olora"):
        method = Method.model_validate({"lora": {"rank": 96, "init": init, "targetModules": ["q_proj"]}})
        model = add_adapter(load_base(tmp_path, torch.float32), method, BaseInfo(tmp_path, None, 10))
        ((a, b),) = read_factors(model).values()
        assert a[64:].abs().min(dim=1).values.max() > 0, "a row of zeros would never learn"
        assert not b[:, 64:].any()


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the matrices that are decomposed in full: the smaller of both."""
    genuine, sizes = torch.linalg.svd, list[int]()

    def svd(matrix: torch.Tensor, *more: Any, **named: Any) -> Any:
        sizes.append(min(matrix.shape[-2:]))
        return genuine(matrix, *more, **named)

    monkeypatch.setattr(torch.linalg, "svd", svd)
    return sizes


def test_what_an_architecture_cannot_do_is_reported_before_the_training(tmp_path: Path) -> None:
    method = Method.model_validate({"prefixTuning": {}})
    config = transformers.FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    message = "PEFT's prefixTuning does not fit the attention of a model of type 'falcon'"
    with pytest.raises(Failure, match=message) as caught:
        add_adapter(load_base(tmp_path, torch.float32), method, BaseInfo(tmp_path, None, 10))
    assert (caught.value.reason, caught.value.field) == (Reason.MODEL_UNSUPPORTED, "spec.method.prefixTuning")


def test_linear_layers_of_a_class_of_their_own_are_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.FalconConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    torch.manual_seed(1)
    original = AutoModelForCausalLM.from_config(config).eval()
    original.save_pretrained(tmp_path)
    quantization = make_quantization_config(Method.model_validate({"qlora": {"rank": 4}}), "fp32")
    base = load_base(tmp_path, torch.float32, quantization)
    quantized = {name for name, weight in base.named_parameters() if type(weight).__name__ == "Params4bit"}
    layer = "transformer.h.0"
    assert quantized == {
        f"{layer}.self_attention.query_key_value.weight",
        f"{layer}.self_attention.dense.weight",
        f"{layer}.mlp.dense_h_to_4h.weight",
        f"{layer}.mlp.dense_4h_to_h.weight",
    }
    ids = torch.tensor([[3, 5, 7]])
    assert (base(ids).logits - original(ids).logits).abs().max() < 0.15
    assert type(load_base(tmp_path, torch.float32).get_submodule(f"{layer}.mlp.dense_h_to_4h")) is not torch.nn.Linear
    monkeypatch.setattr(quantizable, "LINEAR_CLASSES", {})
    with pytest.raises(Failure, match="bitsandbytes quantizes none of the layers of a model of type 'falcon'"):
        load_base(tmp_path, torch.float32, make_quantization_config(Method.model_validate({"qlora": {}}), "fp32"))


@pytest.mark.parametrize(
    "method",
    [{"bottleneck": {}}, {"pTuning": {"numVirtualTokens": 4}}, {"full": {}}],
    ids=lambda value: next(iter(value)),
)
def test_recomputed_activations_change_nothing(workbench: Callable[[], Workbench], method: dict[str, Any]) -> None:
    stored, recomputed = workbench(), workbench()
    for bench, on in ((stored, "never"), (recomputed, "always")):
        training = PIECES | {"maxSteps": 2, "gradientCheckpointing": on}
        result, _ = train(bench.settings(method=method, training=training))
        assert result.reason == "Succeeded", result.message
    name = "model.safetensors" if "full" in method else "adapter_model.safetensors"
    assert stored.read(f"team/job/adapter/{name}") == recomputed.read(f"team/job/adapter/{name}")


def test_a_method_without_a_rate_of_ones_own_gets_its_default(bench: Workbench) -> None:
    training = {key: value for key, value in PIECES.items() if key not in ("learningRate", "warmupRatio")}
    result, _ = train(bench.settings(method={"vera": {"rank": 8}}, training=training | {"maxSteps": 2}))
    assert result.reason == "Succeeded", result.message
    first = json.loads(bench.read("team/job/adapter/metrics.jsonl").splitlines()[0])
    assert first["learning_rate"] == Vera.default_learning_rate
