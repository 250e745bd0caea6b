"""Asking experts the questions that they have not answered yet, several at a time, and writing down what came of it.

Every answer is written before the next is waited for, so that a run which stops is gone on with: what is in the file
is not asked again. An expert that fails is written to a file beside it and asked again by the next run.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ir3de.scripts.judging.questions import Question
from ir3de.scripts.judging.scoring import Nonsense, Scorer
from ir3de.scripts.reports.progress import Steps
from ir3de.specs_ir3de import ExpertSpec

Ask = Callable[[str, str], str]  # an expert's name and a prompt to its answer


@dataclass
class Judged:
    """
    What came of a run.

    Args:
        answers (`int`): that were scored.
        known (`int`): that were in the file already.
        failed (`Counter[str]`): experts that did not answer, and how often.
        nonsense (`int`): answers that the judge gave no score for.
        scores (`dict[str, float]`): sum of each expert's scores.
        asked (`Counter[str]`): answers of each expert that were scored.
    """

    answers: int = 0
    known: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    nonsense: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """In words."""
        lines = [f"{self.answers:,} answers were scored; {self.known:,} were known already."]
        lines += [f"  {name}: {self.scores[name] / n:.3f} over {n:,}" for name, n in sorted(self.asked.items())]
        lines += [f"{name} failed {number:,} times; the next run asks again." for name, number in self.failed.items()]
        if self.nonsense:
            lines.append(f"{self.nonsense:,} answers got no score, since the judge said none; they are kept apart.")
        return "\n".join(lines)


def failures_of(output: Path) -> Path:
    """The file beside the outcomes that takes what is no outcome."""
    return output.with_name(f"{output.name}.failed")


def judge(
    questions: Sequence[Question],
    experts: Sequence[ExpertSpec],
    ask: Ask,
    score: Scorer,
    count_tokens: Callable[[str], int],
    output: Path,
    at_once: int = 8,
) -> Judged:
    """Asks, scores, and appends a row an answer.

    Args:
        questions (`Sequence[Question]`): to ask.
        experts (`Sequence[ExpertSpec]`): whom to ask.
        ask (`Callable`): how; it raises where an expert fails.
        score (`Callable`): how good an answer is.
        count_tokens (`Callable`): tokens of a text.
        output (`Path`): JSON Lines of outcomes, made if missing, else gone on with.
        at_once (`int`): answers that are waited for at a time.

    Raises:
        ValueError: the output is not of outcomes.
    """
    known, result = answered(output), Judged()
    jobs = [(spec, question) for question in questions for spec in experts]
    rest = [(spec, question) for spec, question in jobs if (spec["name"], question.text) not in known]
    result.known = len(jobs) - len(rest)
    failures = failures_of(output)
    failures.unlink(missing_ok=True)

    def answer(spec: ExpertSpec, question: Question) -> dict[str, Any]:
        """A row: of an outcome, or with `error`."""
        day = datetime.now(timezone.utc).date().isoformat()
        row: dict[str, Any] = {"text": question.text, "expert": spec["name"], "day": day}
        started = time.perf_counter()
        try:
            said = ask(spec["name"], question.text)
        except Exception as error:  # of whatever kind: the rest goes on
            return {**row, "error": f"{type(error).__name__}: {error}"[:500]}
        row["seconds"] = round(time.perf_counter() - started, 6)
        read, written = count_tokens(question.text), count_tokens(said)
        row["tokens"] = read + written
        if price := spec.get("price"):
            row["cost"] = (read * price["input"] + written * price["output"]) / 1e6
        elif "cost" in spec:
            row["cost"] = spec["cost"]
        if question.domain is not None:
            row["domain"] = question.domain
        try:
            return {**row, "score": score(question, said), "answer": said}
        except Nonsense as error:
            return {**row, "answer": said, "error": str(error), "nonsense": True}
        except Exception as error:  # the judge failed
            return {**row, "answer": said, "error": f"{type(error).__name__}: {error}"[:500]}

    with Steps("Judging", "answers", len(rest)) as steps, output.open("a", encoding="utf-8") as file:
        for row in _several(answer, rest, at_once):
            if "error" in row:
                result.nonsense += "nonsense" in row
                result.failed.update([] if "nonsense" in row else [row["expert"]])
                _append(failures, row)
            else:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                result.answers += 1
                result.asked[row["expert"]] += 1
                result.scores[row["expert"]] = result.scores.get(row["expert"], 0.0) + row["score"]
            steps.update(1)
    return result


def answered(output: Path) -> set[tuple[str, str]]:
    """The experts and prompts of the rows that are in a file; a last line that was cut is taken out of it.

    Raises:
        ValueError: a line is no outcome.
    """
    if not output.is_file():
        return set()
    text = output.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        output.write_text(text, encoding="utf-8")
    found = set()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            found.add((str(row["expert"]), str(row["text"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{output}, line {number}: no outcome of a run ({error!r}): give another --output."
            ) from error
    return found


def _several(
    work: Callable[[ExpertSpec, Question], dict[str, Any]], jobs: Iterable[tuple[ExpertSpec, Question]], at_once: int
) -> Iterator[dict[str, Any]]:
    """What comes of jobs, as it comes; only so many are begun at a time."""
    waiting: set[Future[dict[str, Any]]] = set()
    with ThreadPoolExecutor(at_once) as pool:
        for job in jobs:
            waiting.add(pool.submit(work, *job))
            if len(waiting) == at_once:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        yield from (each.result() for each in waiting)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
