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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ir3de.scripts.judging.choosing import Job
from ir3de.scripts.judging.questions import Question
from ir3de.scripts.judging.replies import Ask
from ir3de.scripts.judging.scoring import Nonsense, Scorer
from ir3de.scripts.reports.progress import Steps
from ir3de.scripts.reports.words import number_of
from ir3de.specs_ir3de import ExpertSpec

Row = dict[str, Any]  # of an outcome, or with `error`


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
        lines = [
            f"{number_of(self.answers, 'answer was', 'answers were')} scored;"
            f" {number_of(self.known, 'was', 'were')} known already."
        ]
        lines += [f"  {name}: {self.scores[name] / n:.3f} over {n:,}" for name, n in sorted(self.asked.items())]
        lines += [
            f"{name} failed {number_of(number, 'time', 'times')}; the next run asks again."
            for name, number in self.failed.items()
        ]
        if self.nonsense:
            answers = number_of(self.nonsense, "answer", "answers")
            lines.append(f"{answers} got no score, since the judge said none; kept apart.")
        return "\n".join(lines)


def failures_of(output: Path) -> Path:
    """The file beside the outcomes that takes what is no outcome."""
    return output.with_name(f"{output.name}.failed")


def judge(
    questions: Sequence[Question],
    experts: Sequence[ExpertSpec],
    ask: Ask,
    score: Scorer | None,
    output: Path,
    at_once: int = 8,
    choose: Callable[[Sequence[Job]], Sequence[Job]] | None = None,
) -> Judged:
    """Asks, scores, and appends a row an answer.

    Args:
        questions (`Sequence[Question]`): to ask.
        experts (`Sequence[ExpertSpec]`): whom to ask.
        ask (`Callable`): how; it raises where an expert fails.
        score (`Callable`, *optional*): how good an answer is; None where replies come with scores.
        output (`Path`): JSON Lines of outcomes, made if missing, else gone on with.
        at_once (`int`): answers that are waited for at a time.
        choose (`Callable`, *optional*): which of the jobs that the output does not have are done; by default all.

    Raises:
        ValueError: the output is not of outcomes.
    """
    known = answered(output)
    jobs = [(spec, question) for question in questions for spec in experts]
    left = [(spec, question) for spec, question in jobs if (spec["name"], question.text) not in known]
    rest = left if choose is None else choose(left)

    def row_of(spec: ExpertSpec, question: Question) -> Row:
        """What comes of a job."""
        row: Row = {"text": question.text, "expert": spec["name"]}
        started = time.perf_counter()
        try:
            replied = ask(spec["name"], question)
        except Exception as error:  # of whatever kind: the rest goes on
            return {**row, "error": _told(error)}
        row |= measured(spec, time.perf_counter() - started, replied.read, replied.written)
        if question.domain is not None:
            row["domain"] = question.domain
        if replied.text is None or score is None:
            return {**row, "score": replied.score}
        row["answer"] = replied.text
        try:
            return {**row, "score": score(question, replied.text)}
        except Nonsense as error:
            return {**row, "error": str(error), "nonsense": True}
        except Exception as error:  # the judge failed
            return {**row, "error": _told(error)}

    return write_down(_several(row_of, rest, at_once), len(rest), len(jobs) - len(left), output)


def measured(spec: ExpertSpec, seconds: float, read: int, written: int) -> Row:
    """When an answer was had, what it took, and what it cost by the expert's spec."""
    day = datetime.now(UTC).date().isoformat()
    row: Row = {"day": day, "seconds": round(seconds, 6), "tokens": read + written}
    if price := spec.get("price"):
        row["cost"] = (read * price["input"] + written * price["output"]) / 1e6
    elif "cost" in spec:
        row["cost"] = spec["cost"]
    return row


def write_down(rows: Iterable[Row], number: int, known: int, output: Path) -> Judged:
    """Appends rows to a file as they come, those with `error` to the one beside it.

    Args:
        rows (`Iterable[dict]`): as they are made.
        number (`int`): of them, for the progress.
        known (`int`): answers that the file has already.
        output (`Path`): JSON Lines.
    """
    result, failures = Judged(known=known), failures_of(output)
    failures.unlink(missing_ok=True)
    with Steps("Judging", "answers", number) as steps, output.open("a", encoding="utf-8") as file:
        for row in rows:
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
    # Not by splitlines(): text may hold other characters that it takes for ends of lines, such as U+2028.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            found.add((str(row["expert"]), str(row["text"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{output}, line {number}: no outcome of a run ({error!r}): give another --output."
            ) from error
    return found


def _several(
    work: Callable[[ExpertSpec, Question], Row], jobs: Iterable[tuple[ExpertSpec, Question]], at_once: int
) -> Iterator[Row]:
    """What comes of jobs, as it comes; only so many are begun at a time."""
    waiting: set[Future[Row]] = set()
    with ThreadPoolExecutor(at_once) as pool:
        for job in jobs:
            waiting.add(pool.submit(work, *job))
            if len(waiting) == at_once:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        yield from (each.result() for each in waiting)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
