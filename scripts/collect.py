"""`ir3de collect`: makes the statistics of a domain from local text, which stays where it is.

The rows of the data are cut into shards of a fixed number of rows. Each shard's counts and sums go to a file of their
own, so that a killed collection resumes, and so that shards can be shared out: among the processes of `torchrun`, or
among the jobs of a batch queue with --part.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.scripts.command import command
from ir3de.scripts.data.rows import RowSource, add_text_arguments, read_texts
from ir3de.scripts.fitting.private import SHARE, PrivateCollector, add_privacy_arguments, check_privacy, release
from ir3de.specs_ir3de import check_expert_name
from ir3de.statistics_ir3de import DomainStatistics, StatisticsCollector, gram_from_counts

_TEXTS = 1024  # that are tokenized at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de collect`."""
    parser.add_argument("--router", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the router")
    parser.add_argument("--name", "--domain", required=True, help="of the domain")
    add_text_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="default: NAME.safetensors")
    parser.add_argument("--shards", metavar="DIR", help="folder for the shards' files; default: OUTPUT.shards")
    parser.add_argument("--shard-rows", type=int, default=65536, help="rows of a shard (default: 65536)")
    parser.add_argument(
        "--device", default="cpu", help="where prompts' rows are summed, such as cuda; torchrun gives each process one"
    )
    parser.add_argument("--part", metavar="I/N", help="only make every Nth shard, from the Ith on (from 1)")
    add_privacy_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Collects statistics."""
    torch.set_num_threads(1)  # the number of threads decides a sum's last bits; use processes to be faster
    check_expert_name(args.name)
    output = Path(args.output or f"{args.name}.safetensors")
    state = PartialState(cpu=args.device == "cpu") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    number, of = (state.process_index, state.num_processes) if state else (0, 1)
    part, parts = _part(args.part) if args.part else (0, 1)
    model = IR3DEModel.from_pretrained(args.router)
    if args.epsilon is not None:
        check_privacy(args.epsilon, args.delta, model.config.feature_map)
    device = check_device(state.device if state else args.device)
    job = Job(model, Path(args.shards or f"{output}.shards"), args, device)
    mine = list(job.fill(number * parts + part, of * parts))
    if args.part:
        print(f"{args.name}: {len(mine)} shards of part {args.part} are in {job.folder}.")
        return 0
    sums = job.total(mine)
    if state:
        sums = reduce({key: value.to(device) for key, value in sums.items()}, reduction="sum")
    if number == 0:
        job.finish({key: value.cpu() for key, value in sums.items()}, output)
    return 0


def check_device(name: str | torch.device) -> torch.device:
    """Returns a device that can sum in float64, or raises ValueError."""
    try:
        device = torch.device(name)
        torch.ones(1, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--device {name} cannot sum in float64 here ({reason}): use cpu, or a CUDA GPU.") from error
    return device


class Job:
    """
    One collection: a folder of shards, each of which is made once.

    Args:
        model ([`IR3DEModel`]): the router.
        folder (`Path`): of the shards' files.
        args (`argparse.Namespace`): the options of `ir3de collect`.
        device (`torch.device`): where prompts' rows are summed.

    Raises:
        ValueError: the folder holds shards of other data, options or another router.
    """

    def __init__(self, model: IR3DEModel, folder: Path, args: argparse.Namespace, device: torch.device) -> None:
        if args.shard_rows < 1:
            raise ValueError(f"--shard-rows must be at least 1, got {args.shard_rows}.")
        self.model, self.folder, self.args, self.device = model, folder, args, device
        self.collector = model.collector()
        sizes = [Path(data).stat().st_size if Path(data).is_file() else None for data in args.data]
        options = [
            args.data,
            sizes,
            args.text_column,
            args.where,
            args.split,
            args.shard_rows,
            args.epsilon is not None,
        ]
        about = json.dumps([self.collector.fingerprint, model.config.max_length, *options])
        self.name = hashlib.sha256(about.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        strange = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith(self.name))
        if strange:
            raise ValueError(
                f"{folder} holds shards of other data, options or another router ({strange[0]}): resume that"
                " collection, or remove the folder."
            )

    def fill(self, first: int, every: int) -> Iterator[Path]:
        """Makes the files of every so manieth shard that are not there yet, and yields all of theirs.

        Args:
            first (`int`): number of the first shard.
            every (`int`): how many processes share the shards.
        """
        texts = read_texts(RowSource.from_args(self.args), self.args.name)
        for number in tqdm(itertools.count(), desc="Collecting", unit=" shards", disable=None):
            shard = itertools.islice(texts, self.args.shard_rows)
            head = next(shard, None)
            if head is None:
                return
            path = self.folder / f"{self.name}-{number:06d}.safetensors"
            if number % every == first:
                if not path.is_file():
                    self._make(path, itertools.chain([head], shard))
                yield path
            for _ in shard:  # what is not read yet
                pass

    def _make(self, path: Path, texts: Iterator[str]) -> None:
        kind = StatisticsCollector if self.args.epsilon is None else PrivateCollector
        collector = kind(self.collector.features, self.collector.fingerprint, self.device)
        while batch := list(itertools.islice(texts, _TEXTS)):
            collector.add(self.model.tokenize(batch))
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(_sums(collector), partial)
        os.replace(partial, path)

    def total(self, shards: Iterable[Path]) -> dict[str, torch.Tensor]:
        """Counts and sums over shards; the counts are whole numbers, so their order does not matter."""
        sums = _sums(self.collector)
        for path in shards:
            with safe_open(path, framework="pt") as file:
                for key in sums:
                    sums[key] += file.get_tensor(key)
        return sums

    def finish(self, sums: Mapping[str, torch.Tensor], output: Path) -> DomainStatistics:
        """Writes the statistics file."""
        args = self.args
        if not int(sums["counts"].sum()):
            raise ValueError(f"The data of {args.name!r} have no tokens: name files with text of the domain.")
        tokens = gram_from_counts(sums["counts"], self.collector.features)
        if args.epsilon is None:
            grams = {"tokens": tokens, "prompts": sums["prompts"]}
            statistics = DomainStatistics.from_grams(grams, self.collector.fingerprint, sums["documents"])
        else:
            fingerprint = self.collector.fingerprint
            statistics = release(tokens / SHARE, sums["prompts"], fingerprint, args.epsilon, args.delta)
        partial = output.with_name(f"{output.name}.partial")
        statistics.save(partial)
        os.replace(partial, output)
        print(f"{output}: {statistics.rows('prompts'):,} prompts, {statistics.rows('tokens'):,} tokens.")
        print(f"Publish it: ir3de publish {output} --router {args.router} --name {args.name}")
        print(f"It holds no text, but see docs/privacy.md. The shards in {self.folder} may go.")
        return statistics


def _sums(collector: StatisticsCollector) -> dict[str, torch.Tensor]:
    """What a shard's file holds."""
    return {"counts": collector.counts, "documents": collector.documents, "prompts": collector.prompts.cpu()}


def _part(text: str) -> tuple[int, int]:
    """`I/N` as a number from 0 and N."""
    first, slash, parts = text.partition("/")
    if not slash or not first.isdigit() or not parts.isdigit() or not 1 <= int(first) <= int(parts):
        raise ValueError(f"--part takes I/N with I from 1 to N, such as 3/8; got {text!r}.")
    return int(first) - 1, int(parts)


main = command("collect", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
