"""`ir3de judge`: asks a router's experts, scores their answers, and writes outcomes with seconds, tokens and costs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir3de.scripts.command import check_file, command, need
from ir3de.scripts.judging.ways import PERPLEXITY, WAYS
from ir3de.scripts.metrics.tasks import TaskOptions

if TYPE_CHECKING:
    from ir3de.pipeline_ir3de import IR3DERoutingPipeline
    from ir3de.scripts.judging.asking import Judged
    from ir3de.scripts.judging.questions import Question
    from ir3de.scripts.judging.scoring import Scorer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de judge`."""
    parser.add_argument("router", help="folder or Hub id")
    parser.add_argument("--data", metavar="FILE", help="with `text` and `expected`, and maybe `domain`")
    parser.add_argument(
        "--by",
        required=True,
        metavar="WAY",
        help=f"{', '.join(WAYS)}, or the name of a task of lm-eval, such as gsm8k, which brings its own data",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON Lines of outcomes; gone on with if there")
    parser.add_argument("--experts", metavar="NAMES", help="comma-separated; default: all that can answer")
    parser.add_argument("--budget", type=int, metavar="N", help="only N answers, chosen at random")
    parser.add_argument("--at-once", type=int, default=8, help="answers that are waited for at a time (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (default: 512)")
    judge = parser.add_argument_group("--by judge")
    judge.add_argument("--judge-endpoint", metavar="URL", help="of an OpenAI-compatible server")
    judge.add_argument("--judge-model", metavar="NAME", help="the judge's name there")
    judge.add_argument("--rubric", metavar="FILE", help="text for the judge, with {prompt}, {answer}, maybe {expected}")
    task = parser.add_argument_group("a task of lm-eval")
    task.add_argument("--metric", help="such as exact_match,strict-match; default: the task's first")
    task.add_argument("--limit", type=int, help="items of the task (default: all)")
    task.add_argument("--num-fewshot", type=int, help="examples in each prompt (default: the task's)")
    task.add_argument("--include-path", metavar="DIR", help="folder with further task files")
    task.add_argument("--allow-code", action="store_true", help="run code that experts write: in a sandbox of yours")


@dataclass(frozen=True)
class JudgeOptions:
    """
    How experts are judged.

    Args:
        router (`str`): folder or Hub id.
        by (`str`): one of `WAYS`, or a task of lm-eval.
        output (`Path`): JSON Lines.
        data (`str`, *optional*): file of questions.
        experts (`tuple[str, ...]`): names; none for all that can answer.
        budget (`int`, *optional*): answers that are asked for in a run; by default all.
        at_once (`int`): answers that are waited for.
        max_new_tokens (`int`): of an answer.
        judge (`tuple[str, str, str]`, *optional*): its endpoint, its name and the file of its rubric.
        task ([`TaskOptions`]): how a task is done.
        metric (`str`, *optional*): of a task.
        include_path (`str`, *optional*): folder with further tasks.
    """

    router: str
    by: str
    output: Path
    data: str | None
    experts: tuple[str, ...]
    budget: int | None
    at_once: int
    max_new_tokens: int
    judge: tuple[str, str, str] | None
    task: TaskOptions
    metric: str | None
    include_path: str | None


def run(args: argparse.Namespace) -> int:
    """Asks and scores."""
    from ir3de.modeling_ir3de import IR3DEModel
    from ir3de.pipeline_ir3de import IR3DERoutingPipeline
    from ir3de.scripts.judging.asking import failures_of

    check_file(args.output)
    server = (args.judge_endpoint, args.judge_model, args.rubric)
    _check_together(args.by, args.data, args.at_once, args.budget, server)
    if args.by not in WAYS:
        need("lm_eval", "evaluation", f"--by {args.by!r} is none of {', '.join(WAYS)}, and tasks need lm-eval")
    options = JudgeOptions(
        router=args.router,
        by=args.by,
        output=Path(args.output),
        data=args.data,
        experts=tuple(args.experts.split(",")) if args.experts else (),
        budget=args.budget,
        at_once=args.at_once,
        max_new_tokens=args.max_new_tokens,
        judge=server if args.by == "judge" else None,
        task=TaskOptions(args.limit, args.num_fewshot, args.at_once, args.allow_code),
        metric=args.metric,
        include_path=args.include_path,
    )
    questions, score = _questions(options) if options.data else ([], None)
    pipe = IR3DERoutingPipeline(IR3DEModel.from_pretrained(options.router))
    names = _names(options.experts, pipe)
    result = _judged(options, pipe, names, questions, score)
    print(result.describe())
    if failures_of(options.output).exists():
        print(f"What failed is in {failures_of(options.output)}.")
    print(f"Add them: ir3de outcomes {shlex.quote(options.router)} {shlex.quote(str(options.output))}")
    return 0 if result.answers or result.known else 1


def _check_together(by: str, data: str | None, at_once: int, budget: int | None, server: Sequence[str | None]) -> None:
    """Raises ValueError where options do not go together."""
    if at_once < 1:
        raise ValueError(f"--at-once must be at least 1, got {at_once}.")
    if budget is not None and (budget < 1 or by not in WAYS):
        raise ValueError(f"--budget is a number of answers to questions of --data, at least 1; got {budget}.")
    if by in WAYS and not data:
        raise ValueError(f"--by {by} needs --data FILE.")
    if by not in WAYS and data:
        raise ValueError(f"--by {by!r} is none of {', '.join(WAYS)}; a task of lm-eval brings its own --data.")
    if by == "judge" and not all(server):
        raise ValueError("--by judge needs --judge-endpoint, --judge-model and --rubric.")


def _names(given: Sequence[str], pipe: IR3DERoutingPipeline) -> list[str]:
    """The experts that are judged."""
    from ir3de.specs_ir3de import nearest_name

    known = pipe.model.config.expert_names
    for name in given:
        if name not in known:
            raise ValueError(f"There is no expert {name!r}; experts: {known}.{nearest_name(name, known)}")
    names = list(given) or [name for name in known if pipe.experts.can_answer(name)]
    if not names:
        raise ValueError(f"None of the experts {known} can answer: give their specs a `model`.")
    pipe.experts.check(names)
    return names


def _questions(options: JudgeOptions) -> tuple[list[Question], Scorer | None]:
    """What is asked, and how answers are scored; None where experts read instead."""
    from ir3de.scripts.judging.questions import read_questions
    from ir3de.scripts.judging.scoring import asking, check_patterns, scorer_of

    questions = read_questions(str(options.data), needs_expected=options.by not in ("judge", PERPLEXITY))
    if options.by == PERPLEXITY:
        return questions, None
    if options.judge is not None:
        endpoint, model, rubric = options.judge
        return questions, asking(_judge_at(endpoint, model), Path(rubric).read_text(encoding="utf-8"))
    if options.by == "regex":
        check_patterns(questions)
    return questions, scorer_of(options.by)


def _judged(
    options: JudgeOptions,
    pipe: IR3DERoutingPipeline,
    names: list[str],
    questions: list[Question],
    score: Scorer | None,
) -> Judged:
    """Asks, or lets experts read, or lets lm-eval ask."""
    from ir3de.scripts.judging.asking import judge
    from ir3de.scripts.judging.choosing import some_of
    from ir3de.scripts.judging.replies import answering, check_readable, reading
    from ir3de.scripts.judging.tasks import judge_by_task
    from ir3de.scripts.metrics.tasks import task_manager

    tokenizer: Any = pipe.model.tokenizer

    def count_tokens(text: str) -> int:
        """By the router's tokenizer."""
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    if options.by not in WAYS:
        manager = task_manager(options.include_path, [options.by])
        return judge_by_task(
            pipe, names, options.by, manager, options.task, options.metric, count_tokens, options.output
        )
    if options.by == PERPLEXITY:
        check_readable(pipe.experts, names)
        ask = reading(pipe.experts, count_tokens)
    else:
        ask = answering(pipe.experts, options.max_new_tokens, count_tokens)
    specs = [pipe.experts.spec(name) for name in names]
    choose = partial(some_of, number=options.budget) if options.budget else None
    return judge(questions, specs, ask, score, options.output, options.at_once, choose)


def _judge_at(endpoint: str, model: str) -> Any:
    """A judge behind a server, as a function of a text."""
    from ir3de.configuration_ir3de import IR3DEConfig
    from ir3de.experts_ir3de import ExpertPool

    pool = ExpertPool(IR3DEConfig(experts=[{"name": "judge", "model": model, "endpoint": endpoint}]))
    return lambda text: pool.ask("judge", [{"role": "user", "content": text}], max_new_tokens=512).text


main = command("judge", __doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
