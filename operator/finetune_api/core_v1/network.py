"""Define the names and addresses that a pod knows: DNS and hosts."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.core_v1.lists import MAX_ITEMS, Text

DnsPolicy = Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]
Address = Annotated[str, Field(min_length=2, max_length=45, pattern=r"^[0-9a-fA-F.:]+$")]


class HostAlias(Model):
    """An entry of the pod's hosts file."""

    ip: Address = Field(description="IP address.")
    hostnames: Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="Names of the address."
    )


class DnsOption(Model):
    """An option of the resolver."""

    name: Text = Field(description="Name of the option, for example ndots.")
    value: Text | None = Field(None, description="Value of the option.")


class DnsConfig(Model):
    """What the pod's resolver uses beside dnsPolicy."""

    nameservers: Annotated[list[Address], Field(max_length=3)] | None = Field(
        None, description="Addresses of name servers."
    )
    searches: Annotated[list[Text], Field(max_length=32)] | None = Field(None, description="Domains to search.")
    options: Annotated[list[DnsOption], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Options of the resolver."
    )
