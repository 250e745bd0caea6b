"""`python scripts/bench/fit.py`: what a fit costs beside tokenizing, and whether memory grows with the corpus."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.scripts.command import values_of
from ir3de.scripts.data.rows import Row, RowSource, add_data_arguments, read_rows
from ir3de.scripts.data.sources import load_quickstart_source
from ir3de.scripts.data.spool import Spool
from ir3de.scripts.fitting.fit import fit_router
from ir3de.scripts.fitting.options import FitOptions, add_choice_arguments
from ir3de.specs_ir3de import ExpertSpec

_BATCH = 1024


def main() -> int:
    """Measures and prints a line a size; each size in a process of its own, whose peak memory is then its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_arguments(parser)
    add_choice_arguments(parser)
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e6, 1e7], help="sizes; rows repeat to reach them")
    args = parser.parse_args()
    source, options = RowSource.of(**vars(args)), values_of(FitOptions, vars(args))
    print("    tokens  tokenizing s   fit s  ratio  peak memory MB")
    for tokens in args.tokens:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (source, options, int(tokens))), flush=True)
    return 0


def measure(source: RowSource, options: FitOptions, tokens: int) -> str:
    """Times tokenizing alone and a whole fit, from text in memory to W, of a corpus of so many tokens."""
    tokenizer, embeddings = load_quickstart_source()
    rows = list(read_rows(source))
    lengths = [len(ids) for ids in tokenizer([row.text for row in rows], add_special_tokens=False)["input_ids"]]
    repeats = max(1, round(tokens / sum(min(length, options.max_length) for length in lengths)))

    def corpus() -> Iterator[Row]:
        """The rows, again and again."""
        return itertools.chain.from_iterable(itertools.repeat(rows, repeats))

    start = time.perf_counter()
    _tokenize(corpus(), tokenizer)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    experts: list[ExpertSpec] = [{"name": name} for name in sorted({row.domain for row in rows})]
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        spool.fill(corpus(), tokenizer, options.max_length)
        fit_router(IR3DEConfig(experts=experts), tokenizer, embeddings, spool, options)
    fit = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{repeats * sum(lengths):10,d} {alone:13.1f} {fit:7.1f} {fit / alone:6.2f} {peak:15.0f}"


def _tokenize(rows: Iterator[Row], tokenizer: Any) -> None:
    while batch := list(itertools.islice(rows, _BATCH)):
        tokenizer([row.text for row in batch], add_special_tokens=False, return_attention_mask=False, verbose=False)


if __name__ == "__main__":
    sys.exit(main())
