"""`ir3de benchmark`: routers side by side on labelled prompts: accuracy, calibration, latency, memory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ir3de.scripts.command import command
from ir3de.scripts.data.rows import Row, RowSource, read_rows
from ir3de.scripts.data.sampling import sample_per_domain, sample_rows
from ir3de.scripts.data.sources import load_source, quickstart_source
from ir3de.scripts.metrics.measures import (
    auroc,
    calibration_error,
    latency,
    macro_accuracy,
    recalls,
    reliability,
    standard_error,
)
from ir3de.scripts.reports.machine import describe_machine, versions
from ir3de.scripts.reports.report import write_report
from ir3de.scripts.routers.base import Factory, Options, Router, choose_routers
from ir3de.scripts.routers.baselines import BASELINES
from ir3de.scripts.routers.encoders import default_encoder
from ir3de.scripts.routers.ours import CHAIN, FEATURE_MAP_ROUTERS, ours
from ir3de.scripts.routers.peers import PEERS

TRAIN, TESTS = "train", ("test", "test_shift")
ON_REQUEST = ("modem", CHAIN, *FEATURE_MAP_ROUTERS, *PEERS)  # slow, part of another, or another project's


@dataclass
class DataSet:
    """
    Labelled prompts to compare routers on.

    Args:
        name (`str`): for people.
        train (`list[Row]`): to fit and to choose on.
        tests (`dict[str, list[Row]]`): by split, prompts of the domains of `train`.
        outside (`dict[str, list[Row]]`): by split, prompts that no domain should claim.
        left_out (`dict[str, dict[str, int]]`): by split and domain, rows whose domain has no training rows.
    """

    name: str
    train: list[Row]
    tests: dict[str, list[Row]] = field(default_factory=dict)
    outside: dict[str, list[Row]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def domains(self) -> list[str]:
        """Those of the training prompts, sorted."""
        return sorted({row.domain for row in self.train})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de benchmark`."""
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="NAME=FILE[,FILE]",
        help="JSON Lines, plain or .gz, with `text`, `domain`, `split` (train, test, test_shift) and, if known,"
        " `source`; repeatable. Several files are read as one data set",
    )
    parser.add_argument("--text-column", default="text", help="name of the column with the prompt (default: text)")
    parser.add_argument("--domain-column", default="domain", help="name of the column with the domain")
    parser.add_argument("--oos-domain", default="oos", help="domain of test prompts that no expert should answer")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for results.md, results.json and plots")
    parser.add_argument(
        "--routers",
        metavar="NAMES",
        help="comma-separated; default: all but modem (slow), ir3de-chain (a second opinion), those of single feature"
        " maps, and other projects'",
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
    """Runs the comparison and writes what it measured after every router, so that little is lost if it stops."""
    shots = _numbers(args.few_shot)
    data = [read_data(entry, args) for entry in args.data]
    if len({d.name for d in data}) < len(data):
        raise ValueError("Two --data have the same name: name them apart, or join their files with a comma.")
    tokenizer, embeddings = _source(args)
    known: dict[str, Factory] = {**ours(tokenizer, embeddings), **BASELINES, **PEERS}
    names = args.routers.split(",") if args.routers else [name for name in known if name not in ON_REQUEST]
    routers = choose_routers(known, names)
    options = Options(args.encoder or default_encoder(), args.modem_encoder, args.max_train_per_domain or None)
    made = {name: make(options) for name, make in routers.items()}  # what is missing shows before anything is measured
    results = {"settings": _settings(args, made), "data": [describe_data(d) for d in data], "runs": [], "few_shot": []}
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=len(data) * len(made) * (1 + len(shots) * args.seeds), desc="Comparing", disable=None)
    for d in data:
        for name, make in routers.items():
            progress.set_postfix_str(f"{name} on {d.name}")
            results["runs"].append({"data": d.name, "router": name, **compare(make(options), d, tokenizer)})
            progress.update()
            for n in shots:
                for seed in range(args.seeds):
                    figures = few_shot(make(replace(options, seed=seed)), d, n, seed)
                    results["few_shot"].append({"data": d.name, "router": name, "shots": n, "seed": seed, **figures})
                    progress.update()
            (output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    progress.close()
    print(write_report(results, output))
    return 0


def read_data(entry: str, args: argparse.Namespace) -> DataSet:
    """Reads one `--data`.

    Raises:
        ValueError: it is not NAME=FILE, or has no two domains to learn or nothing to test on.
    """
    name, equals, files = entry.partition("=")
    if not equals or not name or not files:
        raise ValueError(f"--data takes NAME=FILE or NAME=FILE,FILE, got {entry!r}.")
    splits = {split: _read_split(files.split(","), split, args) for split in (TRAIN, *TESTS)}
    train = splits.pop(TRAIN)
    kept = sample_per_domain([row.domain for row in train], args.max_train or None, seed=0)
    data = DataSet(name, [train[i] for i in kept])
    if len(data.domains) < 2:
        raise ValueError(f"{name}: rows whose `split` is 'train' must have at least two domains; got {data.domains}.")
    for split, rows in splits.items():
        known = [row for row in rows if row.domain in set(data.domains)]
        if not known:
            continue
        data.tests[split] = sample_rows(known, args.max_test)
        data.outside[split] = sample_rows([row for row in rows if row.domain == args.oos_domain], args.max_test)
        unknown = Counter(row.domain for row in rows) - Counter(row.domain for row in known)
        data.left_out[split] = {domain: n for domain, n in unknown.items() if domain != args.oos_domain}
        for domain, n in data.left_out[split].items():
            print(f"{name}, {split}: {n} rows of {domain!r} are left out, because it has no training rows.")
    if not data.tests:
        raise ValueError(f"{name}: no rows whose `split` is {' or '.join(TESTS)} and whose domain has training rows.")
    return data


def _read_split(files: Sequence[str], split: str, args: argparse.Namespace) -> list[Row]:
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no file {file}: --data takes files of JSON Lines.")
    return list(read_rows(RowSource(tuple(files), args.text_column, args.domain_column, split, (f"split={split}",))))


def compare(router: Router, data: DataSet, tokenizer: Any) -> dict[str, Any]:
    """Fits a router and measures it on every split.

    Returns:
        `dict`: `choice`, `fit_seconds`, `bytes`, `latency` (seconds a prompt, `single` and in a `batch`, of
        `routing` and of `tokenizing` alone) and `splits`.
    """
    started = time.perf_counter()
    router.fit([row.text for row in data.train], [row.domain for row in data.train])
    fit_seconds = time.perf_counter() - started
    splits = {split: measure(router, rows, data.outside[split]) for split, rows in data.tests.items()}
    texts = [row.text for row in next(iter(data.tests.values()))]
    seconds = latency({"routing": router.route, "tokenizing": lambda batch: tokenize(tokenizer, batch)}, texts)
    fit_seconds += router.encoded * seconds["batch"]["routing"]  # what the cache saved
    memory = {"bytes": router.nbytes, "latency": seconds, "fit_seconds": fit_seconds}
    return {"choice": router.choice, **memory, "splits": splits}


def tokenize(tokenizer: Any, texts: list[str]) -> Any:
    """Tokenizes as a route does, the yardstick of its cost."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)


def measure(router: Router, rows: Sequence[Row], outside: Sequence[Row]) -> dict[str, Any]:
    """Accuracy, calibration and, where there are rows outside of all domains, how well these are told apart."""
    p = router.scores([row.text for row in rows], cached=True)
    labels = np.searchsorted(router.domains, [row.domain for row in rows])
    bins = reliability(p.max(axis=1), p.argmax(axis=1) == labels)
    figures = {
        "prompts": len(rows),
        "macro_accuracy": macro_accuracy(labels, p),
        "standard_error": standard_error(labels, p),
        "micro_accuracy": float((p.argmax(axis=1) == labels).mean()),
        "calibration_error": calibration_error(bins),
        "reliability": bins,
        "domains": {router.domains[label]: recall for label, recall in recalls(labels, p).items()},
        "sources": by_source(rows, p.argmax(axis=1) == labels),
    }
    if outside:
        far = router.scores([row.text for row in outside], cached=True)
        figures["out_of_scope_auroc"] = auroc(p.max(axis=1), far.max(axis=1))
    return figures


def by_source(rows: Sequence[Row], right: Any) -> dict[str, dict[str, Any]]:
    """Accuracy and number of prompts of each domain and source."""
    sources: dict[str, list[bool]] = {}
    for row, value in zip(rows, right, strict=True):
        sources.setdefault(f"{row.domain}/{row.source}", []).append(bool(value))
    return {name: {"accuracy": float(np.mean(v)), "prompts": len(v)} for name, v in sorted(sources.items())}


def few_shot(router: Router, data: DataSet, shots: int, seed: int) -> dict[str, Any]:
    """Macro accuracy by split after fitting to a sample of so many training prompts a domain."""
    kept = sample_per_domain([row.domain for row in data.train], shots, seed)
    rows = [data.train[i] for i in kept]
    router.fit([row.text for row in rows], [row.domain for row in rows])
    macro = {}
    for split, tests in data.tests.items():
        labels = np.searchsorted(router.domains, [row.domain for row in tests])
        macro[split] = macro_accuracy(labels, router.scores([row.text for row in tests], cached=True))
    return {"choice": router.choice, "macro_accuracy": macro}


def describe_data(data: DataSet) -> dict[str, Any]:
    """What the report says of the data."""
    splits = {
        split: {"prompts": len(rows), "outside": len(data.outside[split]), "left_out": data.left_out[split]}
        for split, rows in data.tests.items()
    }
    return {"name": data.name, "domains": len(data.domains), "train": len(data.train), "splits": splits}


def _source(args: argparse.Namespace) -> tuple[Any, torch.Tensor]:
    if args.embeddings:
        return load_source(args.embeddings, args.revision, args.gguf_file)
    source = quickstart_source()
    return load_source(source["model"], gguf_file=source.get("gguf_file"))


def _settings(args: argparse.Namespace, routers: Sequence[str]) -> dict[str, Any]:
    return {
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


def _numbers(text: str | None) -> list[int]:
    try:
        numbers = [int(part) for part in (text or "").split(",") if part]
    except ValueError:
        numbers = [0]
    if any(number < 2 for number in numbers):
        raise ValueError(f"--few-shot takes whole numbers of at least 2, such as 20,50,200; got {text!r}.")
    return numbers


main = command("benchmark", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
