"""`python scripts/bench/collecting.py`: how long collecting from Parquet takes beside tokenizing the same text on as
many cores. Both times have the start of the processes in them: small numbers of rows tell nothing.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.collecting.collect import Collection, collect
from ir3de.scripts.collecting.engines import cores, cores_for
from ir3de.scripts.data.rows import Row, RowSource, add_data_arguments, read_rows

_BATCH = 1024  # rows


def main() -> int:
    """Measures and prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_arguments(parser)
    parser.add_argument("--router", required=True, help="folder or Hub id of the router")
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7], help="sizes; rows repeat to reach them")
    parser.add_argument("--files", type=int, default=16, help="of Parquet, among which the rows are shared")
    parser.add_argument("--workers", type=int, default=cores(), help="processes at a time (default: all cores)")
    args = parser.parse_args()
    rows = list(read_rows(RowSource.of(**vars(args))))
    print("      rows  tokenizing s  collecting s   ratio")
    for size in map(int, args.rows):
        share = size // args.files
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.files):
                write(Path(folder, "data", f"{number:05d}.parquet"), rows, share)
            alone = spent(tokenize_all, args.router, [row.text for row in rows], share, args.files, args.workers)
            whole = spent(collect_all, args.router, Path(folder), args.workers)
        print(f"{share * args.files:10,d} {alone:13.1f} {whole:13.1f} {whole / alone:7.2f}", flush=True)
    return 0


def write(path: Path, rows: Sequence[Row], number: int) -> None:
    """Writes so many rows, part by part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    endless, schema = itertools.cycle(rows), pa.schema({"text": pa.string(), "domain": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, number, 1 << 16):
            part = [next(endless) for _ in range(min(1 << 16, number - start))]
            writer.write_table(pa.table({"text": [r.text for r in part], "domain": [r.domain for r in part]}, schema))


def spent(work: Callable[..., None], *arguments: object) -> float:
    """Seconds that work takes in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., None], arguments: Sequence[object]) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def collect_all(router: str, folder: Path, workers: int) -> None:
    """Collects the sums of all domains, in one pass."""
    source = RowSource((str(folder / "data"),))
    collect(Collection(router, source, None, folder / "statistics", folder / "tasks"), workers=workers)


def tokenize_all(router: str, texts: Sequence[str], share: int, files: int, workers: int) -> None:
    """Tokenizes the same texts and does nothing else, in as many processes."""
    with cores_for(workers), multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(tokenize, [(router, texts, share)] * files, chunksize=1)


def tokenize(router: str, texts: Sequence[str], number: int) -> None:
    """Tokenizes so many of the texts, over and over again."""
    model: IR3DEModel = IR3DEModel.from_pretrained(router)
    endless: Iterator[str] = itertools.islice(itertools.cycle(texts), number)
    while batch := list(itertools.islice(endless, _BATCH)):
        token_ids_of(model.tokenizer, batch, model.config.max_length)


if __name__ == "__main__":
    sys.exit(main())
