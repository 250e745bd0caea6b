"""`python scripts/bench/scale.py`: a thousand experts beside five, outcomes beside none, a table of Llama 3's size,
what a GPU does, and what the short cuts of a single prompt save.

Each part may be run alone: `python scripts/bench/scale.py look_up`.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, PreTrainedConfig

from ir3de.batch_ir3de import Prompts, prompt_weights
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.outcome_rows_ir3de import Outcome
from ir3de.outcomes_ir3de import Ledger, OutcomesCollector, whole
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import token_ids_of
from ir3de.route_selector_ir3de import most_certain
from ir3de.scripts.data.sources import load_quickstart_source
from ir3de.specs_ir3de import ExpertSpec
from ir3de.statistics_ir3de import KINDS, DomainStatistics, gram_from_counts

PROMPT = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. " * 2


def main() -> int:
    """Prints what they cost."""
    parts = {part.__name__: part for part in (many_experts, outcomes, many_outcomes, large_table, look_up, short_cuts)}
    for name in sys.argv[1:] or parts:
        parts[name]()
    return 0


def many_experts(prompts: int = 1000, rounds: int = 5) -> None:
    """Batch routing of prompts of about 50 tokens by random routers of 5 and of 1,000 experts, tokenizing included."""
    tokenizer, embeddings = load_quickstart_source()
    texts = [f"{index}. {PROMPT}" for index in range(prompts)]
    routers: dict[str, Callable[[], Any]] = {"tokenizing alone": lambda: tokenizer(texts, add_special_tokens=False)}
    for number in (5, 1000):
        experts: list[ExpertSpec] = [{"name": f"expert-{index}"} for index in range(number)]
        config = IR3DEConfig(vocab_size=len(embeddings), hidden_size=embeddings.shape[1], experts=experts)
        model = IR3DEModel(config).eval()
        model.embed_tokens.weight.data = embeddings
        pipe = IR3DERoutingPipeline(model, tokenizer, device="cpu", generate=False, top_n=5)
        for variant in ("top-k", "prompt"):
            routers[f"{number} experts, {variant}"] = lambda p=pipe, v=variant: p(texts, variant=v)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in routers}
    for _ in range(rounds + 1):  # in turn, so that a busy moment hits all alike; the first round warms up
        for name, route in routers.items():
            start = time.perf_counter()
            route()
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{name:22} {1e6 * statistics.median(values[1:]) / prompts:8.0f} us a prompt")


def outcomes(prompts: int = 1000, rounds: int = 15) -> None:
    """Routing with outcomes beside routing without, by routers with an expert a domain and with many on both sides, of
    prompts of about 50 tokens in a batch and one by one, tokenizing included.
    """
    tokenizer, embeddings = load_quickstart_source()
    texts = [f"{index}. {PROMPT}" for index in range(prompts)]
    for experts, domains in ((5, 5), (200, 100)):
        pipes = {}
        for kind in ("without", "with"):
            specs: list[ExpertSpec] = [
                {"name": f"name-{index:03}", "domains": [f"name-{index % domains:03}"]} for index in range(experts)
            ]
            names = [f"name-{index:03}" for index in range(domains)]
            config = IR3DEConfig(
                vocab_size=len(embeddings),
                hidden_size=embeddings.shape[1],
                domains=names,
                experts=specs,
                variant="prompt",
            )
            model = IR3DEModel(config).eval()
            model.embed_tokens.weight.data = embeddings
            if kind == "with":
                model._take_on(config, _judged(names, config.expert_names))
            pipes[kind] = IR3DERoutingPipeline(model, tokenizer, device="cpu", generate=False, top_n=5)
        for way, requests, size in (("in a batch", [texts] * rounds, prompts), ("one by one", texts, 1)):
            times: dict[str, list[float]] = {kind: [] for kind in pipes}
            for request in (requests[0], *requests):  # the first call warms up
                # In turn, request by request: a busy moment and what the last call left in the caches hit both alike.
                for kind, pipe in pipes.items():
                    start = time.perf_counter()
                    pipe(request)
                    times[kind].append(time.perf_counter() - start)
            without, with_them = (1e6 * statistics.median(times[kind][1:]) / size for kind in ("without", "with"))
            print(
                f"{experts:4} experts, {domains:4} domains, {way}: {without:7.0f} us a prompt without outcomes,"
                f" {with_them:7.0f} with ({100 * (with_them / without - 1):+.0f} %)"
            )


def many_outcomes(number: int = 1_000_000, rounds: int = 3) -> None:
    """Adding outcomes from a file, each of a prompt of its own without a domain, beside routing the prompts;
    and how much memory that takes.
    """
    tokenizer, embeddings = load_quickstart_source()
    names = [f"name-{index}" for index in range(5)]
    config = IR3DEConfig(
        vocab_size=len(embeddings),
        hidden_size=embeddings.shape[1],
        experts=[{"name": name} for name in names],
        variant="prompt",
    )
    model = IR3DEModel(config).eval()
    model.embed_tokens.weight.data = embeddings
    model.tokenizer = tokenizer
    pipe = IR3DERoutingPipeline(model, tokenizer, device="cpu", generate=False, top_n=5)
    texts = [f"{index}. {PROMPT}" for index in range(1000)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "judged.jsonl")
        with path.open("w", encoding="utf-8") as file:
            for index in range(number):
                row = {"text": f"{index}. {PROMPT}", "expert": names[index % 5], "score": index % 2, "cost": 0.001}
                file.write(json.dumps(row) + "\n")
        pipe(texts)
        routing = []
        for _ in range(rounds):
            start = time.process_time()
            pipe(texts)
            routing.append((time.process_time() - start) / len(texts))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        model._counted(path, None)
        adding = (time.process_time() - start) / number
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{number:,} outcomes: {1e6 * adding:.0f} us each to add, {1e6 * min(routing):.0f} us to route its prompt"
        f" ({adding / min(routing):.2f} times); {grown / 1024:.0f} MB of memory"
    )


def _judged(domains: list[str], experts: list[str]) -> Ledger:
    """Random outcomes of all pairs."""
    draw = np.random.default_rng(0)
    collector = OutcomesCollector(domains)
    for expert in experts:
        rows = [Outcome(f"{i}", expert, float(draw.random()), float(draw.random()), 1.0) for i in range(len(domains))]
        collector.add(rows, whole(np.arange(len(domains)), len(domains)))
    return collector.ledger


def large_table(vocab_size: int = 128_256, hidden_size: int = 4096, domains: int = 10) -> None:
    """Solve and table of both kinds of row over a random vocabulary, from sums that are given."""
    generator = torch.Generator().manual_seed(0)
    experts: list[ExpertSpec] = [{"name": f"expert-{index}"} for index in range(domains)]
    config = IR3DEConfig(vocab_size=vocab_size, hidden_size=hidden_size, experts=experts, fingerprint="random")
    model = IR3DEModel(config).bfloat16().eval()
    model.token_router.float(), model.prompt_router.float()
    model.embed_tokens.weight.data.normal_(generator=generator)
    counts = torch.randint(0, 2, (vocab_size,), generator=generator) * (torch.arange(vocab_size) < 8192)
    gram = gram_from_counts(counts, model.embed_tokens.weight.detach())
    sums = DomainStatistics.from_grams(dict.fromkeys(KINDS, gram), "random")
    start = time.perf_counter()
    model.fit({expert["name"]: sums for expert in experts})
    solved = time.perf_counter()
    model.token_table("top-k"), model.token_table("prompt")
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{vocab_size:,} x {hidden_size:,}, {domains} experts: both solves {solved - start:.1f} s, both tables", end=""
    )
    print(f" {done - solved:.1f} s, peak memory {peak:.1f} GB")


def look_up(prompts: int = 32768, tokens: int = 60, rounds: int = 5) -> None:
    """Routing alone, of prompts of random token ids, on every device at hand."""
    generator = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(49152, (prompts * tokens,), generator=generator), torch.full((prompts,), tokens)
    for number in (5, 1000):
        experts: list[ExpertSpec] = [{"name": f"expert-{index}"} for index in range(number)]
        model = IR3DEModel(IR3DEConfig(vocab_size=49152, hidden_size=576, experts=experts)).eval()
        for device in ["cpu", "cuda"][: 1 + torch.cuda.is_available()]:
            model.to(device)
            for variant in ("top-k", "prompt"):
                times = []
                with torch.inference_mode():
                    for _ in range(rounds + 1):  # the first makes the table
                        start = time.perf_counter()
                        model.route(ids.to(device), lengths.to(device), variant).cpu()
                        times.append(time.perf_counter() - start)
                seconds = statistics.median(times[1:])
                print(f"{number:5} experts, {variant:7} on {device:5} {1e6 * seconds / prompts:8.2f} us a prompt")


def short_cuts(calls: int = 2000) -> None:
    """What a route of a single prompt does, beside the plain way to do the same: medians of calls in turn."""
    tokenizer, embeddings = load_quickstart_source()
    config = IR3DEConfig(
        vocab_size=len(embeddings), hidden_size=embeddings.shape[1], experts=[{"name": f"expert-{i}"} for i in range(5)]
    )
    model = IR3DEModel(config).eval()
    pipe = IR3DERoutingPipeline(model, tokenizer, device="cpu")
    [ids] = token_ids_of(tokenizer, [PROMPT], config.max_length)
    one, as_many = Prompts.of([ids]), Prompts.of([ids, ids[:1]])  # the other prompt is of one token
    entropies = model.token_table("top-k").entropies
    of_one, of_many = entropies[one.token_ids], entropies[as_many.token_ids]
    inputs = pipe.preprocess([PROMPT])
    plain_read = PreTrainedConfig.__getattribute__
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "tokenizing": (
            lambda: token_ids_of(tokenizer, [PROMPT], config.max_length),
            lambda: tokenizer([PROMPT], add_special_tokens=False, return_attention_mask=False, verbose=False),
        ),
        "ids as a tensor": (lambda: Prompts.of([ids]), lambda: (torch.tensor(ids), torch.tensor([len(ids)]))),
        "device": (lambda: pipe.forward(inputs), lambda: Pipeline.forward(pipe, inputs)),
        "weights": (lambda: prompt_weights(one), lambda: prompt_weights(as_many)),
        "certain tokens": (
            lambda: most_certain(of_one, one.lengths, 10),
            lambda: most_certain(of_many, as_many.lengths, 10),
        ),
        "ten fields": (
            lambda: [config.variant for _ in range(10)],
            lambda: [plain_read(config, "variant") for _ in range(10)],
        ),
    }
    for name, pair in pairs.items():
        times: tuple[list[float], list[float]] = [], []
        for _ in range(calls):
            for way, taken in zip(pair, times, strict=True):
                start = time.perf_counter()
                way()
                taken.append(time.perf_counter() - start)
        short, plain = (1e6 * statistics.median(taken) for taken in times)
        print(f"{name:16} {short:8.1f} us, the plain way {plain:8.1f} us")


if __name__ == "__main__":
    sys.exit(main())
