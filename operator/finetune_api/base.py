"""Define the base class of every model: frozen, camelCase in YAML and JSON, strict about unknown fields."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DnsLabel = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Model(BaseModel):
    """A value that is read from, or written to, YAML and JSON with camelCase names.

    ``cel_rules`` are the cross-field rules of the class as Kubernetes CEL validations. A pydantic validator checks the
    same for files that never meet an API server (``finetune validate``, ``finetune run``).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        defer_build=True,  # a process pays only for the models that it uses: the agent needs few of them
    )
    cel_rules: ClassVar[list[dict[str, str]]] = []

    def to_json(self) -> dict[str, Any]:
        """Return the camelCase JSON form, without the fields that are unset (None)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Lenient(Model):
    """A message from another process, perhaps of a newer version: unknown fields are ignored instead of refused."""

    model_config = ConfigDict(extra="ignore")


class NameRef(Model):
    """The name of another object in the same namespace."""

    name: DnsLabel = Field(description="Name, in the same namespace.")


class SecretRef(Model):
    """The name of a Secret in the namespace of the object that refers to it."""

    name: DnsLabel = Field(description="Name of the Secret, in the same namespace.")


class S3Location(Model):
    """An S3 service that is not AWS's default one."""

    endpoint: str | None = Field(
        None,
        description="URL of the S3 service, for example https://minio.example.com:9000. Unset: AWS.",
        pattern=r"^https?://",
    )
    region: str | None = Field(None, description="Region of the bucket.")


S3_DESCRIPTION = "S3 service of the URI, if it is not that of spec.output.s3."
