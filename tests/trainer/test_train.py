"""A whole training: from rows to a verified adapter in S3."""

from tests.trainer.jobs import Workbench, train


def test_a_lora_goes_from_rows_to_a_verified_adapter(bench: Workbench) -> None:
    result, _ = train(bench.settings())
    assert result.reason == "Succeeded", result.message
