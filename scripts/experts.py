"""`ir3de experts`: shows the experts of a router, checks that they answer, and sets what their specs say."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from ir3de.scripts.command import command, values_of
from ir3de.scripts.publishing.options import TargetRouter, add_target_arguments

if TYPE_CHECKING:
    from ir3de.modeling_ir3de import IR3DEModel

PROMPT = "Say hello in one short sentence."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de experts`."""
    add_target_arguments(parser, required=False)
    parser.add_argument("--keys", action="store_true", help="list what a spec may say; of no router")
    parser.add_argument("--json", action="store_true", help="print the specs, or with --check what was found, as JSON")
    checking = parser.add_argument_group("checking")
    checking.add_argument("--check", action="store_true", help="load each expert and ask it one prompt")
    checking.add_argument("--only", metavar="NAMES", help="comma-separated: check these experts alone")
    checking.add_argument("--prompt", default=PROMPT, metavar="TEXT", help=f"to ask (default: {PROMPT!r})")
    checking.add_argument("--device", help="of the experts on this machine (default: a GPU if there is one)")
    setting = parser.add_argument_group("setting, with values in YAML; KEY= alone takes the key out")
    for option, does in (("--set", "change an expert"), ("--add", "add an expert for domains that are here")):
        setting.add_argument(
            option, nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"), help=f"{does}; repeatable"
        )


def run(args: argparse.Namespace) -> int:
    """Sets, shows and checks; the exit code is 1 where an expert does not answer."""
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.measuring.experts import Asking, check_experts
    from ir3de.scripts.publishing.targets import apply_edit
    from ir3de.scripts.reports.experts import describe, describe_keys

    if args.keys:
        print(describe_keys())
        return 0
    if args.router is None:
        raise ValueError("Name the folder or Hub id of a router; --keys alone goes without one.")
    place = args.router
    if args.set or args.add:

        def edit(model: IR3DEModel) -> None:
            """Sets the specs."""
            for name, *pairs in args.set:
                model.set_expert(_changed(model, name, pairs))
            for name, *pairs in args.add:
                model.add_expert(_read({"name": name}, pairs))

        names = [name for name, *_ in [*args.set, *args.add]]
        place = apply_edit(values_of(TargetRouter, vars(args)), edit, f"Set {', '.join(names)}")
        print(f"Set {', '.join(names)}: {place}", file=sys.stderr)
        if args.create_pr or place.startswith("http"):
            return 0
    model = IR3DEModel.from_pretrained(place)
    if not args.check:
        print(json.dumps(model.config.specs, indent=2) if args.json else describe(model.config))
        return 0
    only = tuple(args.only.split(",")) if args.only else None
    checked = check_experts(model.config, Asking(args.prompt, only, args.device))
    print(json.dumps([one.as_json() for one in checked], indent=2) if args.json else describe(model.config, checked))
    return 1 if any(one.problem for one in checked) else 0


def _changed(model: IR3DEModel, name: str, pairs: Sequence[str]) -> Any:
    """The spec of an expert with some values set; a name that there is not is refused by the edit."""
    spec = next((spec for spec in model.config.specs if spec["name"] == name), {"name": name})
    return _read(spec, pairs)


def _read(spec: Any, pairs: Sequence[str]) -> Any:
    """A spec with values as a person types them.

    Raises:
        ValueError: one is not `KEY=VALUE`, renames the expert or is not YAML.
    """
    from ir3de.scripts.data.experts import of_this_machine
    from ir3de.specs_ir3de import takes_text

    if not pairs:
        raise ValueError(f"Give what to set of {spec['name']!r}, as KEY=VALUE; --keys lists the keys.")
    changed = dict(spec)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"Expected KEY=VALUE to set of {spec['name']!r}, got {pair!r}.")
        if key == "name":
            raise ValueError(f"An expert keeps its name: add one under the new name, then remove {spec['name']!r}.")
        try:
            changed[key] = (value or None) if takes_text(key) else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"The value of {key} is not YAML ({error}): got {value!r}.") from error
    return of_this_machine(changed)


main = command("experts", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
