"""`ir3de benchmark`: routers side by side on labelled prompts: accuracy, calibration, latency, memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ir3de.scripts.command import check_folder, command, need

if TYPE_CHECKING:  # these load torch, which nobody who asks for help waits for
    import torch
    from transformers import PreTrainedTokenizerBase

    from ir3de.scripts.data.splits import DataSet
    from ir3de.scripts.reports.comparison import Results, Settings
    from ir3de.scripts.routers.base import Factory, Options


@dataclass(frozen=True)
class FewShotOptions:
    """
    Whether routers are also fitted to few prompts.

    Args:
        shots (`tuple[int, ...]`): numbers of training prompts a domain.
        seeds (`int`): samples of each number.
    """

    shots: tuple[int, ...] = ()
    seeds: int = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de benchmark`."""
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FILE[,FILE]",
        help="JSON Lines, plain or .gz, with `text`, `domain`, `split` (train, test, test_shift) and, if known,"
        " `source`; repeatable. Several files are read as one data set",
    )
    parser.add_argument(
        "--outcomes",
        action="append",
        default=[],
        metavar="FILE",
        help="instead of --data: compare routers that learn from outcomes, on JSON Lines with `text`, `scores`,"
        " `source`, `split` (train, test) and maybe `costs`; repeatable",
    )
    parser.add_argument("--text-column", default="text", help="name of the column with the prompt (default: text)")
    parser.add_argument("--domain-column", default="domain", help="name of the column with the domain")
    parser.add_argument("--oos-domain", default="oos", help="domain of test prompts that no expert should answer")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for results.md, results.json and plots")
    parser.add_argument(
        "--routers",
        metavar="NAMES",
        help="comma-separated; default: all but modem (slow), ir3de-chain (a second opinion), those of single feature"
        " maps, and other projects' (with --outcomes llmrouter-knn, -svm, -mlp and -mf)",
    )
    parser.add_argument("--embeddings", metavar="SOURCE", help="of our routers; default: SmolLM2-135M-Instruct's")
    parser.add_argument("--revision", help="revision of SOURCE")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where the weights of SOURCE are GGUF")
    parser.add_argument("--encoder", help="Hub id or folder of a sentence encoder; default: all-MiniLM-L6-v2")
    parser.add_argument("--modem-encoder", help="that modem fine-tunes; default: DeBERTa-v3 on a GPU, else --encoder")
    parser.add_argument(
        "--max-train-per-domain", type=int, default=500, help="training prompts an encoder reads (default: 500; 0: all)"
    )
    parser.add_argument(
        "--max-train",
        type=int,
        default=0,
        help="random training prompts of each domain for every router (default: all)",
    )
    parser.add_argument("--max-test", type=int, default=0, help="random prompts of each test split (default: all)")
    parser.add_argument("--few-shot", metavar="NUMBERS", help="also with so many training prompts a domain: 20,50,200")
    parser.add_argument("--seeds", type=int, default=3, help="samples for each of --few-shot (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Reads the data, makes sure that every router can be made, and compares them."""
    import torch

    from ir3de.scripts.data.sources import load_quickstart_source, load_source
    from ir3de.scripts.data.splits import DataOptions, read_data_set
    from ir3de.scripts.reports.comparison import describe_data
    from ir3de.scripts.reports.machine import describe_machine, versions
    from ir3de.scripts.reports.report import write_report
    from ir3de.scripts.routers.base import Options, choose_routers
    from ir3de.scripts.routers.encoders import default_encoder

    check_folder(args.output)
    if bool(args.data) == bool(args.outcomes):
        raise ValueError("Give labelled prompts with --data, or judged ones with --outcomes.")
    if args.outcomes:
        need("sklearn", "benchmark", "Comparing routers by outcomes needs scikit-learn")
    if args.embeddings:
        tokenizer, embeddings = load_source(args.embeddings, args.revision, args.gguf_file)
    else:
        tokenizer, embeddings = load_quickstart_source()
    if args.outcomes:
        names = args.routers.split(",") if args.routers else []
        print(compare_by_outcomes(args.outcomes, tokenizer, embeddings, args.encoder, Path(args.output), names))
        return 0
    few = FewShotOptions(_numbers(args.few_shot), args.seeds)
    read = DataOptions(args.text_column, args.domain_column, args.oos_domain, args.max_train, args.max_test)
    data = [read_data_set(entry, read) for entry in args.data]
    if len({d.name for d in data}) < len(data):
        raise ValueError("Two --data have the same name: name them apart, or join their files with a comma.")
    for d in data:
        _tell_what_is_left_out(d)
    known, usual = _known_routers(tokenizer, embeddings)
    routers = choose_routers(known, args.routers.split(",") if args.routers else usual)
    options = Options(args.encoder or default_encoder(), args.modem_encoder, args.max_train_per_domain or None)
    for make in routers.values():  # what is missing shows before anything is measured
        make(options)
    settings: Settings = {
        "routers": list(routers),
        "encoder": args.encoder or "all-MiniLM-L6-v2",
        "embeddings": args.embeddings or "SmolLM2-135M-Instruct",
        "max_train_per_domain": args.max_train_per_domain,
        "max_train": args.max_train,
        "max_test": args.max_test,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
        "packages": versions("ir3de", "torch", "transformers", "scikit-learn", "sentence-transformers"),
    }
    results: Results = {"settings": settings, "data": [describe_data(d) for d in data], "runs": [], "few_shot": []}
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    compare_all(results, data, routers, options, few, tokenizer, output)
    print(write_report(results, output))
    return 0


def _known_routers(
    tokenizer: PreTrainedTokenizerBase, embeddings: torch.Tensor
) -> tuple[dict[str, Factory], list[str]]:
    """All routers by name, and the names of those that are compared unless a person names others."""
    from ir3de.scripts.routers.baselines import BASELINES
    from ir3de.scripts.routers.ours import CHAIN, FEATURE_MAP_ROUTERS, ours
    from ir3de.scripts.routers.peers import PEERS

    known: dict[str, Factory] = {**ours(tokenizer, embeddings), **BASELINES, **PEERS}
    on_request = {"modem", CHAIN, *FEATURE_MAP_ROUTERS, *PEERS}  # slow, part of another, or another project's
    return known, [name for name in known if name not in on_request]


def compare_by_outcomes(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    embeddings: torch.Tensor,
    encoder: str | None,
    output: Path,
    routers: Sequence[str] = (),
) -> str:
    """Compares routers that learn from outcomes, and writes what was measured after every file; returns the table.

    Args:
        files (`Sequence[str]`): of outcomes.
        tokenizer (`PreTrainedTokenizerBase`): of the embeddings.
        embeddings (`torch.Tensor` of shape `(V, h)`): of our router.
        encoder (`str`, *optional*): of sentences.
        output (`Path`): folder for what is written.
        routers (`Sequence[str]`): others than ours; by default those that are no other project's.
    """
    from ir3de.scripts.data.judged import read_judged
    from ir3de.scripts.reports.outcomes import compare_outcomes, discovered, write_outcomes_report
    from ir3de.scripts.routers.base import choose_routers
    from ir3de.scripts.routers.by_outcomes import DomainsByOutcomes, Predictor, baselines
    from ir3de.scripts.routers.encoders import default_encoder, shared_encoder
    from ir3de.scripts.routers.outcome_peers import peers

    data = [read_judged(file) for file in files]
    vectors = shared_encoder(encoder or default_encoder())
    usual: dict[str, Callable[[], Predictor]] = {**baselines(vectors)}
    others = choose_routers({**usual, **peers(vectors)}, list(routers) or list(usual))
    for make in others.values():  # what is missing shows before anything is measured
        make()
    few = [name for name in ("kNN on the encoder",) if name in others]
    results, table = [], ""
    for judged in data:
        ours = DomainsByOutcomes(tokenizer, embeddings)
        found = compare_outcomes(judged, ours, others, few)
        results.append({**found, "discovered": discovered(judged, tokenizer, embeddings)})
        table = write_outcomes_report(results, output)
    return table


def compare_all(
    results: Results,
    data: Sequence[DataSet],
    routers: Mapping[str, Factory],
    options: Options,
    few: FewShotOptions,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
) -> None:
    """Compares routers, and writes what was measured after every one, so that little is lost if it stops.

    Args:
        results ([`Results`]): to add to.
        data (`Sequence[DataSet]`): to compare on.
        routers (`Mapping[str, Factory]`): by name.
        options ([`Options`]): of the routers.
        few ([`FewShotOptions`]): whether they are also fitted to few prompts.
        tokenizer (`PreTrainedTokenizerBase`): whose work is the yardstick of what a route costs.
        output (`Path`): folder for `results.json`.
    """
    from tqdm.auto import tqdm

    from ir3de.scripts.reports.comparison import compare, measure_few_shot

    number = len(data) * len(routers) * (1 + len(few.shots) * few.seeds)
    with tqdm(total=number, desc="Comparing", disable=None) as progress:
        for d in data:
            for name, make in routers.items():
                progress.set_postfix_str(f"{name} on {d.name}")
                results["runs"].append({"data": d.name, "router": name, **compare(make(options), d, tokenizer)})
                progress.update()
                for shots in few.shots:
                    for seed in range(few.seeds):
                        choice, accuracies = measure_few_shot(make(replace(options, seed=seed)), d, shots, seed)
                        results["few_shot"].append(
                            {
                                "data": d.name,
                                "router": name,
                                "shots": shots,
                                "seed": seed,
                                "choice": choice,
                                "macro_accuracy": accuracies,
                            }
                        )
                        progress.update()
                (output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def _tell_what_is_left_out(data: DataSet) -> None:
    for split, domains in data.left_out.items():
        for domain, number in domains.items():
            print(f"{data.name}, {split}: {number} rows of {domain!r} are left out, because it has no training rows.")


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in (text or "").split(",") if part)
    except ValueError:
        numbers = (0,)
    if any(number < 2 for number in numbers):
        raise ValueError(f"--few-shot takes whole numbers of at least 2, such as 20,50,200; got {text!r}.")
    return numbers


main = command("benchmark", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
