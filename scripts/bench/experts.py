"""`python scripts/bench/experts.py`: what experts cost: adapters on one base, a budget of two, a mixed batch."""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from ir3de.batch_ir3de import Prompts
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel, feature_space
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import as_chat
from ir3de.scripts.fitting.embedded import build
from ir3de.specs_ir3de import ExpertSpec
from ir3de.statistics_ir3de import DomainStatistics, StatisticsCollector

QUESTIONS = (
    "Write a Python function that reverses list number {}.",
    "Find the roots of the polynomial x^2 - {}x + 6.",
    "How does friction slow a block of {} kg that slides down an incline?",
    "What caused the fall of the Roman Empire in year {}?",
    "Is it ever right to lie, according to Kant, in case {}?",
)
_WORDS = 10  # of each tiny domain
# Of resident memory: safetensors keeps 64 bytes of each tensor that it ever reads (0.6 to 0.8), so loads cost a little.
_MAX_GROWTH = 0.05


def main() -> int:
    """Prints what the chosen part measures, or what all three do; 1 if memory grew in a soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["adapters", "budget", "mixed"], help="default: all three")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="budget: go on routing for so long")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    steady = True
    if args.part in (None, "adapters"):
        adapters()
    if args.part in (None, "budget"):
        steady = budget(args.soak)
    if args.part in (None, "mixed"):
        mixed()
    return 0 if steady else 1


def adapters(switches: int = 20) -> None:
    """Memory of the quickstart's five adapters on one base against that base, switching, and the first event."""
    pipe = _quickstart()
    names, pool = pipe.model.config.expert_names, pipe.experts
    pipe(QUESTIONS[0], generate=False)
    print(f"first streamed event: {1e3 * _first_event(pipe):.0f} ms, nothing loaded")
    one = _resident()
    locals_ = [pool.load(name) for name in names]
    five, [loaded] = _resident(), pipe.loaded_experts
    base = sum(p.nbytes for name, p in locals_[0].model.named_parameters() if "lora" not in name)
    print(f"first streamed event: {1e3 * _first_event(pipe):.0f} ms, all loaded")
    print(f"{len(loaded['experts'])} experts {loaded['bytes']:,} bytes, their base {base:,}", end="")
    print(f": {loaded['bytes'] / base:.3f} times; resident memory grew by {five - one:.0f} MiB after the first")
    times = []
    for index in range(switches):
        spec = pool.spec(names[index % len(names)])
        times.append(_timed(lambda spec=spec: locals_[0]._activate(spec))[0])  # type: ignore[misc]
    print(f"switching: median {1e3 * statistics.median(times):.1f} ms, at most {1e3 * max(times):.1f} ms")


def budget(soak: float, experts: int = 20, prompts: int = 200) -> bool:
    """Peak memory of routing to many experts, two of them loaded, against that of two; whether a soak kept memory."""
    with tempfile.TemporaryDirectory() as folder:
        pipe, texts = _tiny(Path(folder), experts)
        before = _resident()
        with _peak() as two:
            for name in pipe.model.config.expert_names[:2]:
                pipe.experts.generate(name, [next(texts)], None, max_new_tokens=2, do_sample=False)
        with _peak() as many:
            routed = [_route(pipe, next(texts)) for _ in range(prompts)]
        used, loads = len({expert for expert, _ in routed}), sum(load for _, load in routed)
        print(f"before {before:.0f} MiB; peak with two experts {two[0]:.0f} MiB; peak of {prompts} prompts", end="")
        print(f" over {used} experts, {loads} loads: {many[0]:.0f} MiB, {many[0] / two[0]:.3f} times", flush=True)
        return _soak(pipe, texts, soak) if soak else True


def mixed(prompts: int = 64, rounds: int = 2) -> None:
    """A batch over five experts against the sum of direct batched calls of their pipelines."""
    pipe = _quickstart()
    pool, options = pipe.experts, {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    texts = [QUESTIONS[index % len(QUESTIONS)].format(index) for index in range(prompts)]
    shares = defaultdict(list)
    for text, record in zip(texts, pipe(texts, generate=False), strict=True):
        shares[record["expert"]].append(text)
    for name in pipe.model.config.expert_names:
        pool.load(name)

    def direct() -> None:
        """The same prompts without the pool around the models."""
        for name, share in shares.items():
            local, spec = pool.load(name), pool.spec(name)
            local._activate(spec)
            chats = [as_chat(text, spec.get("system_prompt")) for text in share]
            local.pipe(chats, batch_size=len(chats), return_full_text=False, **options)

    times = [(_timed(direct), _timed(lambda: pipe(texts, **options))) for _ in range(rounds)]  # in turn
    print(f"{prompts} prompts: {', '.join(f'{name} {len(share)}' for name, share in shares.items())}")
    for index, clock in enumerate(("wall", "CPU")):
        calls = min(of_direct[index] for of_direct, _ in times)
        ours = min(of_pipeline[index] for _, of_pipeline in times)
        print(f"{clock}: direct calls {calls:.1f} s, one mixed batch {ours:.1f} s, {ours / calls:.3f} times")


def _quickstart() -> IR3DERoutingPipeline:
    return IR3DERoutingPipeline(IR3DEModel.from_pretrained(build()), device="cpu")


def _first_event(pipe: IR3DERoutingPipeline) -> float:
    """Seconds to the first event of a stream, which says where it goes."""
    start = time.perf_counter()
    events = pipe.stream(QUESTIONS[1].format(5), max_new_tokens=4)
    next(events)
    seconds = time.perf_counter() - start
    list(events)
    return seconds


def _tiny(folder: Path, experts: int) -> tuple[IR3DERoutingPipeline, Iterator[str]]:
    """A router over small random LMs, each with words of its own, of which two are loaded; and prompts for it."""
    names = [f"expert-{index:02}" for index in range(experts)]
    router, texts = tiny_router([{"name": name, "model": str(folder / name)} for name in names])
    for seed, name in enumerate(names):
        _save_expert(folder / name, router.tokenizer, seed)
    return IR3DERoutingPipeline(router, device="cpu", max_loaded_experts=2), texts


def tiny_router(specs: list[ExpertSpec]) -> tuple[IR3DEModel, Iterator[str]]:
    """A router whose experts have words of their own each, which takes no time to load; and prompts for it.

    Args:
        specs (`list[dict]`): of its experts.
    """
    names = [spec["name"] for spec in specs]
    words = {name: [f"{name}-{word}" for word in range(_WORDS)] for name in names}
    tokenizer = _tokenizer(["<pad>", "<unk>", "<eos>", *chain(*words.values())])
    embeddings = 0.1 * torch.randn(len(tokenizer), len(names), generator=torch.Generator().manual_seed(0))
    for column, name in enumerate(names):
        embeddings[tokenizer.convert_tokens_to_ids(words[name]), column] += 1
    config = IR3DEConfig(experts=specs)
    domains = {name: _statistics(config, tokenizer, embeddings, words[name]) for name in names}
    router = IR3DEModel.from_statistics(config, embeddings, domains, tokenizer)
    draw = random.Random(0)
    texts = (" ".join(draw.choices(words[draw.choice(names)], k=8)) for _ in iter(int, 1))
    return router, texts


def _tokenizer(tokens: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    words = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def _save_expert(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Saves a Llama of 42 million random weights, so that two of them outweigh the process around them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _statistics(
    config: IR3DEConfig, tokenizer: PreTrainedTokenizerFast, embeddings: torch.Tensor, words: list[str]
) -> DomainStatistics:
    """The statistics of a domain whose prompts are its words in any order."""
    prepared = config.features.prepare(embeddings)(embeddings)
    collector = StatisticsCollector(prepared, feature_space(tokenizer, embeddings, config.features))
    draw, vocabulary = random.Random(words[0]), tokenizer.get_vocab()
    ids = [[vocabulary[word] for word in draw.choices(words, k=8)] for _ in range(20)]
    collector.add(Prompts.of(ids))
    return collector.statistics


def _route(pipe: IR3DERoutingPipeline, text: str) -> tuple[str, bool]:
    """The expert that answered a prompt, and whether a model was loaded for it."""
    before = {row["model"] for row in pipe.loaded_experts}
    record = pipe(text, max_new_tokens=2, do_sample=False, on_error="raise")
    after = {row["model"] for row in pipe.loaded_experts}
    if len(after) > 2:
        raise RuntimeError(f"{len(after)} models are loaded where two may be: {sorted(after)}")
    return record["expert"], bool(after - before)


def _soak(pipe: IR3DERoutingPipeline, texts: Iterator[str], minutes: float) -> bool:
    """Routes for so many minutes; prints resident memory each minute, and tells whether it stayed."""
    start, first = time.monotonic(), _resident()
    prompts, loads, printed, last = 0, 0, 0, first
    print(f"minute   0: {first:6.0f} MiB", flush=True)
    while (elapsed := (time.monotonic() - start) / 60) < minutes:
        loads += _route(pipe, next(texts))[1]
        prompts += 1
        if int(elapsed) > printed:
            printed, last = int(elapsed), _resident()
            print(f"minute {printed:3}: {last:6.0f} MiB, {prompts:,} prompts, {loads:,} loads", flush=True)
    last = _resident()
    growth = last / first - 1
    print(f"soak of {minutes:g} minutes: {prompts:,} prompts, {loads:,} loads, resident memory from", end="")
    print(f" {first:.0f} to {last:.0f} MiB: {100 * growth:+.1f} %", flush=True)
    return growth <= _MAX_GROWTH


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def _resident() -> float:
    """MiB of resident memory, without what only awaits collection."""
    gc.collect()
    return float(psutil.Process().memory_info().rss / 2**20)


@contextmanager
def _peak(interval: float = 0.01) -> Iterator[list[float]]:
    """Watches resident memory, whose peak in MiB is in the list once the block ends."""
    process, peak, done = psutil.Process(), [0.0], threading.Event()

    def watch() -> None:
        """Notes the largest memory until told to stop."""
        while not done.wait(interval):
            peak[0] = max(peak[0], process.memory_info().rss / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
