"""Text files of kits and of the proxy, from the templates below server/templates."""

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


def render(template: str, words: Mapping[str, object]) -> str:
    """Return a template of server/templates, by its path there, filled in; a missing word is an error."""
    return _templates().get_template(template).render(words)


@cache
def _templates() -> Environment:
    """Shell, YAML, Markdown and units: nothing is HTML, and every name was checked to be safe in all of them."""
    return Environment(
        loader=PackageLoader("server"),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
