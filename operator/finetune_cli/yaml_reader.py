"""Read YAML as kubectl and the API server do, and remember the line of each field.

Both use Go's yaml.v2: ``yes`` and ``on`` are true, ``1e-4`` is a number, ``010`` is 8. PyYAML reads these in other ways
and takes the last of two equal keys, so only its parser is used.
"""

import base64
import binascii
import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_DEPTH = 100
"""Levels of a document. An object of Kubernetes has about 20."""
MAX_NODES = 100_000
"""Nodes of a document after its aliases are replaced. A file that has more is an attack, or a mistake."""
BOOLEANS = {
    **{word: True for name in ("y", "yes", "true", "on") for word in (name, name.capitalize(), name.upper())},
    **{word: False for name in ("n", "no", "false", "off") for word in (name, name.capitalize(), name.upper())},
}
NULLS = ("", "~", "null", "Null", "NULL")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
TAGGED = {"int": (int,), "float": (float, int), "bool": (bool,), "null": (type(None),)}
"""Types of the values that a tag allows."""
TAG = "tag:yaml.org,2002:"
MAX_TABS = 20
"""Tabs that are replaced one by one, which leaves those within texts. After these all are."""
MAX_DIGITS = 1000
"""Digits of an integer that are read. None that is valid has more than 19."""
TOO_DEEP = f"the document is nested more than {MAX_DEPTH} levels deep: check its brackets and indentation"
JSON_TOKEN = re.compile(r'[\[\]{},]|(?P<key>"(?:[^"\\]|\\.)*")\s*:|"(?:[^"\\]|\\.)*"')
"""What decides the path of a field: brackets, commas and names. Texts are matched so that nothing in them is."""
PLAIN = ""
"""Tag of a scalar that has no quotes and no tag."""


@dataclass
class Document:
    """One document of a file."""

    line: int
    """Line on which it begins, from 1."""
    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each field, by its path, for example ``spec.env[0].name``."""
    written: dict[str, str] = field(default_factory=dict)
    """Text of each number and boolean as it is written in the file, by its path."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """What is wrong with the YAML: path and message."""

    def line_of(self, path: str) -> int:
        """Return the line of a field, or of the nearest one around it that exists."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)


REMEDIES = {
    "mapping values are not allowed": "found a second colon, or a line that is indented too far: put a value with ': ' "
    "into quotes, or align the field with its neighbours",
    "undefined alias": "found a value that begins with *, which is an alias in YAML: put it into quotes",
    "scanning an alias": "found a value that begins with *, which is an alias in YAML: put it into quotes",
    "cannot start any token": "found a value that begins with a special character: put it into quotes",
    "quoted scalar": "a quote is not closed, or is closed too early: close it, and double it within the text",
    "expected <block end>": "the indentation does not fit: align the field with its neighbours",
    "could not find expected ':'": "a colon is missing on this line or the one before: write field: value",
    "expected the node content": "a bracket is not closed, or a value is missing: close it",
    "expected ',' or": "a bracket is not closed, or a comma is missing: close it",
}
"""What to do about an error, by words of PyYAML's message."""


HELM = re.compile(r"\{\{-?\s*(-|[.$]\w|(if|range|with|include|template|toYaml|quote|default)\s|end\b)")
NO_BREAK_SPACE = "\u00a0"
NO_BREAK_SPACE_FOUND = "the line has a non-breaking space (U+00A0): write an ordinary space in its place"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser, which leaves the type of a plain scalar to ``resolve``."""

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        return PLAIN if kind is ScalarNode and implicit[0] else str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


class NotYamlError(Exception):
    """The text is not YAML. The message says why, and what to do."""

    def __init__(self, line: int, message: str) -> None:
        """Keep the line, from 1."""
        super().__init__(message)
        self.line = line


def read_yaml(content: bytes, *, json_only: bool = False) -> Iterator[Document]:
    """Yield the documents of a file, without empty ones. Raises NotYamlError.

    Args:
        content: The file.
        json_only: Whether a document that begins with ``{`` must be JSON, as in a file that ends with .json.
    """
    text = _decode(content)
    try:
        if text.lstrip().startswith("{"):
            try:
                yield _read_json(text)
                return
            except json.JSONDecodeError as error:
                if json_only and error.msg != "Extra data":  # else it is a flow mapping of YAML
                    raise _not_json(error, text) from error
            except _NotFiniteError:
                pass
        for node in _compose(text):
            document = _build(node)
            if document.value is not None or document.problems:
                yield document
    except RecursionError as error:
        raise NotYamlError(1, TOO_DEEP) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"found the character U+{error.character:04X}, which YAML cannot hold: remove it"
        raise NotYamlError(line, message) from error
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, text.splitlines()) from error


def _decode(content: bytes) -> str:
    """Return the text of a file, without byte-order marks at the start of its documents. Raises NotYamlError."""
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return re.sub(r"^\ufeff", "", content.decode(encoding), flags=re.MULTILINE)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{content[error.start]:02X}, which is not UTF-8"
        raise NotYamlError(line, f"found {found}: save the file as UTF-8") from error


def _compose(text: str) -> list[Node]:
    """Return the documents of a text. A tab at the end of a line or before a comment is a space, as in Go's parser."""
    for _ in range(MAX_TABS):
        try:
            return list(yaml.compose_all(text, _Loader))
        except yaml.MarkedYAMLError as error:
            index = error.problem_mark.index if error.problem_mark else len(text)
            before = text[text.rfind("\n", 0, index) + 1 : index]
            tabs = re.compile(r"\t[\t ]*(?=[\r\n#]|$)").match(text, index)
            if not tabs or not before.strip():
                raise
            text = text[:index] + " " * len(tabs[0]) + text[tabs.end() :]
    return list(yaml.compose_all(re.sub(r"(?<=\S)\t[\t ]*(?=\r?$|#)", " ", text, flags=re.MULTILINE), _Loader))


def _not_json(error: json.JSONDecodeError, text: str) -> NotYamlError:
    """Return the error that says where and why a text is not JSON, and what to do."""
    before = text[: error.pos].rstrip()
    if error.msg.startswith("Illegal trailing comma") or (
        before.endswith(",") and text[error.pos : error.pos + 1] in "}]"
    ):
        return NotYamlError(before.count("\n") + 1, "JSON has no comma before } or ]: remove it")
    return NotYamlError(error.lineno, f"is not JSON: {error.msg} (column {error.colno})")


def _not_yaml(error: yaml.MarkedYAMLError, lines: list[str]) -> NotYamlError:
    """Return the error that says where and why a text is not YAML, and what to do."""
    message = f"{error.context or ''} {error.problem or ''}".strip()
    for number, line in enumerate(lines, 1):
        if line.startswith("<<<<<<< "):
            return NotYamlError(number, "a merge conflict is left over: resolve it")
        if line.lstrip().startswith(("{{", "{%")) or HELM.search(line):
            kind = "Helm template" if "{{" in line else "template"
            return NotYamlError(number, f"the file is a {kind}: render it first, for example with `helm template`")
    mark = (error.context_mark if "quoted scalar" in message else None) or error.problem_mark or error.context_mark
    number = mark.line + 1 if mark else 1
    for near in (number, number - 1):
        if 0 < near <= len(lines) and NO_BREAK_SPACE in lines[near - 1]:
            return NotYamlError(near, NO_BREAK_SPACE_FOUND)
    return NotYamlError(number, _explain(message, lines[number - 1] if number <= len(lines) else ""))


def _explain(message: str, line: str) -> str:
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in message:
        return "the line is indented with a tab: use spaces"
    return next(
        (f"{remedy} ({message})" for words, remedy in REMEDIES.items() if words in message), f"is not YAML: {message}"
    )


class _NotFiniteError(ValueError):
    """The text has NaN or Infinity, which JSON does not."""


def _read_json(text: str) -> Document:
    """Read one object of JSON. Raises ValueError, NotYamlError."""
    document = Document(text[: len(text) - len(text.lstrip())].count("\n") + 1)

    def refuse(constant: str) -> Any:
        raise _NotFiniteError(constant)

    document.value = json.loads(text, parse_constant=refuse, parse_int=_integer)
    _find_lines_of_json(text, document)
    return document


def _find_lines_of_json(text: str, document: Document) -> None:
    """Record the line of each field of a valid JSON text, and fields that are given twice. Raises NotYamlError."""
    lines = document.lines
    parts: list[str | int] = []
    names: list[dict[str, int]] = []
    """Line of each field of the objects around the token."""
    line, end = 1, 0
    for token in JSON_TOKEN.finditer(text):
        line += text.count("\n", end, token.start())
        end = token.start()
        match token[0][0]:
            case "{":
                parts.append("")
                names.append({})
            case "[":
                parts.append(0)
                lines[_json_path(parts)] = line + text.count("\n", end, _next_value(text, token.end()))
            case "}" | "]":
                parts.pop()
                if token[0] == "}":
                    names.pop()
            case ",":
                if isinstance(parts[-1], int):
                    parts[-1] += 1
                    lines[_json_path(parts)] = line + text.count("\n", end, _next_value(text, token.end()))
            case _ if token["key"]:
                parts[-1] = name = json.loads(token["key"])
                lines[_json_path(parts)] = line
                if name in names[-1]:
                    message = f"is given twice, first in line {names[-1][name]}: remove one"
                    document.problems.append((_json_path(parts), message))
                names[-1][name] = line
        if len(parts) > MAX_DEPTH:
            raise NotYamlError(line, TOO_DEEP)


def _json_path(parts: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _next_value(text: str, position: int) -> int:
    """Return the position of the first character that is not white space."""
    match = re.compile(r"\s*").match(text, position)
    return match.end() if match else position


def _integer(digits: str) -> int:
    """Return an integer; of one that is absurdly long only the size."""
    return int(digits) if len(digits) <= MAX_DIGITS else int(digits[:MAX_DIGITS])


def _build(node: Node) -> Document:
    document = Document(node.start_mark.line + 1)
    document.value = _Builder(document).value(node, "", ())
    return document


class _Builder:
    """Converts nodes to values, and records the lines and problems of a document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0

    def value(self, node: Node, path: str, parents: tuple[Node, ...]) -> Any:
        self._nodes += 1
        if len(parents) > MAX_DEPTH:
            raise NotYamlError(node.start_mark.line + 1, TOO_DEEP)
        if node in parents:
            raise NotYamlError(node.start_mark.line + 1, "an anchor contains itself: remove the alias")
        if self._nodes > MAX_NODES:
            raise NotYamlError(node.start_mark.line + 1, f"the document has more than {MAX_NODES} values: split it")
        if isinstance(node, MappingNode):
            return self._mapping(node, path, (*parents, node))
        if isinstance(node, SequenceNode):
            return [self._item(item, f"{path}[{index}]", (*parents, node)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)  # noqa: S101 -- YAML has three kinds of nodes
        return self._scalar(node, path)

    def _item(self, node: Node, path: str, parents: tuple[Node, ...]) -> Any:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        return self.value(node, path, parents)

    def _mapping(self, node: MappingNode, path: str, parents: tuple[Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if _is_merge(key_node):
                result |= self._merged(value_node, path, parents)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            inner = f"{path}.{key}" if path else key
            if NO_BREAK_SPACE in key:
                self._problem(inner, NO_BREAK_SPACE_FOUND, line)
            if key in first:
                self._problem(inner, f"is given twice, first in line {first[key]}: remove one", line)
            first[key] = line
            self._document.lines[inner] = line
            result[key] = self.value(value_node, inner, parents)
        return result

    def _merged(self, node: Node, path: str, parents: tuple[Node, ...]) -> dict[str, Any]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        result: dict[str, Any] = {}
        for source in reversed(sources):
            if isinstance(source, MappingNode):
                result |= self._mapping(source, path, (*parents, source))
            else:
                self._problem(path, "<< takes a mapping or a list of mappings: name an anchor of one", None)
        return result

    def _key(self, node: Node, path: str) -> str | None:
        """Return a key as JSON has it; None, with a problem, for a key that JSON cannot have."""
        line = node.start_mark.line + 1
        if not isinstance(node, ScalarNode):
            message = "a template's placeholder {{ … }} is left over: render the template, or put the value into quotes"
            self._problem(path, message, line)
            return None
        value = self._typed(node, path)
        if value is None:
            self._problem(path, "a field has no name: write one before the colon", line)
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"{value:g}" if math.isfinite(value) else str(value).replace("inf", ".inf").replace("nan", ".nan")
        return str(value)

    def _scalar(self, node: ScalarNode, path: str) -> Any:
        """Return the value of a scalar as JSON has it."""
        value = self._typed(node, path)
        if node.tag == PLAIN and value is not None and not isinstance(value, str):
            self._document.written[path] = node.value
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(path, f"found {node.value}, which JSON cannot hold: write a finite number", None)
            return None
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value

    def _typed(self, node: ScalarNode, path: str) -> Any:
        """Return the value of a scalar by its tag, and without a tag by its text."""
        tag = node.tag.removeprefix(TAG)
        if node.tag == PLAIN:
            return resolve(node.value)
        if tag == "binary":
            return self._binary(node.value, path)
        if tag not in TAGGED:
            return node.value
        value = resolve(node.value)
        if type(value) not in TAGGED[tag]:
            self._problem(path, f"{node.value!r} does not fit its tag !!{tag}: remove the tag", None)
        return value

    def _binary(self, text: str, path: str) -> str:
        try:
            return base64.b64decode(text).decode()
        except (binascii.Error, UnicodeDecodeError):
            self._problem(path, "!!binary does not contain a text in base64: write the text itself", None)
            return ""

    def _problem(self, path: str, message: str, line: int | None) -> None:
        if line is not None:
            self._document.lines[path] = line
        self._document.problems.append((path, message))


def resolve(text: str) -> Any:
    """Return the value of a plain scalar, as Go's yaml.v2 has it."""
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if SPECIAL.fullmatch(text):
        return float(text.lower().replace(".", ""))
    if text[0] not in "+-.0123456789":
        return text
    digits_only = text if text[0] == "." else text.replace("_", "")
    if match := INTEGER.fullmatch(digits_only):
        sign, hexadecimal, binary, octal, decimal = match.groups()
        digits, base = next(
            (digits, base)
            for digits, base in ((hexadecimal, 16), (binary, 2), (octal, 8), (decimal, 10))
            if digits is not None
        )
        return -int(digits[:MAX_DIGITS], base) if sign == "-" else int(digits[:MAX_DIGITS], base)
    if FLOAT.fullmatch(digits_only) and math.isfinite(float(digits_only)):
        return float(digits_only)
    return text


def _is_merge(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == PLAIN and node.value == "<<"
