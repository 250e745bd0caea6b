"""`python scripts/bench/routing.py ROUTER --other CHECKOUT`: what routing and fitting cost beside another version.

Each version works in a process of its own, and they take turns, so that a busy moment hits both alike. What is compared
is CPU time, on one thread, and quoted is the median of the ratios of the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
HERE = Path(__file__).resolve().parents[2]


def main() -> int:
    """Lets both versions work in turn, and prints a line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("router", metavar="DIR", help="folder of a router that both versions read")
    parser.add_argument("--other", metavar="DIR", help="a checkout of the other version; default: this one again")
    parser.add_argument("--rounds", type=int, default=15, help="turns (default: 15)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.router)
    with tempfile.TemporaryDirectory() as folder:
        versions = [
            _start(Path(folder, "here"), args.router, HERE),
            _start(Path(folder, "other"), args.router, args.other or HERE),
        ]
        print("case                    here us   other us   here/other   least and most of the ratios")
        cases = [json.loads(_said(version)) for version in versions]
        for case in cases[0]:
            seconds = []
            for turn in range(args.rounds + 1):
                pair = [float(_ask(version, case)) for version in versions]
                if turn > 0:  # the first is to warm up
                    seconds.append(pair)
            ratios = [here / other for here, other in seconds]
            here = 1e6 * statistics.median(pair[0] for pair in seconds)
            other = 1e6 * statistics.median(pair[1] for pair in seconds)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{case:20} {here:10.1f} {other:10.1f} {statistics.median(ratios):12.3f}   {spread}", flush=True)
        for version in versions:
            version.communicate()
    return 0


def work(router: str) -> int:
    """Does one round of a case whenever it is asked to, and says the CPU seconds a prompt that it took."""
    cases = make_cases(router)
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        prompts, case = cases[line.strip()]
        started = time.process_time()
        case()
        print((time.process_time() - started) / prompts, flush=True)
    return 0


def make_cases(router: str) -> dict[str, tuple[int, Callable[[], Any]]]:
    """What is measured, by name: how many prompts a round has, and the round."""
    import torch

    from ir3de import IR3DEModel, IR3DERoutingPipeline

    torch.set_num_threads(1)
    # Enough for a round that what the other process left in the caches does not count.
    texts = [f"{number}. {PROMPT}" for number in range(256)]

    def one_by_one(**choice: Any) -> None:
        """Routes prompts in calls of their own."""
        for text in texts * 2:
            pipe(text, **choice)

    def fit() -> None:
        """Makes the statistics of two domains, and fits a router to them."""
        made = {}
        for name in model.config.expert_names:
            collector = model.collector()
            prompts = model.tokenize(texts)
            collector.add(*([prompts] if hasattr(prompts, "lengths") else prompts))  # a plain pair in older versions
            made[name] = collector.statistics
        model.fit(made)

    model = IR3DEModel.from_pretrained(router).eval()
    pipe = IR3DERoutingPipeline(model, device="cpu", generate=False)
    cases: dict[str, tuple[int, Callable[[], Any]]] = {}
    for variant in ("top-k", "prompt"):
        cases[f"single, {variant}"] = 2 * len(texts), lambda v=variant: one_by_one(variant=v)  # type: ignore[misc]
        cases[f"batch, {variant}"] = len(texts), lambda v=variant: pipe(texts, variant=v)  # type: ignore[misc]
    cases["fit"] = len(texts) * len(model.config.expert_names), fit
    return cases


def _start(folder: Path, router: str, checkout: str | Path) -> subprocess.Popen[str]:
    """A process that works with the package of a checkout, whatever the checkout's folder is called."""
    folder.mkdir()
    folder.joinpath("ir3de").symlink_to(Path(checkout).resolve())
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, router, "--work"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(version: subprocess.Popen[str], case: str) -> str:
    """What a version says to a round of a case."""
    assert version.stdin is not None
    version.stdin.write(f"{case}\n")
    version.stdin.flush()
    return _said(version)


def _said(version: subprocess.Popen[str]) -> str:
    """The next line of a version."""
    assert version.stdout is not None
    line = version.stdout.readline()
    if not line:
        raise RuntimeError("A version ended early: see above.")
    return line


if __name__ == "__main__":
    sys.exit(main())
