"""How good an answer is: a score from 0 to 1 by comparing it to what was expected, or by asking a judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from ir3de.scripts.judging.questions import Question
from ir3de.scripts.judging.ways import WAYS

Scorer = Callable[[Question, str], float]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_SCORE = re.compile(r"score\W{0,5}(\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?", re.IGNORECASE)
_CLOSE = 1e-6  # relative, within which two numbers are equal


class Nonsense(ValueError):
    """What a judge said that is no score: kept apart, since it says nothing of the answer."""


def scorer_of(way: str) -> Scorer:
    """The scorer of a way that needs no judge.

    Raises:
        ValueError: there is no such way.
    """
    scorers: dict[str, Scorer] = {"exact": exact, "contains": contains, "regex": matches, "numbers": same_number}
    if way not in scorers:
        raise ValueError(f"--by takes {', '.join(WAYS)}; got {way!r}.")
    return scorers[way]


def exact(question: Question, answer: str) -> float:
    """1 where the answer is one of those expected, but for case and white space."""
    return float(_folded(answer) in map(_folded, question.expected))


def contains(question: Question, answer: str) -> float:
    """1 where one of those expected is in the answer, but for case and white space."""
    return float(any(_folded(each) in _folded(answer) for each in question.expected))


def matches(question: Question, answer: str) -> float:
    """1 where one of those expected, a regular expression, is found in the answer."""
    return float(any(re.search(each, answer) for each in question.expected))


def same_number(question: Question, answer: str) -> float:
    """1 where the last number of the answer is the last one of what is expected."""
    found = _last_number(answer)
    if found is None:
        return 0.0
    wanted = [number for number in map(_last_number, question.expected) if number is not None]
    return float(any(abs(found - number) <= _CLOSE * max(1.0, abs(number)) for number in wanted))


def check_patterns(questions: Sequence[Question]) -> None:
    """Raises ValueError where what is expected of an answer is no regular expression."""
    for question in questions:
        for each in question.expected:
            try:
                re.compile(each)
            except re.error as error:
                raise ValueError(
                    f"What is expected of {question.text[:60]!r} is no regular expression: {each!r} ({error})."
                ) from error


def asking(ask: Callable[[str], str], rubric: str) -> Scorer:
    """A scorer that asks a judge.

    Args:
        ask (`Callable`): a text to the judge's answer.
        rubric (`str`): what the judge is told, with `{prompt}`, `{answer}` and maybe `{expected}`. It is to end with
            `score: ` and a number from 0 to 1 or of so many, as in 7/10, or with `{"score": 0.7}`.

    Raises:
        ValueError: the rubric has no place for the answer.
    """
    if "{answer}" not in rubric or "{prompt}" not in rubric:
        raise ValueError("A rubric needs the places {prompt} and {answer}, and may have {expected}.")

    def score(question: Question, answer: str) -> float:
        """What the judge says."""
        parts = {"{prompt}": question.text, "{answer}": answer, "{expected}": " or ".join(question.expected)}
        filled = re.sub(r"\{(?:prompt|answer|expected)\}", lambda found: parts[found[0]], rubric)
        return score_in(ask(filled))

    return score


def score_in(said: str) -> float:
    """The score in what a judge said.

    Raises:
        Nonsense: there is none from 0 to 1.
    """
    for part in reversed(re.findall(r"\{[^{}]*\}", said)):
        try:
            value = json.loads(part).get("score")
        except ValueError:
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
    found = _SCORE.findall(said)
    if found:
        number, of = found[-1]
        value = float(number) / (float(of) if of and float(of) > 0 else 1)
        if 0 <= value <= 1:
            return value
    raise Nonsense(f"the judge gave no score from 0 to 1: {said[:200]!r}")


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _last_number(text: str) -> float | None:
    found: Sequence[str] = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
