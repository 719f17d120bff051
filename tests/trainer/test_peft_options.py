"""Options of spec.method.peft that PEFT refuses or that train nothing are found before a GPU is asked for."""

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.methods import Method
from finetune_api.reasons import Reason
from tests.trainer.test_loaded_modules import check

Q = {"target_modules": ["q_proj"]}
SPEC, MODEL, TARGETS = Reason.SPEC_INVALID, Reason.MODEL_UNSUPPORTED, Reason.TARGET_MODULES_NOT_FOUND


def peft(kind: str, **options: Any) -> dict[str, Any]:
    return {"peft": {"type": kind, "options": options}}


@pytest.mark.parametrize(
    ("method", "option", "reason", "message"),
    [
        (peft("LORA", target_modules=["q_projj"]), "target_modules", TARGETS, "no module named q_projj"),
        (peft("LORA", target_modules=r".*\.q"), "target_modules", TARGETS, "matches the full name of no module"),
        (peft("LORA", target_modules=r".*\.(q"), "target_modules", TARGETS, "is no regular expression"),
        (peft("LORA", target_modules=["lm_head", "q_proj"]), "target_modules", MODEL, "lm_head is the output head"),
        (peft("LORA", **Q, modules_to_save=["lm_heads"]), "modules_to_save", TARGETS, "no module named lm_heads"),
        (peft("LORA", **Q, modules_to_save=["norm"]), "modules_to_save", TARGETS, "for example model.norm"),
        (peft("LORA", target_parameters=["experts.w1"]), "target_parameters", TARGETS, "no parameter named experts.w1"),
        (peft("LORA", **Q, init_lora_weights="pissa_niter_4"), "init_lora_weights", SPEC, "use spec.method.lora.init"),
        (peft("LORA", **Q, init_lora_weights="loftq"), "init_lora_weights", SPEC, "use spec.method.qlora.init"),
        (peft("LORA", **Q, init_lora_weights="eva"), "init_lora_weights", SPEC, "needs a pass over the data"),
        (peft("LORA", **Q, alora_invocation_tokens=[3]), "alora_invocation_tokens", SPEC, "is not supported"),
        (peft("LORA", **Q, layers_to_transform=[5]), "layers_to_transform", MODEL, "0 to 1"),
        (peft("LORA", **Q, trainable_token_indices=[999]), "trainable_token_indices", MODEL, "0 to 63"),
        (peft("LORA", **Q, r="four"), "r", SPEC, "a positive whole number, found 'four'"),
        (peft("LORA", **Q, r=-1), "r", SPEC, "a positive whole number, found -1"),
        (peft("LORA", **Q, lora_dropout="some"), "lora_dropout", SPEC, "a number, found 'some'"),
        (peft("LORA", target_modules=5), "target_modules", SPEC, "a string or a list of names, found 5"),
        (peft("LORA", target_parameters="experts"), "target_parameters", SPEC, "a list of names, found 'experts'"),
        (peft("ADALORA", **Q), "total_step", SPEC, "or use spec.method.adalora"),
        (peft("PROMPT_TUNING"), "num_virtual_tokens", SPEC, "set it to the number of learned tokens"),
        (peft("TRAINABLE_TOKENS"), "token_indices", SPEC, "set it to a list of the ids"),
        (peft("TRAINABLE_TOKENS", token_indices=[999]), "token_indices", MODEL, "0 to 63"),
        (peft("C3A", **Q), "block_size", MODEL, "256 does not divide the 32 input features of model.layers.0."),
        (peft("C3A"), "block_size", MODEL, "256 does not divide the 32 input features of model.layers.0."),
        (peft("VBLORA", **Q), "vector_length", MODEL, "256 does not divide the 32 input features"),
        (peft("ROAD", **Q), "group_size", MODEL, "64 does not divide the 32 output features"),
        (peft("BOFT", **Q, boft_block_size=7), "boft_block_size", MODEL, "7 does not divide the 32 input features"),
        (peft("MISS", **Q), "r", MODEL, "64 is more than 32, the input features of model.layers.0.self_attn.q_proj"),
        (peft("FOURIERFT", **Q, n_frequency=2000), "n_frequency", MODEL, "2000 is more than 1024"),
    ],
    ids=lambda value: next(iter(value.values()))["type"] if isinstance(value, dict) else None,
)
def test_an_option_with_a_wrong_value(method: dict[str, Any], option: str, reason: Reason, message: str) -> None:
    (found,) = check("llama", method).problems
    assert found.field == f"spec.method.peft.options.{option}"
    assert found.reason == reason
    assert message in found.message


@pytest.mark.parametrize("option", ["use_dora", "lora_dropout"])
def test_experts_are_adapted_without_dora_and_dropout_only(option: str) -> None:
    method = peft("LORA", target_modules=["q_proj", "w1", "w2", "w3"], **{option: 0.5 if "dropout" in option else True})
    (found,) = check("mixtral", method).problems
    assert found.field == f"spec.method.peft.options.{option}"


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("llama", peft("LORA", target_modules="all-linear", init_lora_weights="gaussian", r=4)),
        ("llama", peft("LORA", target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])),
        ("llama", peft("LORA")),
        ("llama", peft("LN_TUNING", target_modules=["input_layernorm"])),
        ("llama", peft("TRAINABLE_TOKENS", token_indices=[5, 6])),
        ("llama", peft("OFT", **Q, r=0, oft_block_size=4)),
        ("llama", peft("BOFT", **Q, boft_block_size=0, boft_block_num=2)),
        ("llama", peft("ADALORA", **Q, total_step=100)),
        ("llama", peft("P_TUNING", num_virtual_tokens=8)),
        ("mixtral", peft("LORA", target_parameters=["mlp.experts.down_proj"])),
        ("mixtral", peft("LORA", target_modules=["q_proj", "w1", "w2", "w3"])),
    ],
)
def test_options_that_train_pass(model_type: str, method: dict[str, Any]) -> None:
    assert not check(model_type, method).problems


def test_a_type_whose_loss_needs_logits_is_refused() -> None:
    with pytest.raises(ValidationError, match="CPT cannot be trained here, because its loss needs the logits"):
        Method.model_validate(peft("CPT", num_virtual_tokens=4))


def test_a_rank_that_a_layer_does_not_have_room_for() -> None:
    (found,) = check("llama", {"miss": {"rank": 64}}).problems
    assert found.field == "spec.method.miss.rank"
    assert "64 is more than the 32 input features of model.layers.0." in found.message


@pytest.mark.parametrize(
    ("steps", "block", "fits"), [(1, {}, False), (2, {}, True), (8, {"tinit": 6}, False), (None, {"tinit": 6}, True)]
)
def test_a_schedule_of_adalora_needs_steps(steps: int | None, block: dict[str, Any], fits: bool) -> None:
    found = check("llama", {"adalora": block}, {"maxSteps": steps} if steps else {}).problems
    assert [problem.field for problem in found] == ([] if fits else ["spec.method.adalora.tinit"])
