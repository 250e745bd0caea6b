"""A router's samples: a few labelled prompts, chosen by its owner, that travel with it and are shown as examples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SAMPLES_NAME = "sample.jsonl"
_MOST = 1000
_MOST_BYTES = 1 << 20  # of the file


class Sample(NamedTuple):
    """
    A labelled prompt.

    Args:
        text (`str`): the prompt.
        domain (`str`): that it belongs to.
    """

    text: str
    domain: str


def checked_samples(rows: Iterable[object]) -> list[Sample]:
    """Samples of mappings with `text` and `domain`, or of [`Sample`]s.

    Raises:
        ValueError: one is malformed, which is named by its number, or there are too many.
    """
    samples = []
    for number, row in enumerate(rows, 1):
        samples.append(_checked(row, f"Sample {number}"))
        if number > _MOST:
            raise ValueError(f"There are more than {_MOST:,} samples: choose a few prompts of each domain.")
    return samples


def _checked(row: object, place: str) -> Sample:
    """The sample that a row is, or raises."""
    values = row if isinstance(row, Sample) else Sample("", "")
    if isinstance(row, Mapping):
        values = Sample(row.get("text", ""), row.get("domain", ""))
    for name, value in zip(Sample._fields, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f'{place}: expected {{"text": ..., "domain": ...}} with text in both, got {str(row)[:80]!r}.'
            )
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{place}: its {name} holds half a character (a lone surrogate): mend it or leave it out.")
    return values


def read_samples(path: str | os.PathLike[str]) -> list[Sample]:
    """The samples in a file of JSON Lines, checked as a stranger's; other keys of a row are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is too large, or a line is malformed.
    """
    size = Path(path).stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and samples at most {_MOST_BYTES:,}: choose a few short prompts.")
    samples = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON in UTF-8 ({error}). Mend the line.") from error
        samples.append(_checked(row, f"{path}, line {number}"))
    return checked_samples(samples)


def write_samples(path: str | os.PathLike[str], samples: Iterable[Sample]) -> None:
    """Writes samples as JSON Lines, which [`read_samples`] reads."""
    lines = [json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for sample in samples]
    Path(path).write_text("".join(lines), encoding="utf-8")
