"""What vLLM's error answers mean: recorded from 0.32, and the flat shape of older releases."""

import httpx
import pytest

from finetune_api.reasons import Reason
from finetune_engines.vllm.refusals import explain_refusal

LOAD, COMPLETE, UNLOAD = "/v1/load_lora_adapter", "/v1/completions", "/v1/unload_lora_adapter"


def nested(message: str, kind: str, code: int) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def flat(message: str, kind: str, code: int) -> dict[str, object]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


RANK = (
    "Call to add_lora method failed: "
    "Worker failed with error 'LoRA rank 32 is greater than max_lora_rank 16.', please check"
)
CASES = {
    "rank": (LOAD, 500, nested(RANK, "InternalServerError", 500), Reason.RANK_TOO_HIGH, True, False),
    "rank, old shape": (LOAD, 500, flat(RANK, "InternalServerError", 500), Reason.RANK_TOO_HIGH, True, False),
    "DoRA": (
        LOAD,
        500,
        nested("Call to add_lora method failed: vLLM does not yet support DoRA.", "InternalServerError", 500),
        Reason.ADAPTER_UNSUPPORTED,
        True,
        False,
    ),
    "modules": (
        LOAD,
        500,
        nested(
            "While loading /a, expected target modules in {'q_proj'} but received ['foo']. Please verify",
            "InternalServerError",
            500,
        ),
        Reason.ADAPTER_UNSUPPORTED,
        True,
        False,
    ),
    "shape": (
        LOAD,
        500,
        nested("The size of tensor a (576) must match the size of tensor b (64)", "InternalServerError", 500),
        Reason.ADAPTER_UNSUPPORTED,
        True,
        False,
    ),
    "the base's name": (
        LOAD,
        400,
        nested("The lora adapter 'base' conflicts with a served base model.", "InvalidUserInput", 400),
        Reason.SERVED_NAME_TAKEN,
        True,
        False,
    ),
    "no such path": (
        LOAD,
        404,
        nested("Loading lora x failed: No adapter found for <path>", "NotFoundError", 404),
        Reason.ENGINE_REFUSED,
        False,
        False,
    ),
    "no such route": (LOAD, 404, {"detail": "Not Found"}, Reason.LORA_DISABLED, True, False),
    "out of vocabulary": (
        COMPLETE,
        400,
        nested("Token id 60000 is out of vocabulary", "BadRequestError", 400),
        Reason.BASE_MODEL_MISMATCH,
        True,
        False,
    ),
    "unknown 500": (
        LOAD,
        500,
        nested("CUDA out of memory", "InternalServerError", 500),
        Reason.ENGINE_REFUSED,
        False,
        True,
    ),
    "500 without JSON": (LOAD, 500, "Internal Server Error", Reason.ENGINE_REFUSED, False, True),
    "key": (LOAD, 401, {"error": "Unauthorized"}, Reason.ENGINE_REFUSED, False, False),
    "overload": (COMPLETE, 503, nested("busy", "x", 503), Reason.ENGINE_REFUSED, False, False),
    "unload of an unknown name": (
        UNLOAD,
        404,
        nested("The lora adapter 'X' cannot be found.", "NotFoundError", 404),
        Reason.ENGINE_REFUSED,
        False,
        True,
    ),
}


@pytest.mark.parametrize(
    ("path", "status", "body", "reason", "permanent", "unexplained"), CASES.values(), ids=CASES.keys()
)
def test_refusal(path: str, status: int, body: object, reason: Reason, permanent: bool, unexplained: bool) -> None:
    request = httpx.Request("POST", f"http://127.0.0.1:8000{path}")
    answer = httpx.Response(status, request=request, **({"text": body} if isinstance(body, str) else {"json": body}))
    error = explain_refusal(path, answer)
    assert (error.reason, error.permanent, error.unexplained) == (reason, permanent, unexplained)
    assert error.message


def test_a_missing_key_is_reported_with_the_field() -> None:
    answer = httpx.Response(
        401, json={"error": "Unauthorized"}, request=httpx.Request("GET", "http://127.0.0.1/v1/models")
    )
    assert "spec.target.apiKeySecretRef" in explain_refusal("/v1/models", answer).message
