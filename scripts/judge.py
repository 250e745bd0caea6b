"""`ir3de judge`: asks a router's experts, scores their answers, and writes outcomes with seconds, tokens and costs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ir3de.scripts.command import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de judge`."""
    parser.add_argument("router", help="folder or Hub id")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="with `text`, and `expected` unless a judge scores"
    )
    parser.add_argument("--by", required=True, choices=("exact", "contains", "regex", "numbers", "judge"), help="how")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON Lines of outcomes; gone on with if there")
    parser.add_argument("--experts", metavar="NAMES", help="comma-separated; default: all that can answer")
    parser.add_argument("--at-once", type=int, default=8, help="answers that are waited for at a time (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (default: 512)")
    parser.add_argument("--judge-endpoint", metavar="URL", help="of an OpenAI-compatible server, for --by judge")
    parser.add_argument("--judge-model", metavar="NAME", help="the judge's name there")
    parser.add_argument(
        "--rubric", metavar="FILE", help="text for the judge, with {prompt}, {answer}, maybe {expected}"
    )


def run(args: argparse.Namespace) -> int:
    """Asks and scores."""
    from ir3de.experts_ir3de import ExpertPool
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.scripts.judging.asking import failures_of, judge
    from ir3de.scripts.judging.questions import read_questions
    from ir3de.scripts.judging.scoring import asking, check_patterns, scorer_of

    if args.at_once < 1:
        raise ValueError(f"--at-once must be at least 1, got {args.at_once}.")
    if args.by == "judge":
        if not (args.judge_endpoint and args.judge_model and args.rubric):
            raise ValueError("--by judge needs --judge-endpoint, --judge-model and --rubric.")
        rubric = Path(args.rubric).read_text(encoding="utf-8")
        score = asking(_judge_at(args.judge_endpoint, args.judge_model), rubric)
    else:
        score = scorer_of(args.by)
    questions = read_questions(args.data, needs_expected=args.by != "judge")
    if args.by == "regex":
        check_patterns(questions)
    model = IR3DEModel.from_pretrained(args.router)
    pool = ExpertPool(model.config, device=model.device)
    names = args.experts.split(",") if args.experts else [n for n in model.config.expert_names if pool.can_answer(n)]
    if not names:
        raise ValueError(f"None of the experts {model.config.expert_names} can answer: give their specs a `model`.")
    pool.check(names)
    tokenizer: Any = model.tokenizer
    result = judge(
        questions,
        [pool.spec(name) for name in names],
        lambda name, prompt: _said(pool.generate(name, [_chat(prompt)], 1, max_new_tokens=args.max_new_tokens)[0]),
        score,
        lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]),
        Path(args.output),
        args.at_once,
    )
    print(result.describe())
    if failures_of(Path(args.output)).exists():
        print(f"What failed is in {failures_of(Path(args.output))}.")
    print(f"Add them: ir3de outcomes {args.router} {args.output}")
    return 0 if result.answers or result.known else 1


def _judge_at(endpoint: str, model: str) -> Any:
    """A judge behind a server, as a function of a text."""
    from ir3de.configuration_ir3de import IR3DEConfig
    from ir3de.experts_ir3de import ExpertPool

    pool = ExpertPool(IR3DEConfig(experts=[{"name": "judge", "model": model, "endpoint": endpoint}]))
    return lambda text: _said(pool.generate("judge", [_chat(text)], 1, max_new_tokens=512)[0])


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _said(answer: Any) -> str:
    """The text of an answer, or raises what kept it."""
    if isinstance(answer, Exception):
        raise answer
    return str(answer)


main = command("judge", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
