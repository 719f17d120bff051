"""Define the environment variables of a container, from values, ConfigMaps, Secrets and the pod itself."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.core_v1.lists import LongText, Name, Text, check_choice, exactly_one

RESERVED_PREFIX = "FINETUNE_"
KeyName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
VariableName = Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class KeySelector(Model):
    """A key of a ConfigMap or Secret in the job's namespace."""

    name: Name = Field(description="Name of the ConfigMap or Secret.")
    key: KeyName = Field(description="Key in it.")
    optional: bool | None = Field(None, description="Whether the pod may start without the object or the key.")


class ObjectFieldSelector(Model):
    """A field of the pod."""

    field_path: Text = Field(description="Path of the field, for example status.podIP.")
    api_version: Text | None = Field(None, description="Version of the schema of the path: v1.")


class ResourceFieldSelector(Model):
    """A resource of the container."""

    resource: Text = Field(description="Resource, for example limits.memory.")
    container_name: Text | None = Field(None, description="Name of the container. Unset in env: this container.")
    divisor: int | Text | None = Field(None, description="Unit of the value, for example 1Mi.")


class EnvVarSource(Model):
    """The source of a variable's value: exactly one of its fields."""

    config_map_key_ref: KeySelector | None = Field(None, description="Key of a ConfigMap.")
    secret_key_ref: KeySelector | None = Field(None, description="Key of a Secret.")
    field_ref: ObjectFieldSelector | None = Field(None, description="Field of the pod.")
    resource_field_ref: ResourceFieldSelector | None = Field(None, description="Resource of the container.")

    cel_rules: ClassVar[list[dict[str, str]]] = [
        exactly_one("configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef")
    ]

    @model_validator(mode="after")
    def _check_choice(self) -> "EnvVarSource":
        check_choice(self, self.cel_rules[0])
        return self


RESERVED_VARIABLE = "names that begin with FINETUNE_ belong to the operator: choose another name"
ONE_VALUE = "value and valueFrom are both set: remove one of them"


class EnvVar(Model):
    """An environment variable."""

    name: VariableName = Field(description="Name of the variable.")
    value: LongText | None = Field(None, description="Value of the variable. Unset without valueFrom: empty.")
    value_from: EnvVarSource | None = Field(None, description="Where the value comes from, in place of value.")

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": f"!self.name.startsWith('{RESERVED_PREFIX}')", "message": RESERVED_VARIABLE, "fieldPath": ".name"},
        {"rule": "!has(self.valueFrom) || !has(self.value) || self.value == ''", "message": ONE_VALUE},
    ]

    @model_validator(mode="after")
    def _check(self) -> "EnvVar":
        if self.name.startswith(RESERVED_PREFIX):
            raise ValueError(RESERVED_VARIABLE)
        if self.value and self.value_from is not None:
            raise ValueError(ONE_VALUE)
        return self


class EnvSourceRef(Model):
    """A ConfigMap or Secret in the job's namespace."""

    name: Name = Field(description="Name of the ConfigMap or Secret.")
    optional: bool | None = Field(None, description="Whether the pod may start without it.")


class EnvFromSource(Model):
    """All keys of a ConfigMap or Secret as variables."""

    prefix: Annotated[str, Field(max_length=253)] | None = Field(None, description="Prefix of the variables' names.")
    config_map_ref: EnvSourceRef | None = Field(None, description="ConfigMap. Either this or secretRef.")
    secret_ref: EnvSourceRef | None = Field(None, description="Secret. Either this or configMapRef.")

    cel_rules: ClassVar[list[dict[str, str]]] = [exactly_one("configMapRef", "secretRef")]

    @model_validator(mode="after")
    def _check_choice(self) -> "EnvFromSource":
        if (self.config_map_ref is None) == (self.secret_ref is None):
            raise ValueError(self.cel_rules[0]["message"])
        return self
