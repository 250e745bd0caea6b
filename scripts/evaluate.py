"""`ir3de evaluate`: how often a router finds the right expert, and how close that comes to asking the right one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ir3de.card_ir3de import CARD_NAME, state
from ir3de.experts_ir3de import describe_error
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.command import command
from ir3de.scripts.data.experts import read_experts
from ir3de.scripts.data.rows import RowSource, add_data_arguments, read_rows
from ir3de.scripts.data.selection import Selection, of_experts, to_score
from ir3de.scripts.metrics.accuracy import accuracy_over_k, describe, routing_accuracy
from ir3de.scripts.metrics.normalised import Losses
from ir3de.scripts.metrics.perplexity import score_experts
from ir3de.scripts.reports.evaluation import RESULTS, write_card, write_report
from ir3de.scripts.reports.machine import describe_machine, versions
from ir3de.scripts.reports.rows import AVERAGE, DEFAULT, figures_of, fixed_rows, trained_rows
from ir3de.scripts.routers.average import average_experts
from ir3de.scripts.routers.base import Factory, Options, choose_routers
from ir3de.scripts.routers.baselines import BASELINES
from ir3de.scripts.routers.encoders import default_encoder
from ir3de.scripts.routers.ours import ours

ROUTER = "this router"
QUICK = {"prompts": 10, "max_tokens": 64, "max_train_per_domain": 10, "seeds": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de evaluate`."""
    parser.add_argument("router", metavar="DIR", help="folder or Hub id of a router")
    add_data_arguments(parser)
    parser.add_argument("--variant", help="instead of the router's own")
    parser.add_argument("--num-votes", type=int, help="instead of the router's own")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--output", metavar="DIR", help="folder for results.md, results.json, figures and what is kept")
    parser.add_argument("--card", action="store_true", help="write the figures into the router's card (a folder's)")
    experts = parser.add_argument_group("normalised performance")
    experts.add_argument(
        "--experts",
        nargs="?",
        const="",
        metavar="YAML",
        help="let the router's experts, or those of a list, read the data: perplexity by routing; needs --output",
    )
    experts.add_argument("--prompts", type=int, default=60, help="that experts read, a domain (default: 60)")
    experts.add_argument("--max-tokens", type=int, default=128, help="of a prompt, for modem too (default: 128)")
    experts.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the experts")
    others = parser.add_argument_group("other routers, fitted to training data")
    others.add_argument("--train", action="append", metavar="FILE_OR_ID", help="as --data; repeatable")
    others.add_argument("--train-where", action="append", default=[], metavar="KEY=VALUE", help="as --where")
    others.add_argument("--train-split", default="train", help="split of a Hub data set (default: train)")
    others.add_argument("--routers", metavar="NAMES", help=f"comma-separated; default: {','.join(DEFAULT)}")
    others.add_argument("--encoder", help="Hub id or folder of a sentence encoder; default: all-MiniLM-L6-v2")
    others.add_argument("--modem-encoder", help="that modem fine-tunes; default: DeBERTa-v3 on a GPU, else --encoder")
    others.add_argument(
        "--max-train-per-domain", type=int, default=300, help="training prompts an encoder reads (default: 300; 0: all)"
    )
    others.add_argument("--seeds", type=int, default=3, help="of routers whose routes depend on one (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help=", ".join(f"{key.replace('_', '-')} {n}" for key, n in QUICK.items())
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates; the exit code is 1 where an expert or another router could not be had."""
    _check(args)
    started = time.monotonic()
    model = IR3DEModel.from_pretrained(args.router)
    router, names = IR3DERoutingPipeline(model, device="cpu"), model.config.expert_names
    specs = _specs(args, model.config)
    selection = of_experts(read_rows(RowSource.from_args(args)), names)
    if args.experts is not None:
        selection = to_score(selection, model.tokenizer, args.prompts, args.max_tokens)
    train = of_experts(read_rows(_of_train(args)), names, "training data") if args.train else None
    routers = _routers(args, model) if train else {}
    notes = selection.notes()
    if train:
        of_train = train.notes("the routers that are fitted to these never choose its expert")
        notes += [f"Training data: {note}" for note in of_train]
    for note in notes:
        print(note, file=sys.stderr)
    choice = {key: value for key in ("variant", "num_votes") if (value := getattr(args, key)) is not None}
    routing = routing_accuracy(router, selection.rows, **choice)
    if not args.output:
        print(json.dumps(routing, indent=2) if args.json else describe(routing))
        return 0
    results = {"settings": _settings(args, model, train), "notes": notes, "routing": routing, "failures": {}}
    results["over_k"] = accuracy_over_k(router, selection.rows)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    losses = _losses(args, specs, selection, results["failures"])
    results["rows"] = _fixed(losses, names, results["failures"]) if args.experts is not None else []
    if train:
        results["rows"] += _others(args, routers, losses, train, selection, results)
    routed = time.monotonic()
    records = router([row.text for row in selection.rows], generate=False, min_score=0, top_n=1, **choice)
    routes, about = [[record["expert"] for record in records]], {"choice": results["settings"]["variant"]}
    results["rows"].append(figures_of(ROUTER, losses, routes=routes, seconds=time.monotonic() - routed, **about))
    results["seconds"] = time.monotonic() - started
    return _finish(args, model, results)


def _finish(args: argparse.Namespace, model: IR3DEModel, results: dict[str, Any]) -> int:
    """Writes and prints the results, and says what could not be had."""
    output = Path(args.output)
    table = write_report(results, output)
    print((output / RESULTS).read_text(encoding="utf-8") if args.json else table)
    if args.card:
        write_card(Path(args.router), results, state(model.config, model.statistics))
    failed = {**results["failures"], **{row["row"]: row["error"] for row in results["rows"] if row.get("error")}}
    for name, error in failed.items():
        print(f"{name} could not be had: {error}", file=sys.stderr)
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    """Sets the sizes of --quick, and refuses options that do not go together before anything is read."""
    if args.quick:
        vars(args).update(QUICK)
    least = {"prompts": 1, "max_tokens": 2, "max_train_per_domain": 0, "seeds": 1}
    for key, value in least.items():
        if getattr(args, key) < value:
            raise ValueError(f"--{key.replace('_', '-')} must be at least {value}, got {getattr(args, key)}.")
    if not args.output and (args.experts is not None or args.train or args.card):
        raise ValueError("--experts, --train and --card need --output DIR, where the results and what is kept go.")
    if args.card and (args.variant or args.num_votes is not None or args.experts):
        raise ValueError(
            "--card writes what the router does as it is: leave out --variant, --num-votes and the list of --experts."
        )
    if args.card and not Path(args.router, CARD_NAME).is_file():
        raise ValueError(
            f"--card writes into the {CARD_NAME} of a router's folder, and {args.router} has none: download the router,"
            " evaluate the folder and upload it again (`hf upload`)."
        )


def _specs(args: argparse.Namespace, config: Any) -> list[dict[str, Any]]:
    """The experts that read the data: the router's own, or those of a list, which must have the same names."""
    if not args.experts:
        return list(config.experts)
    specs = type(config)(experts=read_experts(args.experts)).experts
    if [spec["name"] for spec in specs] != config.expert_names:
        raise ValueError(
            f"{args.experts} lists {[spec['name'] for spec in specs]}, and the router sends prompts to"
            f" {config.expert_names}: list an expert for each of these names."
        )
    return list(specs)


def _of_train(args: argparse.Namespace) -> RowSource:
    return replace(
        RowSource.from_args(args),
        sources=tuple(args.train),
        where=tuple(args.train_where),
        split=args.train_split,
    )


def _routers(args: argparse.Namespace, model: IR3DEModel) -> dict[str, Factory]:
    known = {**ours(model.tokenizer, model.embed_tokens.weight.detach()), **BASELINES}
    return choose_routers(known, args.routers.split(",") if args.routers else DEFAULT)


def _losses(
    args: argparse.Namespace, specs: list[dict[str, Any]], selection: Selection, failures: dict[str, str]
) -> Losses:
    """What the prompts cost the experts and the average of their weights; without --experts only the columns."""
    domains, texts = [row.domain for row in selection.rows], [row.text for row in selection.rows]
    if args.experts is None:
        shape = len(texts), len(specs)
        return Losses(domains, [spec["name"] for spec in specs], np.full(shape, np.nan), np.zeros(shape, dtype=int))
    columns = list(specs)
    try:
        columns.append(average_experts(Path(args.output, AVERAGE), specs, AVERAGE))
    except Exception as error:  # the experts themselves go on
        failures[AVERAGE] = describe_error(error)
    scores = score_experts(Path(args.output, "scores"), texts, columns, device=torch.device(args.device))
    failures.update(scores.failures)
    return Losses(domains, [spec["name"] for spec in columns], scores.nats, scores.tokens, scores.seconds)


def _fixed(losses: Losses, names: list[str], failures: dict[str, str]) -> list[dict[str, Any]]:
    """The rows without a router; those of experts that failed say so."""
    rows = []
    for name, p in fixed_rows(losses, names).items():
        expert = name.removeprefix("only ")
        about = {"choice": f"failed: {failures[expert]}"} if expert in failures else {}
        rows.append(figures_of(name, losses, p, seconds=losses.seconds.get(expert), **about))
    return rows if AVERAGE in losses.experts else [*rows, figures_of(AVERAGE, losses, error=failures[AVERAGE])]


def _others(
    args: argparse.Namespace,
    routers: dict[str, Factory],
    losses: Losses,
    train: Selection,
    selection: Selection,
    results: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of routers that are fitted to training data; where top-k is one, its accuracy over k is the result's."""
    sizes = {"max_train": args.max_train_per_domain or None, "max_tokens": args.max_tokens}
    options = Options(args.encoder or default_encoder(), args.modem_encoder, **sizes)
    kept = Path(args.output, "routes.json")
    rows, votes, others = [], {}, {}
    for name, routes in trained_rows(kept, routers, options, args.seeds, train.rows, selection.rows).items():
        rows.append(figures_of(name, losses, **vars(routes)))
        votes |= {k: accuracy for k, accuracy in routes.over_k.items() if k.isdigit()}
        if name.startswith("ir3de-") and not routes.over_k and not routes.error:
            others[name.removeprefix("ir3de-")] = rows[-1]["accuracy"]
    if votes:  # the figure is of what was fitted here, each variant with its own choice
        results["over_k"] = votes | others
    return rows


def _settings(args: argparse.Namespace, model: IR3DEModel, train: Selection | None) -> dict[str, Any]:
    """What the report says of the run."""
    config = model.config
    votes = f", k {args.num_votes or config.num_votes}" if (args.variant or config.variant) == "top-k" else ""
    scored = {"prompts": args.prompts, "max_tokens": args.max_tokens} if args.experts is not None else {}
    sizes = {"seeds": args.seeds, "max_train_per_domain": args.max_train_per_domain, "modem_tokens": args.max_tokens}
    given = {"train": args.train, "train_where": args.train_where}
    trained = {**given, "train_rows": len(train.rows), **sizes} if train else {}
    return {
        "router": Path(args.router).name if Path(args.router).is_dir() else args.router,
        "variant": f"{args.variant or config.variant}, {config.feature_map}{votes}",
        "experts": config.expert_names,
        "data": [Path(data).name if Path(data).is_file() else data for data in args.data],
        "where": args.where,
        **scored,
        **trained,
        "quick": args.quick,
        "threads": torch.get_num_threads(),
        "device": args.device,
        "machine": describe_machine(),
        "packages": versions("torch", "transformers", "peft", "scikit-learn", "sentence-transformers"),
    }


main = command("evaluate", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
