"""What makes a file of `scripts/` a command that also runs by itself."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

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


OTHER_OUTPUT = "name another with --output"


def check_folder(path: str | None, remedy: str = OTHER_OUTPUT) -> None:
    """Checks before long work that a folder can be written to, or made.

    Args:
        path (`str`, *optional*): of the folder.
        remedy (`str`): what a person may do, in the imperative.

    Raises:
        ValueError: it is a file, or cannot be written to or made.
    """
    if path is not None:
        _check_writable(path, Path(path), remedy)


def check_file(path: str | None, remedy: str = OTHER_OUTPUT) -> None:
    """Checks before long work that a file can be written; as [`check_folder`]."""
    if path is not None and Path(path).is_dir():
        raise ValueError(f"{path} is a folder, and a file is to be written: {remedy}.")
    if path is not None:
        _check_writable(path, Path(path).parent, remedy)


def _check_writable(path: str, folder: Path, remedy: str) -> None:
    """Raises ValueError where a folder, or the first above it that exists, cannot be written to."""
    place = folder.absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, and a folder is needed for {path}: {remedy}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} may not be written to, so nothing can go to {path}: {remedy}.")


def check_hub(name: str, file: str, revision: str | None = None) -> None:
    """Says at once what huggingface_hub says after a minute of attempts: that the Hub's address is unknown here, as
    without a network, and that what is to be loaded from it is not on this machine.

    Args:
        name (`str`): Hub id, or a folder, which needs no Hub.
        file (`str`): that is fetched first.
        revision (`str`, *optional*): of the repository.

    Raises:
        OSError: so it is.
    """
    from urllib.request import getproxies  # takes a while, which nobody who asks for help waits for

    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    host = urlsplit(constants.ENDPOINT).hostname
    if os.path.isdir(name) or constants.HF_HUB_OFFLINE or getproxies():  # a proxy knows addresses itself
        return
    try:
        if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            return
        socket.getaddrinfo(host, None)
    except HFValidationError:
        return  # whoever loads it says so
    except socket.gaierror as error:
        raise OSError(f"{name} is not on this machine, and {host} cannot be found ({error}): no network?") from error


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
