"""The user's own Jinja templates, which make a text, or a prompt and its completion, of a row. Sandboxed: they come from outside."""

from collections.abc import Callable
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune_api.dataset import Template
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure

Row = dict[str, Any]


def make_renderer(template: Template) -> Callable[[Row], Row | str]:
    """Makes of a row one with text, or with prompt and completion; or says, as a text, what is wrong with it.

    Raises Failure(SPEC_INVALID) for a template that is none.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    del environment.filters["random"]  # each attempt at a job must make the same texts of the same rows
    compiled = {}
    for name, text in template.to_json().items():
        try:
            compiled[name] = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise Failure(
                Reason.SPEC_INVALID,
                f"is no Jinja template: {error.message} (line {error.lineno})",
                f"spec.dataset.template.{name}",
            ) from error

    def render(row: Row) -> Row | str:
        made = {key: value for key, value in row.items() if key not in ("text", "prompt", "completion")}
        for name, one in compiled.items():
            try:
                made[name] = one.render(row)
            except UndefinedError as error:
                columns = ", ".join(list(row)[:20]) or "none"
                return f"template.{name} needs what the row lacks: {error.message}; found columns: {columns}"
            except SecurityError as error:
                return f"template.{name} does what a template may not: {error}"
            except Exception as error:  # noqa: BLE001 -- a template is a program of the user's
                return f"template.{name} fails: {type(error).__name__}: {error}"
        return made

    return render
