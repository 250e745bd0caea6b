"""The `ir3de` command: one subcommand a file, of which only the one that is asked for is imported."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import ir3de
from ir3de.scripts.command import check_hub, parsed

COMMANDS = (
    "fit",
    "route",
    "evaluate",
    "tasks",
    "inspect",
    "experts",
    "add",
    "remove",
    "collect",
    "publish",
    "merge",
    "second",
    "judge",
    "outcomes",
    "serve",
    "train-experts",
    "benchmark",
    "quickstart",
)
_SIGINT = 2  # Ctrl-C
_SIGPIPE = 13  # what ends other programs whose reader has left; a shell says 128 more
FILES = {"inspect": "inspect_data"}  # a file inspect.py would hide the standard library's where a script runs beside it


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; bad input ends with one line on standard error and exit code 2, and Ctrl-C without a word."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # also while the packages are imported, which takes seconds
        return 128 + _SIGINT


def _main(arguments: list[str] | None) -> int:
    """Runs a subcommand."""
    if not sys.stderr.isatty():  # before any import that brings tqdm, which reads this once
        os.environ.setdefault("TQDM_DISABLE", "1")  # of every library's bars
    arguments = sys.argv[1:] if arguments is None else arguments
    name = _chosen(arguments[:1])
    module = _import(name)
    args = parsed(name, _summary(name), module.add_arguments, arguments[1:])
    ir3de.register()
    place = getattr(args, "output", None) or getattr(args, "router", None)
    return _run(name, partial(module.run, args), getattr(args, "router", None), place)


def _chosen(arguments: list[str]) -> str:
    """The subcommand that is asked for; argparse ends the process where it is none, or lists them all."""
    parser = argparse.ArgumentParser(prog="ir3de", description="A linear router for domain-expert language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        commands.add_parser(name, help=_summary(name))  # without its options, which may take seconds to import
    return str(parser.parse_args(arguments).command)


def _run(name: str, command: Callable[[], int], router: str | None, place: str | None) -> int:
    """Runs the subcommand that was asked for; `router` is the one it was given, if any, and `place` where it writes."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from safetensors import SafetensorError

    from ir3de.atomic_save_ir3de import CONFIG

    try:
        if router is not None:
            check_hub(router, CONFIG)
        code = command()
        sys.stdout.flush()  # or a reader that has left would be noticed only at the end of the process
        return code
    except BrokenPipeError as error:
        if not _is_reader_gone():
            print(f"ir3de {name}: {error}", file=sys.stderr)
            return 2
        return 128 + _SIGPIPE
    except (ValueError, OverflowError, TypeError, OSError, ImportError, RuntimeError, SafetensorError) as error:
        print(f"ir3de {name}: {_missing_router(router, error)}{_full_disk(place, error)}{error}", file=sys.stderr)
        return 2
    except HTTPError as error:  # those that say something of a repository are OSErrors too
        absent = (
            ""
            if router is None or os.path.exists(router)
            else f"There is no folder {router}{_near_folder(router)}, and "
        )
        print(f"ir3de {name}: {absent}the Hub cannot be reached ({error}). Your files are unchanged.", file=sys.stderr)
        return 2


def _is_reader_gone() -> bool:
    """Whether nobody reads standard output any more, as after `| head`: then what is left of it goes nowhere."""
    try:
        print(flush=True)  # what could not be written is not always tried again
        return False
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True


def _full_disk(place: str | None, error: Exception) -> str:
    """What goes before an error of a disk that says nothing of where it is."""
    of_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
    return f"Writing to {place or os.getcwd()}: " if of_disk else ""


def _missing_router(router: str | None, error: Exception) -> str:
    """What goes before an error of a router that is no folder: of a mistyped one the libraries say that the Hub cannot
    be reached, or that the name is none for the Hub.
    """
    from huggingface_hub.errors import HFValidationError

    if router is None or os.path.exists(router):
        return ""
    unreached = isinstance(error, OSError) and "huggingface.co" in str(error)
    if not unreached and not isinstance(error, HFValidationError) and "Repo id must" not in str(error):
        return ""
    return f"There is no folder {router}{_near_folder(router)}, and no router of this name can be loaded from the Hub: "


def _near_folder(router: str) -> str:
    """Asks whether a folder was meant that is called nearly so; nothing where there is none."""
    place = Path(router)
    names = [path.name for path in place.parent.iterdir() if path.is_dir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1)
    return f" (did you mean {place.with_name(near[0])}?)" if near else ""


def file_of(name: str) -> str:
    """The file of a command, without its ending."""
    return FILES.get(name, name.replace("-", "_"))


def _import(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"ir3de.scripts.{file_of(name)}")


def _summary(name: str) -> str:
    """What a command says of itself in the first line of its file, which may take seconds to import."""
    with open(Path(__file__).with_name(f"{file_of(name)}.py"), encoding="utf-8") as file:
        return file.readline().split(": ", 1)[1].strip().removesuffix('"""')


if __name__ == "__main__":
    sys.exit(main())
