"""Render rows with the user's Jinja templates, in a sandbox because the templates are not trusted."""

from collections.abc import Callable
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune_api.dataset import Template
from finetune_api.reasons import Reason
from finetune_trainer.data.values import Row, is_null
from finetune_trainer.runtime.failures import Failure


class _NullError(Exception):
    """A template prints a null."""


def _refuse_null(value: Any) -> Any:
    if is_null(value):
        raise _NullError
    return value


def make_renderer(template: Template) -> Callable[[Row], Row | str]:
    """Return a function that renders a row as text, or as prompt and completion.

    The function returns a text instead of a row if the template fails: the problem, for the user.

    Raises:
        Failure: SPEC_INVALID if a template has a syntax error.
    """
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_refuse_null
    )
    del environment.filters["random"]  # each attempt at a job must render the same texts from the same rows
    compiled = {}
    for name, text in template.to_json().items():
        try:
            compiled[name] = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise Failure(
                Reason.SPEC_INVALID,
                f"is not a Jinja template: {error.message} (line {error.lineno})",
                f"spec.dataset.template.{name}",
            ) from error

    def render(row: Row) -> Row | str:
        rendered = {key: value for key, value in row.items() if key not in ("text", "prompt", "completion")}
        for name, template in compiled.items():
            try:
                rendered[name] = template.render(row)
            except UndefinedError as error:
                columns = ", ".join(list(row)[:20]) or "none"
                return f"template.{name} uses a value that the row lacks: {error.message}; found columns: {columns}"
            except _NullError:
                nulls = ", ".join(key for key, value in row.items() if is_null(value))
                return (
                    f"template.{name} would write a null as text; columns with null: "
                    f"{nulls or 'none, but within one'}. Write {{{{ column or '' }}}} for an optional value, or "
                    "remove such rows"
                )
            except SecurityError as error:
                return f"template.{name} does something that templates may not do: {error}"
            except Exception as error:  # noqa: BLE001 -- a template is a program of the user's
                return f"template.{name} fails: {type(error).__name__}: {error}"
        return rendered

    return render
