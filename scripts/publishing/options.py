"""The options of commands that edit a router: which one, and what its new expert is. Light, as no edit is made here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ir3de.specs_ir3de import ExpertSpec


@dataclass(frozen=True)
class TargetRouter:
    """
    The router that is edited, and where the result goes.

    Args:
        router (`str`): folder or Hub id.
        output (`str`, *optional*): folder for the result, instead of the router's own place.
        create_pr (`bool`): on the Hub, open a pull request.
        allow_private (`bool`): on the Hub, publish folders and private addresses that an expert names.
    """

    router: str
    output: str | None = None
    create_pr: bool = False
    allow_private: bool = False


def add_private_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says yes to what `check_portable` names."""
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="publish folders of this machine and addresses of private networks that experts name",
    )


def add_target_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options of [`TargetRouter`]."""
    nargs = None if required else "?"
    parser.add_argument("router", nargs=nargs, metavar="DIR_OR_ID", help="folder or Hub id of a router")
    parser.add_argument("--output", metavar="DIR", help="folder for the result, instead of the router's own place")
    parser.add_argument("--create-pr", action="store_true", help="on the Hub: propose it as a pull request")
    add_private_argument(parser)


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe an expert, but for its name."""
    parser.add_argument(
        "--model", help="Hub id or folder of the causal LM that answers; without it the domain only routes"
    )
    parser.add_argument("--model-revision", help="its revision")
    parser.add_argument("--system-prompt", help="its system prompt")
    parser.add_argument("--cost", type=float, help="what an answer costs, in any unit")


def expert_spec(
    name: str,
    model: str | None = None,
    revision: str | None = None,
    system_prompt: str | None = None,
    cost: float | None = None,
) -> ExpertSpec:
    """An expert's spec of what is known of it."""
    from ir3de.scripts.data.experts import of_this_machine

    fields = {"name": name, "model": model, "system_prompt": system_prompt, "cost": cost, "revision": revision}
    return cast("ExpertSpec", of_this_machine({key: value for key, value in fields.items() if value is not None}))


def check_once(given: Sequence[str]) -> None:
    """Raises ValueError where a file or another source is given twice."""
    places = [Path(source).resolve() if Path(source).exists() else source for source in given]
    for source, place in zip(given, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{source} is given twice: give it once.")
