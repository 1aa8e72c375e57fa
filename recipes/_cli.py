"""The command line of every recipe: the whole dependency on jsonargparse is here."""

import sys
from typing import TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

C = TypeVar("C")


def cli(config: type[C], argv: list[str] | None = None) -> C:
    """Return a ``config`` made from the command line: ``--config c.yaml --option value``.

    Options override the file. The help shows the docstring below each field; ``--print_config``
    prints the resolved values as YAML.

    Args:
        config: A frozen, keyword-only dataclass of plain types and other such dataclasses, whose
            fields are options with a dot (``--data.url``); it may have methods.
        argv: Arguments instead of those of the process.

    Raises:
        SystemExit: On ``--help`` and ``--print_config``, and with one line on bad arguments.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Not auto_cli: it takes a class with public methods for a list of commands.
    parser = ArgumentParser(description=(config.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_class_arguments(config, as_group=False, sub_configs=True)
    try:  # dataclasses in the dataclass are made too
        values = parser.instantiate(parser.parse_args(argv))
        return config(**{name: values[name] for name in values.__dict__ if name != "config"})
    except ValueError as error:  # from the config's own checks
        sys.exit(f"error: {error}")
