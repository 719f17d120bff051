"""Convert tools and tool calls to the form of OpenAI's API, with arguments as objects."""

from typing import Any

from finetune_trainer.data.values import (
    Message,
    RowError,
    describe_type,
    drop_nulls,
    first_error,
    is_blank,
    parse_stored,
    quote_value,
)

Call = dict[str, Any]
NULLS = ("null", "none")
"""Texts that stand for no tools."""


def read_tools(value: Any, name: str) -> list[Any] | RowError:
    """Return the tools of a column, which may be JSON or legacy functions; an empty list if there are none.

    Keys that are null at any depth are left out: parquet adds to each tool the parameters of all others.
    """
    if isinstance(value, str) and value.strip().lower() in NULLS:
        return []
    stored = parse_stored(drop_nulls(value), f"column {name!r}")
    if isinstance(stored, RowError):
        return stored
    if is_blank(stored):
        return []
    if not isinstance(stored, list | dict):
        return RowError(f"column {name!r} must be a list of tools, found {describe_type(stored)}")
    items = [stored] if isinstance(stored, dict) else stored
    tools = [parse_stored(tool, f"tool {number} in column {name!r}") for number, tool in enumerate(items, start=1)]
    if problem := first_error(*tools):
        return problem
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict):
            return RowError(f"tool {number} in column {name!r} must be an object, found {describe_type(tool)}")
        if {"name", "function", "type"}.isdisjoint(tool):
            return RowError(f"tool {number} in column {name!r} must have a name, found {quote_value(tool)}")
    return [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool and "type" not in tool
        else tool
        for tool in tools
    ]


def read_calls(message: Message, location: str) -> list[Call] | RowError:
    """Return the tool calls of a message, including a legacy ``function_call``."""
    legacy = message.get("function_call")
    calls = parse_stored(
        message.get("tool_calls") or ([] if is_blank(legacy) else [legacy]), f"tool_calls of {location}"
    )
    return calls if isinstance(calls, RowError) else normalize_calls(calls, location)


def normalize_calls(stored: Any, location: str) -> list[Call] | RowError:
    """Convert each tool call to the form ``{"type": "function", "function": {"name", "arguments"}}``."""
    if not isinstance(stored, list):
        return RowError(f"tool_calls of {location} must be a list, found {describe_type(stored)}")
    calls = []
    for number, item in enumerate(stored, start=1):
        call = parse_stored(item, f"tool call {number} of {location}")
        function = call.get("function", call) if isinstance(call, dict) else call
        if isinstance(function, RowError):
            return function
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return RowError(f"tool call {number} of {location} must have the text name, found {quote_value(item)}")
        arguments = _read_arguments(function, f"tool call {number} ({function['name']}) of {location}")
        if isinstance(arguments, RowError):
            return arguments
        calls.append(
            {
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
                **({"id": call["id"]} if "id" in call else {}),
            }
        )
    return calls


def _read_arguments(function: dict[str, Any], location: str) -> dict[str, Any] | RowError:
    """Return the arguments as an object; ``parameters`` is Llama's word for them."""
    stored = function.get("arguments", function.get("parameters", {}))
    arguments = {} if is_blank(stored) else parse_stored(stored, f"arguments of {location}")
    if isinstance(arguments, dict | RowError):
        return arguments
    return RowError(f"arguments of {location} must be an object or its JSON, found {quote_value(stored)}")
