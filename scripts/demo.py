"""`make demo`: routes ten prompts with the embedded router and lets the chosen experts answer two of them."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import Any

PROMPTS = (
    "Write a Python function that reverses a linked list.",
    "Why does my for loop skip the last element of the array?",
    "Prove that the square root of 2 is irrational.",
    "Find the roots of the polynomial x^2 - 5x + 6.",
    "How does friction slow a block that slides down an incline?",
    "What is the wavelength of a photon emitted by a hydrogen atom?",
    "What caused the fall of the Roman Empire?",
    "How did the New Deal change the role of the federal government?",
    # Ambiguous on purpose: mathematics or code, physics or philosophy.
    "Explain how to compute prime numbers with a sieve.",
    "Does quantum mechanics leave room for free will?",
)
ANSWERED = (0, 6)


def main() -> int:
    """Runs the demo."""
    os.environ["TQDM_DISABLE"] = "1"  # before any import that brings tqdm: no library's bars between the lines
    from transformers import pipeline
    from transformers.utils import logging

    import ir3de
    from ir3de.scripts.fitting.embedded import build
    from ir3de.scripts.reports.route import deciding_tokens

    ir3de.register()
    logging.set_verbosity_error()
    started = time.perf_counter()
    print("Building the embedded router from quickstart/ (once, then cached) ...", flush=True)
    # transformers lists its own tasks alone as types.
    router: Any = pipeline("ir3de-routing", model=build(), trust_remote_code=True)  # type: ignore[call-overload]
    print(
        f"Ready in {time.perf_counter() - started:.0f} s.\n\n{'expert':<11}{'score':>6}  prompt  (tokens that decided)"
    )
    records = router(list(PROMPTS), generate=False, explain=True)
    for prompt, record in zip(PROMPTS, records, strict=True):
        second = record["ranking"][1]
        print(f"{record['expert']:<11}{record['score']:>6.2f}  {prompt}")
        print(f"{'':<19}({deciding_tokens(record)}; next: {second['expert']} {second['score']:.2f})")
    print("\nLoading the LLM that the experts share ...", flush=True)
    router.experts.preload([records[index]["expert"] for index in ANSWERED], background=False)
    for index in ANSWERED:
        for event in router.stream(PROMPTS[index], max_new_tokens=60, do_sample=False):
            if event["event"] == "route":
                print(f"\n> {PROMPTS[index]}\n[{event['expert']}] ", end="", flush=True)
            elif event["event"] == "text":
                print(event["text"], end="", flush=True)
        print()
    print(textwrap.dedent(NEXT))
    return 0


NEXT = """
The answers are those of a very small LLM (135 million parameters); the routes are what to look at. Try next:

    .venv/bin/ir3de route "$(.venv/bin/ir3de quickstart)" "your own prompt"
    .venv/bin/ir3de fit --help      # a router for your own domains, from labelled text
"""

if __name__ == "__main__":
    sys.exit(main())
