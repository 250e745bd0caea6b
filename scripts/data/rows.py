"""Labelled text as a stream of rows: JSON Lines, plain or gzip, or a Hub data set."""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """
    A labelled prompt.

    Args:
        text (`str`): the prompt.
        domain (`str`): whose expert should answer it.
        source (`str`): where it came from, if the data say so; else empty.
    """

    text: str
    domain: str
    source: str = ""


@dataclass(frozen=True)
class RowSource:
    """
    Data as a person names them.

    Args:
        sources (`tuple[str, ...]`): files of JSON Lines, or ids of Hub data sets.
        text_column (`str`): name of the column with the prompt.
        domain_column (`str`): name of the column with the domain.
        split (`str`): of Hub data sets.
        where (`tuple[str, ...]`): conditions `KEY=VALUE` or `KEY!=VALUE` that a row must meet.
    """

    sources: tuple[str, ...]
    text_column: str = "text"
    domain_column: str = "domain"
    split: str = "train"
    where: tuple[str, ...] = ()

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> RowSource:
        """What the options of `add_data_arguments` or `add_text_arguments` name."""
        domain_column = getattr(args, "domain_column", cls.domain_column)
        return cls(tuple(args.data), args.text_column, domain_column, args.split, tuple(args.where))


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options that name labelled data; [`RowSource.from_args`] takes them."""
    add_text_arguments(parser, required)
    parser.add_argument("--domain-column", default="domain", help="name of the column with the domain")


def add_text_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options that name text of one domain; [`RowSource.from_args`] takes them."""
    parser.add_argument(
        "--data",
        action="append",
        required=required,
        metavar="FILE_OR_ID",
        help="JSON Lines with `text` and `domain`, plain or .gz, or the id of a Hub data set; repeatable",
    )
    parser.add_argument("--text-column", default="text", help="name of the column with the prompt (default: text)")
    parser.add_argument("--split", default="train", help="split of a Hub data set (default: train)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="keep only rows whose KEY is VALUE, or is not with KEY!=VALUE; repeatable",
    )


def read_rows(source: RowSource) -> Iterator[Row]:
    """Streams labelled rows.

    Raises:
        ValueError: a line is not JSON, or a row has no text or domain; file and line are named.
    """
    for place, row in _rows(source):
        yield _labelled(place, row, source.text_column, source.domain_column)


def read_file(path: str | Path) -> Iterator[Row]:
    """Streams the rows of a JSON Lines file of `text` and `domain`.

    Raises:
        ValueError: as in `read_rows`.
    """
    for place, row in _json_lines(Path(path)):
        yield _labelled(place, row)


def _labelled(place: str, row: dict[str, Any], text_column: str = "text", domain_column: str = "domain") -> Row:
    text, domain = (_field(row, column, place) for column in (text_column, domain_column))
    return Row(text, domain, str(row.get("source", "")))


def read_texts(source: RowSource) -> Iterator[str]:
    """Streams the text of the rows, whatever their domain.

    Raises:
        ValueError: a line is not JSON, or a row has no text; file and line are named.
    """
    for place, row in _rows(source):
        yield _field(row, source.text_column, place)


def _rows(source: RowSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that meet the conditions, and where they are."""
    conditions = [_condition(where) for where in source.where]
    for data in source.sources:
        for place, row in _open(data, source.split):
            if all(condition(row) for condition in conditions):
                yield place, row


def _condition(where: str) -> Callable[[dict[str, Any]], bool]:
    key, equals, value = where.partition("=")
    if not equals or not key.rstrip("!"):
        raise ValueError(f"--where takes KEY=VALUE or KEY!=VALUE, got {where!r}.")
    if key.endswith("!"):
        return lambda row: str(row.get(key[:-1])) != value
    return lambda row: str(row.get(key)) == value


def _field(row: dict[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        found = f"it is {value!r}" if key in row else f"the row has {', '.join(map(repr, row)) or 'nothing'}"
        raise ValueError(f"{place}: expected text under {key!r}, but {found}. Mend the row, or name another column.")
    return value


def _open(data: str, split: str) -> Iterable[tuple[str, dict[str, Any]]]:
    path = Path(data)
    if path.is_file():
        return _json_lines(path)
    if path.suffix in (".jsonl", ".json", ".gz") or data.count("/") > 1:
        raise FileNotFoundError(f"There is no file {data}.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"Reading the Hub data set {data} needs datasets: `pip install ir3de[data]`.") from error
    rows = load_dataset(data, split=split, streaming=True)
    return ((f"{data}, {split}, row {index}", row) for index, row in enumerate(rows))


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except ValueError as error:  # of JSON or of UTF-8
            raise ValueError(f"{path}, line {number}: not JSON in UTF-8 ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object with text and domain, got {line[:60]!r}.")
        yield f"{path}, line {number}", row


def _lines(path: Path) -> Iterator[bytes]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            yield from lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}): fetch it again.") from error
