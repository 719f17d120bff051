"""The kinds of address."""

import re

import pytest

from finetune_api.uris import ConfigMapUri, FileUri, HfUri, PvcUri, S3Uri, Uri, parse_s3_uri, parse_uri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("hf://HuggingFaceTB/SmolLM2-135M", HfUri("HuggingFaceTB/SmolLM2-135M")),
        ("hf://gpt2", HfUri("gpt2")),
        ("s3://bucket/a/b.jsonl", S3Uri("bucket", "a/b.jsonl")),
        ("s3://bucket/a/", S3Uri("bucket", "a")),
        ("s3://bucket", S3Uri("bucket", "")),
        ("pvc://models/smollm", PvcUri("models", "smollm")),
        ("configmap://texts/hamlet.txt", ConfigMapUri("texts", "hamlet.txt")),
        ("file:///data/rows.jsonl", FileUri("/data/rows.jsonl")),
        ("file://rows.jsonl", FileUri("rows.jsonl")),
    ],
)
def test_an_address_has_its_parts(text: str, uri: Uri) -> None:
    assert parse_uri(text) == uri


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bucket/key",
            "is not an address: write hf://org/name, s3://bucket/key, pvc://claim/path or configmap://name/key, "
            "for `finetune run` also file:///path",
        ),
        ("s3://", "is not an address"),
        ("gs://bucket/key", "has the unknown scheme 'gs': use hf, s3, pvc or configmap"),
        ("configmap://texts", "must have the form configmap://name/key"),
        ("configmap://texts/a/b", "must have the form configmap://name/key"),
    ],
)
def test_what_is_no_address_is_refused_with_the_forms_that_are(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_uri(text)


def test_only_s3_is_taken_where_only_s3_can_be() -> None:
    assert parse_s3_uri("s3://bucket/key") == S3Uri("bucket", "key")
    with pytest.raises(ValueError, match="must have the form s3://bucket/key"):
        parse_s3_uri("hf://org/name")


def test_an_address_below_another() -> None:
    assert str(S3Uri("bucket", "a").child("b")) == "s3://bucket/a/b"
    assert str(S3Uri("bucket", "").child("b")) == "s3://bucket/b"
    assert str(S3Uri("bucket", "")) == "s3://bucket"
