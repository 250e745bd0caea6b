"""What makes a file of `scripts/` a command that also runs by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import TypeVar

Values = TypeVar("Values")


def command(
    name: str,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> Callable[..., int]:
    """The `main` of a subcommand: parses arguments, by default those of the process, and returns the exit code."""

    def main(arguments: list[str] | None = None) -> int:
        """Runs the subcommand."""
        return run(parsed(name, description, add_arguments, arguments))

    return main


def parsed(
    name: str,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    arguments: list[str] | None = None,
) -> argparse.Namespace:
    """The arguments of a subcommand, by default those of the process; options may stand between files and names."""
    parser = argparse.ArgumentParser(prog=f"ir3de {name}", description=description)
    add_arguments(parser)
    return parser.parse_intermixed_args(arguments)


def values_of(kind: type[Values], options: Mapping[str, object]) -> Values:
    """A dataclass of those options that bear the names of its fields; a command's others are passed over."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in options.items() if name in names})


def need(package: str, extra: str, reason: str) -> None:
    """Checks before long work that a package which comes with an extra is there.

    Args:
        package (`str`): that is imported.
        extra (`str`): of this project, that brings it.
        reason (`str`): what needs which package, in words.

    Raises:
        ImportError: it is not installed.
    """
    if find_spec(package) is None:
        raise ImportError(f'{reason}: `pip install "ir3de[{extra}]"`.')
