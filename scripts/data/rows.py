"""Labelled text as a stream of rows, from whatever format and under whatever names people keep it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ir3de.names_ir3de import check_names, tidy
from ir3de.scripts.data.columns import DOMAIN_COLUMNS, TEXT_COLUMNS, BadRowError, Columns, Row, nearest
from ir3de.scripts.data.parts import Part, is_hub_id, parts_of
from ir3de.scripts.data.records import Record
from ir3de.scripts.reports.words import number_of

__all__ = ["Report", "Row", "RowSource", "add_data_arguments", "add_text_arguments", "by_domain", "check_domain_names"]
__all__ += ["read_file", "read_part", "read_prompts", "read_rows", "read_texts", "read_texts_of_part"]
_SHOWN = 5  # of what is counted


@dataclass(frozen=True)
class RowSource:
    """
    Data as a person names them.

    Args:
        sources (`tuple`): files, folders, addresses that fsspec knows, ids of Hub data sets; from Python also data
            frames of pandas, data sets of `datasets` and lists of mappings.
        text_column (`str`, *optional*): name of the column with the prompt, which may be a chat; by default the first
            of `TEXT_COLUMNS` that there is.
        domain_column (`str`, *optional*): name of the column with the domain; by default the first of
            `DOMAIN_COLUMNS` that there is, or else the folder's or file's name where a folder is read.
        split (`str`): of Hub data sets.
        where (`tuple[str, ...]`): conditions `KEY=VALUE` or `KEY!=VALUE` that a row must meet.
        any_domain (`bool`): text of one domain is read whatever its rows say their domain is.
        group_column (`str`, *optional*): name of the column with what a row must be held out with, such as its author.
        skip_bad_rows (`bool`): rows that cannot be used are counted and left out, instead of raising.
        rename (`tuple[tuple[str, str], ...]`): pairs of a domain's name in the data and the one it is to have.
    """

    sources: tuple[Any, ...]
    text_column: str | None = None
    domain_column: str | None = None
    split: str = "train"
    where: tuple[str, ...] = ()
    any_domain: bool = False
    skip_bad_rows: bool = False
    rename: tuple[tuple[str, str], ...] = ()
    group_column: str | None = None

    @classmethod
    def of(
        cls,
        data: Sequence[str] | None,
        where: Sequence[str],
        rename: Sequence[str],
        text_column: str | None,
        domain_column: str | None,
        split: str,
        skip_bad_rows: bool,
        any_domain: bool = False,
        **others: object,
    ) -> RowSource:
        """What the options of `add_data_arguments` or `add_text_arguments` name; a command's others are passed over."""
        return cls(
            sources=tuple(data or ()),
            where=tuple(where),
            rename=tuple(_renamed(pair) for pair in rename),
            text_column=text_column,
            domain_column=domain_column,
            split=split,
            skip_bad_rows=skip_bad_rows,
            any_domain=any_domain,
        )

    def parts(self) -> list[Part]:
        """The files, shards and tables of all sources, in the order they were named in."""
        return [part for source in self.sources for part in parts_of(source, self.split)]

    @property
    def names(self) -> list[str]:
        """What may be told to others: ids of Hub data sets as they are, of anything else the bare name."""
        return [name if is_hub_id(name) else Path(name).name for name in map(_name_of, self.sources)]

    @property
    def hub_ids(self) -> list[str]:
        """The ids of the Hub data sets among the sources."""
        return [name.partition(":")[0] for name in map(_name_of, self.sources) if is_hub_id(name)]


@dataclass
class Report:
    """
    What was noticed while rows were read.

    Args:
        rows (`int`): that were used.
        bad (`int`): that could not be used.
        first_bad (`list[str]`): what was wrong with the first of them.
        others (`Counter[str]`): rows of other domains than the one that was read, by domain.
        guesses (`list[str]`): which columns were taken.
    """

    rows: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    guesses: list[str] = field(default_factory=list)

    def count_bad(self, problem: str) -> None:
        """Counts a row that could not be used."""
        self.bad += 1
        if len(self.first_bad) < _SHOWN:
            self.first_bad.append(problem)

    def guess(self, note: str) -> None:
        """Notes once which columns were taken, if that was a guess."""
        if note and note not in self.guesses:
            self.guesses.append(note)

    def add(self, other: Report) -> None:
        """Takes in what was noticed in another part of the data."""
        self.rows += other.rows
        self.bad += other.bad
        self.first_bad = [*self.first_bad, *other.first_bad][:_SHOWN]
        self.others += other.others
        for note in other.guesses:
            self.guess(note)

    def as_json(self) -> dict[str, Any]:
        """What [`Report.from_json`] reads."""
        return {**vars(self), "others": dict(self.others)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """A report that was written down."""
        return cls(**{**values, "others": Counter(values.get("others", {}))})

    def notes(self) -> list[str]:
        """What a person should know, in words."""
        notes = list(self.guesses)
        if self.others:
            rows = number_of(self.others.total(), "row of other domains was", "rows of other domains were")
            left_out = f"{rows} left out: {counted(self.others)}"
            notes.append(f"{left_out} (--any-domain takes them).")
        if self.bad:
            bad = number_of(self.bad, "bad row was", "bad rows were")
            notes.append(f"{bad} left out, such as: {' '.join(self.first_bad[:1])}")
        return notes

    def tell(self) -> None:
        """Says it on standard error."""
        for note in self.notes():
            print(note, file=sys.stderr)


def _renamed(pair: str) -> tuple[str, str]:
    old, equals, new = pair.partition("=")
    if not equals or not old.strip() or not new.strip():
        raise ValueError(f"--rename takes OLD=NEW, got {pair!r}.")
    return tidy(old), tidy(new)


def _name_of(source: Any) -> str:
    return source if isinstance(source, str) else f"./{type(source).__name__}"


def counted(counts: Mapping[str, int]) -> str:
    """Names and how often each occurs, the most frequent first and not too many."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name!r} {n:,}" for name, n in most[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(most) - _SHOWN} more" if len(most) > _SHOWN else "")


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options that name labelled data; [`RowSource.of`] takes them."""
    parser.add_argument(
        "--data",
        action="append",
        required=required,
        metavar="DATA",
        help="JSON Lines or array, CSV, TSV, Parquet, a folder of them or of text (one file or sub-folder a domain), an"
        " address such as s3://..., or the id of a Hub data set, ID:CONFIGURATION where it has several; repeatable",
    )
    parser.add_argument("--text-column", help=f"with the prompt; default: the first of {', '.join(TEXT_COLUMNS)}")
    parser.add_argument("--domain-column", help=f"with the domain; default: the first of {', '.join(DOMAIN_COLUMNS)}")
    parser.add_argument("--split", default="train", help="split of a Hub data set (default: train)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="keep only rows whose KEY is VALUE, or is not with KEY!=VALUE; repeatable",
    )
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="of a domain of the data; repeatable"
    )
    parser.add_argument("--skip-bad-rows", action="store_true", help="count rows that cannot be used, and go on")


def add_text_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options that name text of one domain; [`RowSource.of`] takes them."""
    add_data_arguments(parser, required)
    parser.add_argument(
        "--any-domain", action="store_true", help="take every row, whatever domain it says it is of, as of this one"
    )


def read_rows(source: RowSource, report: Report | None = None) -> Iterator[Row]:
    """Streams labelled rows, and says at the end what a person should know, unless a report is kept.

    Args:
        source ([`RowSource`]): the data.
        report ([`Report`], *optional*): takes the notes instead of standard error.

    Raises:
        ValueError: a row cannot be used, or there is none; file and line are named.
    """
    notes, several = report or Report(), len(source.sources) > 1
    uses = [
        (part, partial(_labelled, group_column=source.group_column, source=name if several else ""))
        for name, each in zip(source.names, source.sources, strict=True)
        for part in parts_of(each, source.split)
    ]
    yield from _checked(source, uses, notes)
    if report is None:
        notes.tell()


def read_part(source: RowSource, part: Part, report: Report) -> Iterator[Row]:
    """Streams the labelled rows of one part of the data.

    Args:
        source ([`RowSource`]): the data.
        part ([`Part`]): one of theirs.
        report ([`Report`]): takes the notes.
    """
    return _rows(source, part, report, _labelled)


def by_domain(rows: Iterable[Row]) -> dict[str, list[str]]:
    """The texts of each domain, in the order of the rows."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row.domain, []).append(row.text)
    return texts


def read_texts_of_part(
    source: RowSource, parts: Sequence[Part], part: Part, domain: str, report: Report
) -> Iterator[str]:
    """Streams the texts of one domain in one part of the data.

    Args:
        source ([`RowSource`]): the data.
        parts (`Sequence[Part]`): all of theirs.
        part ([`Part`]): one of them.
        domain (`str`): its name.
        report ([`Report`]): takes the notes.
    """
    return _rows(source, part, report, text_of_domain(source, parts, domain, report))


def read_file(path: str | Path) -> Iterator[Row]:
    """Streams the rows of a file.

    Raises:
        ValueError: as in `read_rows`.
    """
    return read_rows(RowSource((str(path),)))


def read_texts(source: RowSource, domain: str, report: Report | None = None) -> Iterator[str]:
    """Streams the texts of one domain. Rows that say they are of another one are left out and counted.

    What a row says is its column `domain`, or the one that was named; the labels of a column that is only guessed may
    mean anything. Where a folder has a part of the domain's name, its other parts are of other domains.

    Args:
        source ([`RowSource`]): the data.
        domain (`str`): its name.
        report ([`Report`], *optional*): takes the notes instead of standard error.

    Raises:
        ValueError: a row cannot be used, or none is of the domain; file and line are named.
    """
    notes, parts = report or Report(), source.parts()
    use = text_of_domain(source, parts, domain, notes)
    yield from _checked(source, [(part, use) for part in parts], notes)
    if report is None:
        notes.tell()


def read_prompts(source: RowSource) -> Iterator[Row]:
    """Streams prompts that need no domain: theirs is what their row or their place says, or empty. Says at the end what
    a person should know.

    Args:
        source ([`RowSource`]): the data.

    Raises:
        ValueError: a row cannot be used, or there is none; file and line are named.
    """
    notes = Report()
    yield from _checked(source, [(part, _prompt) for part in source.parts()], notes)
    notes.tell()


def _prompt(record: Record, columns: Columns) -> Row:
    """The record as a prompt, labelled or not."""
    return Row(columns.text(record), columns.label(record))


Use = Callable[[Record, Columns], Any]


def _labelled(record: Record, columns: Columns, group_column: str | None = None, source: str = "") -> Row:
    """The record as a labelled prompt, of this source where it names none."""
    row = columns.row(record)
    row = row if row.source else row._replace(source=source)
    if group_column is None:
        return row
    group = record.values.get(group_column)
    if group is None or not str(group).strip():
        near = "" if group_column in record.values else nearest(group_column, record.columns)
        raise BadRowError(f"{record.place}: no group under {group_column!r}, which --group-column names.{near}")
    return row._replace(group=str(group))


def text_of_domain(source: RowSource, parts: Sequence[Part], domain: str, report: Report) -> Use:
    """How the text of a record is read if it is of a domain; else None is read, and counted.

    Args:
        source ([`RowSource`]): the data.
        parts (`Sequence[Part]`): theirs.
        domain (`str`): its name.
        report ([`Report`]): counts.
    """
    by_hand = any(_condition(where)[0] == (source.domain_column or "domain") for where in source.where)
    chosen = source.any_domain or by_hand
    rename = dict(source.rename)
    by_place = any(part.domain and rename.get(tidy(part.domain), tidy(part.domain)) == domain for part in parts)

    def use(record: Record, columns: Columns) -> str | None:
        """The text, unless it is of another domain."""
        told = None if chosen else columns.told_domain(record, by_place)
        if told in (None, domain):
            return columns.text(record)
        report.others[str(told)] += 1
        return None

    return use


def _checked(source: RowSource, uses: Sequence[tuple[Part, Use]], report: Report) -> Iterator[Any]:
    """What is read of all parts, of each by its use. That nothing meets the conditions is an answer; that nothing is
    there is a mistake.
    """
    seen: set[str] = set()
    for part, use in uses:
        yield from _rows(source, part, report, use, seen)
    mistake = "" if report.rows else _mistake(source, report, seen)
    if mistake:
        raise ValueError(mistake)


def _mistake(source: RowSource, report: Report, seen: Iterable[str]) -> str:
    """Why no row was used, unless the conditions are the reason."""
    of = ", ".join(source.names)
    if report.others:
        return (
            f"No row of {of} is of this domain; they are of {counted(report.others)}. Name the domain as the data do,"
            " choose rows with --where, or take all of them with --any-domain."
        )
    if report.bad:
        return f"No row of {of} can be used. {report.first_bad[0]}"
    if not seen:
        return f"There is no row in {of}."
    for where in source.where:
        key = _condition(where)[0]
        if key not in seen:
            return f"No row of {of} has a column {key!r}, which --where names.{nearest(key, seen)}"
    return ""


def _rows(source: RowSource, part: Part, report: Report, use: Use, seen: set[str] | None = None) -> Iterator[Any]:
    """What is used of the records of one part that meet the conditions."""
    conditions = [_condition(where) for where in source.where]
    wanted = {*TEXT_COLUMNS, *DOMAIN_COLUMNS, "source", "split", *(key.lower() for key, _ in conditions)}
    named = (source.text_column, source.domain_column, source.group_column)
    wanted |= {name.lower() for name in named if name}
    columns: Columns | None = None
    for record in part.records(lambda name: name.lower() in wanted):
        try:
            if record.problem:
                raise BadRowError(f"{record.place}: {record.problem}.")
            if columns is None:
                columns = _columns(source, part, record)
                report.guess(columns.guess)
                if seen is not None:
                    seen.update(record.columns)
            if all(condition(record.values) for _, condition in conditions):
                used = use(record, columns)
                if used is not None:
                    report.rows += 1
                    yield used
        except BadRowError as error:
            if not source.skip_bad_rows:
                raise
            report.count_bad(str(error))


def _columns(source: RowSource, part: Part, first: Record) -> Columns:
    return Columns.chosen(first, source.text_column, source.domain_column, part.domain, dict(source.rename))


def check_domain_names(source: RowSource) -> set[str] | None:
    """Reads the domains of the rows that are at hand, before long work, and checks that all can be names of one router.

    Args:
        source ([`RowSource`]): the data; what is not on this machine is left for later.

    Returns:
        `set[str]`: the domains; None where not all of the data are at hand.

    Raises:
        ValueError: some cannot, or two cannot be told apart; all are named.
    """
    names: set[str] = set()
    lenient = replace(source, skip_bad_rows=True)  # bad rows are named when they are read
    parts = source.parts()
    for part in filter(lambda part: part.at_hand, parts):
        names.update(_rows(lenient, part, Report(), lambda record, columns: columns.domain(record)))
    check_names(sorted(names), "domains")
    absent = [old for old, new in source.rename if new not in names]
    if names and absent:
        raise ValueError(f"--rename names the domain {absent[0]!r}, which no row has.{nearest(absent[0], names)}")
    return names if parts and all(part.at_hand for part in parts) else None


def _condition(where: str) -> tuple[str, Callable[[Mapping[str, Any]], bool]]:
    """The column that a condition is about, and the condition."""
    key, equals, value = where.partition("=")
    if not equals or not key.rstrip("!"):
        raise ValueError(f"--where takes KEY=VALUE or KEY!=VALUE, got {where!r}.")
    if key.endswith("!"):
        return key[:-1], lambda row: str(row.get(key[:-1])) != value
    return key, lambda row: str(row.get(key)) == value
