"""Text files of kits and of the proxy, rendered from the templates in server/templates."""

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


def render(template: str, words: Mapping[str, object]) -> str:
    """Return the text of a template with `words` filled in; a missing word is an error.

    `template` is the path below server/templates.
    """
    return _templates().get_template(template).render(words)


@cache
def _templates() -> Environment:
    """Return the environment of the templates.

    The templates are shell, YAML, Markdown and systemd units, so HTML escaping is off. Validation ensures that every
    name is safe in all these formats.
    """
    return Environment(
        loader=PackageLoader("server"),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
