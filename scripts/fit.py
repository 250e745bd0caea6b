"""`ir3de fit`: labelled text and the embeddings of any causal LM in, a router out."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm

from ir3de.configuration_ir3de import FEATURE_MAPS, VARIANTS, IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.scripts.command import command
from ir3de.scripts.data.rows import RowSource, add_data_arguments, read_rows
from ir3de.scripts.data.sources import load_source
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fitting.calibration import calibration_error, fit_calibration
from ir3de.scripts.fitting.search import Candidate, Split, best_of, describe, search
from ir3de.specs_ir3de import check_expert_name
from ir3de.statistics_ir3de import DomainStatistics, StatisticsCollector

FOLDS = 5  # of each domain's prompts, one of which is held out at a time
HELD_OUT_WANTED, HELD_OUT_MOST = 200, 400  # prompts of each domain: of all folds, and of one
SAMPLE_MOST = 1600  # prompts of each domain that candidates are fitted on
HELD_OUT_LEAST = 30  # prompts in all, below which a choice would be noise
RFF_MOST_BYTES = 4 << 30  # of sums, above which random features are not tried


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de fit`."""
    add_data_arguments(parser)
    parser.add_argument("--embeddings", required=True, metavar="SOURCE", help="Hub id or folder of any causal LM")
    parser.add_argument("--revision", help="revision of SOURCE")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where the weights of SOURCE are GGUF")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the router")
    parser.add_argument("--experts", metavar="YAML", help="list of expert specs; by default each domain routes only")
    add_choice_arguments(parser)


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide how the router is fitted; what they leave open is chosen on held-out prompts."""
    parser.add_argument("--variant", choices=("auto", *VARIANTS), default="auto", help="default: on held-out prompts")
    parser.add_argument(
        "--feature-map", choices=("auto", *FEATURE_MAPS), help="default: identity, or with auto: chosen"
    )
    parser.add_argument("--num-features", type=int, default=4096, help="of rff (default: 4096)")
    parser.add_argument("--num-votes", type=int, help="k of top-k; default: chosen on held-out prompts")
    parser.add_argument("--regularization", type=float, help="lambda; default: chosen on held-out prompts")
    parser.add_argument("--token-noise", type=float, help="rho of prompt rows; default: chosen on held-out prompts")
    parser.add_argument("--lexical-weight", type=float, help="of naive Bayes in prompt rows; default: chosen likewise")
    parser.add_argument(
        "--standard-errors",
        type=float,
        default=1.0,
        help="of its distance to the best choice, that a simpler choice may be behind; 0 suits prompts from the data's"
        " own sources (default: 1)",
    )
    parser.add_argument("--no-balance", action="store_true", help="sum domains as they are: larger ones weigh more")
    parser.add_argument("--no-bias", action="store_true", help="no column of ones in the token rows")
    parser.add_argument("--normalize-columns", action="store_true", help="divide the columns of W by their norms")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt that count (default: 1024)")


def run(args: argparse.Namespace) -> int:
    """Fits a router and saves it."""
    config = IR3DEConfig(
        experts=read_experts(args.experts) if args.experts else [],
        balance=not args.no_balance,
        bias=not args.no_bias,
        normalize_columns=args.normalize_columns,
        num_features=args.num_features,
        max_length=args.max_length,
        embedding_model=public_name(args.embeddings),
        embedding_revision=args.revision,
        embedding_gguf_file=args.gguf_file,
        datasets=[data for data in args.data if not Path(data).is_file()] or None,
        **_by_hand(args),
    )
    tokenizer, embeddings = load_source(args.embeddings, args.revision, args.gguf_file)
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        spool.fill(read_rows(RowSource.from_args(args)), tokenizer, config.max_length)
        check_domains(spool)
        _match_experts(config, spool.domains)
        model = fit_router(config, tokenizer, embeddings, spool, args)
    model.save_pretrained(args.output)
    skipped = f" ({spool.skipped} rows without a token were left out)" if spool.skipped else ""
    print(f"Saved a router of {len(spool.domains)} experts to {args.output}{skipped}.")
    print(f'Try it: ir3de route {args.output} "a prompt"')
    return 0


def public_name(source: str) -> str:
    """What config and card call a source: a Hub id as it is, of a local folder only its name."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def fit_router(
    config: IR3DEConfig, tokenizer: Any, embeddings: torch.Tensor, spool: Spool, args: argparse.Namespace
) -> IR3DEModel:
    """Chooses on held-out prompts what `args` leave open, and fits on all prompts.

    Args:
        config ([`IR3DEConfig`]): with the experts; the choice is written into it.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): token embeddings.
        spool ([`Spool`]): the tokenized prompts.
        args (`argparse.Namespace`): of `add_choice_arguments`.
    """
    if not args.standard_errors >= 0:
        raise ValueError(f"--standard-errors must be a number of at least 0, got {args.standard_errors}.")
    candidates = _candidates(config, embeddings, spool, args)
    number = sum(len(rows) for rows in candidates[0].logits.values())
    best = best_of(candidates, args.standard_errors)
    if number < HELD_OUT_LEAST and len(candidates) > 1:
        warnings.warn(
            f"Only {number} held-out prompts, fewer than {HELD_OUT_LEAST}: too few to choose on. Taking the simplest.",
            stacklevel=2,
        )
        best = max(candidates, key=lambda c: c.simplicity)
    if best.config["feature_map"] == "rff":
        candidates.append(best := _with_all_features(config, embeddings, spool, best))
    print(f"On {number:,} held-out prompts:\n{describe(candidates, best)}")
    for key, value in best.config.items():
        setattr(config, key, value)
    labels = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(best.logits.values())])
    logits = torch.cat(list(best.logits.values()))
    config.calibration = fit_calibration(logits, labels)
    config.evaluation = evaluation(best, calibration_error(logits, labels, config.calibration))
    model = IR3DEModel.from_embeddings(config, embeddings, tokenizer)
    model.fit(collect(model, spool))
    return model


def collect(model: IR3DEModel, spool: Spool) -> dict[str, DomainStatistics]:
    """The statistics of each domain over all of its prompts, in the router's feature space."""
    empty = model.collector()
    statistics = {}
    for domain in tqdm(spool.domains, desc="Summing", unit=" domains", disable=None):
        collector = StatisticsCollector(empty.features, empty.fingerprint)
        for prompts in spool.parts(domain):
            collector.add(prompts)
        statistics[domain] = collector.statistics
    return statistics


def splits(spool: Spool) -> Iterator[Split]:
    """Prompts to try candidates on, and held-out ones to measure them: a fifth, spread evenly. Where a fifth of the
    smallest domain is little, one fifth after another, if need be until every prompt has been held out once.
    """
    fewest = min(len(spool.lengths(domain)) for domain in spool.domains)
    number = min(FOLDS, fewest, math.ceil(HELD_OUT_WANTED * FOLDS / fewest))
    yield from (_split(spool, fold) for fold in range(number))


def _split(spool: Spool, fold: int) -> Split:
    """Holds out every fifth prompt of each domain."""
    sample, held_out = {}, {}
    for domain in spool.domains:
        rows = torch.arange(len(spool.lengths(domain)))
        held = (rows + fold) % FOLDS == 1
        sample[domain] = spool.take(domain, _spread(rows[~held], SAMPLE_MOST))
        held_out[domain] = spool.take(domain, _spread(rows[held], HELD_OUT_MOST))
    return Split(sample, held_out)


def _spread(rows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def check_domains(spool: Spool) -> None:
    """Raises ValueError unless there are two domains or more, of two rows or more, whose names can name experts."""
    if len(spool.domains) < 2:
        raise ValueError(f"A router chooses between at least two domains; the data have {spool.domains or 'no rows'}.")
    for domain in spool.domains:
        check_expert_name(domain)
        if len(spool.lengths(domain)) < 2:
            raise ValueError(f"Domain {domain!r} has a single row: at least two are needed, one of them held out.")


def _by_hand(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the config that options set by hand; giving them to the config checks them before any work."""
    lambda_field = "prompt_regularization" if args.variant == "prompt" else "regularization"
    given = {
        "variant": None if args.variant == "auto" else args.variant,
        "feature_map": None if args.feature_map == "auto" else args.feature_map,
        "num_votes": args.num_votes,
        lambda_field: args.regularization,
        "token_noise": args.token_noise,
        "lexical_weight": args.lexical_weight,
    }
    return {key: value for key, value in given.items() if value is not None}


def _candidates(
    config: IR3DEConfig, embeddings: torch.Tensor, spool: Spool, args: argparse.Namespace
) -> list[Candidate]:
    """Every combination of variant and feature map that the options leave open."""
    plan = {
        "identity": [variant for variant in VARIANTS if variant != "prompt"],
        "unit": ["prompt"],
        "rff": ["prompt"],
    }
    if args.variant != "auto":
        maps = [args.feature_map or "identity"] if args.feature_map != "auto" else list(FEATURE_MAPS)
        plan = {name: [args.variant] for name in maps}
    elif args.feature_map not in (None, "auto"):
        plan = {args.feature_map: list(VARIANTS)}
    if args.variant == "auto" and len(spool.domains) * 8 * config.num_features**2 > RFF_MOST_BYTES:
        plan.pop("rff", None)
    candidates: list[Candidate] = []
    for feature_map, variants in plan.items():
        config.feature_map = feature_map
        grids = {
            "num_votes": None if args.num_votes is None else [args.num_votes],
            "lambdas": None if args.regularization is None else [args.regularization],
            "token_noises": None if args.token_noise is None else [args.token_noise],
            "lexical_weights": None if args.lexical_weight is None else [args.lexical_weight],
        }
        half = config.num_features // 4 * 2  # an even number, and an eighth of the work
        candidates += search(config, embeddings, splits(spool), variants, half, **grids)
    return candidates


def _with_all_features(config: IR3DEConfig, embeddings: torch.Tensor, spool: Spool, best: Candidate) -> Candidate:
    """What was chosen with fewer random features, measured with all."""
    config.feature_map = "rff"
    fields = {"num_votes": "num_votes", "token_noises": "token_noise", "lexical_weights": "lexical_weight"}
    fields["lambdas"] = "prompt_regularization" if best.config["variant"] == "prompt" else "regularization"
    grids = {name: [best.config[field]] for name, field in fields.items() if field in best.config}
    return search(config, embeddings, splits(spool), [best.config["variant"]], **grids)[0]


def evaluation(best: Candidate, error: float) -> dict[str, Any]:
    """What config and card say of the choice."""
    domains = {name: {"recall": recall, "prompts": len(best.logits[name])} for name, recall in best.recalls.items()}
    routes = {name: rows.argmax(dim=1).bincount(minlength=len(domains)).tolist() for name, rows in best.logits.items()}
    return {
        "macro_accuracy": best.macro_accuracy,
        "standard_error": best.standard_error,
        "calibration_error": error,
        "prompts": sum(domain["prompts"] for domain in domains.values()),
        "domains": domains,
        "confusion": {name: dict(zip(domains, numbers, strict=True)) for name, numbers in routes.items()},
    }


def read_experts(path: str) -> list[dict[str, Any]]:
    """Reads a list of expert specs.

    Raises:
        ValueError: the file is not YAML, or no list.
    """
    try:
        experts = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}).") from error
    if not isinstance(experts, list):
        raise ValueError(f"{path}: expected a list of experts, each a mapping with a `name`; got {experts!r}.")
    return experts


def _match_experts(config: IR3DEConfig, domains: list[str]) -> None:
    """Sets one expert a domain, or checks that the experts given are the domains of the data."""
    if not config.experts:
        config.set_experts([{"name": domain} for domain in domains])
    elif set(config.expert_names) != set(domains):
        raise ValueError(
            f"The data have the domains {domains} and the experts are {config.expert_names}: each domain needs one"
            " expert of its name. Leave rows out with --where, or mend the list of experts."
        )


main = command("fit", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
