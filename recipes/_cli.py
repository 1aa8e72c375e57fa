"""The command line of every recipe: the whole dependency on jsonargparse is here."""

import sys
from typing import TypeVar, cast

from jsonargparse import auto_cli, set_parsing_settings

C = TypeVar("C")


def cli(config: type[C], argv: list[str] | None = None) -> C:
    """Return a ``config`` made from the command line: ``--config c.yaml --option value``.

    Options override the file. The help shows the docstring below each field; ``--print_config``
    prints the resolved values as YAML.

    Args:
        config: A frozen, keyword-only dataclass.
        argv: Arguments instead of those of the process.

    Raises:
        SystemExit: On ``--help`` and ``--print_config``, and with one line on bad arguments.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        return cast(C, auto_cli(config, args=argv, as_positional=False))
    except ValueError as error:  # from the config's own checks
        sys.exit(f"error: {error}")
