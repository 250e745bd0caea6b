"""Prompts to judge experts on, with what is expected of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir3de.scripts.data.records import read_records

EXPECTED = ("expected", "answer", "answers", "reference", "target")  # columns that may say it, the first that is there


@dataclass(frozen=True)
class Question:
    """
    A prompt to judge experts on.

    Args:
        text (`str`): the prompt.
        expected (`tuple[str, ...]`): answers, any of which is right; maybe none where a judge needs none.
        domain (`str`, *optional*): of the prompt, where it is known.
    """

    text: str
    expected: tuple[str, ...] = ()
    domain: str | None = None


def read_questions(path: str | Path, needs_expected: bool) -> list[Question]:
    """Reads questions, each prompt once, from a file of any kind that commands read, with `text` and `expected`.

    Args:
        path (`str` or `Path`): of the file.
        needs_expected (`bool`): whether a row without it is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is malformed, or there are none; file and line are named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    questions: dict[str, Question] = {}
    for record in read_records(str(path), lambda _: True):
        if record.problem:
            raise ValueError(f"{record.place}: {record.problem}")
        question = _question(record.place, record.values)
        if needs_expected and not question.expected:
            raise ValueError(f"{record.place}: expected what an answer is compared to under {', '.join(EXPECTED)}.")
        questions.setdefault(question.text, question)
    if not questions:
        raise ValueError(f"{path} has no rows.")
    return list(questions.values())


def _question(place: str, row: Mapping[str, Any]) -> Question:
    text, domain = row.get("text"), row.get("domain")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: expected the prompt under 'text', got {text!r}.")
    value: Any = next((row[column] for column in EXPECTED if row.get(column) is not None), [])
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int, float)) for each in values):
        raise ValueError(f"{place}: what is expected must be text or a list of texts, got {str(value)[:60]!r}.")
    return Question(text, tuple(map(str, values)), domain if isinstance(domain, str) else None)
