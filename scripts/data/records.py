"""One file as a stream of records: JSON Lines, a JSON array, CSV, TSV, Parquet, or lines of text; also through gzip.

A record that cannot be read is handed on with its place and its problem, so that whoever reads decides whether to stop.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec

from ir3de.scripts.command import need

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_MOST_FIELD = 1 << 30  # characters of a field of CSV
_BUFFER = 1 << 20  # bytes
_OTHER = f"; what ends in none of {', '.join(FORMATS)} is read as JSON Lines"
_SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_BATCH = 1024  # rows of Parquet that are turned into Python objects at a time
_CUT = (EOFError, zlib.error, lzma.LZMAError)

Wanted = Callable[[str], bool]


class Record(NamedTuple):
    """
    A row as a file holds it.

    Args:
        place (`str`): file and line, for people.
        values (`Mapping[str, Any]`): by column; of a file that is read by columns only those that were wanted.
        columns (`Sequence[str]`): all columns that there are.
        problem (`str`): why it cannot be read; else empty.
    """

    place: str
    values: Mapping[str, Any]
    columns: Sequence[str] = ()
    problem: str = ""


def split_name(path: str) -> tuple[str, str, str | None]:
    """The bare name of a file, its format and its compression: `a/law.jsonl.gz` is `law`, `.jsonl` and `gzip`."""
    name = PurePosixPath(path.replace("\\", "/")).name
    stem, dot, ending = name.rpartition(".")
    compression = COMPRESSIONS.get(f".{ending.lower()}") if dot else None
    if compression:
        name = stem
    stem, dot, ending = name.rpartition(".")
    return (stem, f".{ending.lower()}", compression) if dot and stem else (name, "", compression)


def check_package(path: str) -> None:
    """Raises ImportError where what reads a file is not installed."""
    if split_name(path)[1] == ".parquet":
        need("pyarrow", "data", f"Reading {path} needs pyarrow")


def read_records(path: str, wanted: Wanted, whole: bool = False) -> Iterator[Record]:
    """Streams the records of a file.

    Args:
        path (`str`): of this machine, or an address that fsspec knows, such as `s3://...`.
        wanted (`Callable[[str], bool]`): says of a column whether it is needed.
        whole (`bool`, *optional*): a text file is one record; else each of its lines is.

    Raises:
        ValueError: the file is cut short, or not what its name says; one of no known ending is read as JSON Lines.
    """
    _, ending, compression = split_name(path)
    if ending == ".parquet":
        yield from _parquet(path, wanted)
        return
    try:
        with fsspec.open(path, "rb", compression=compression) as file:
            yield from _text_records(path, ending, io.BufferedReader(_Bytes(file), _BUFFER), whole)
    except _CUT as error:
        raise ValueError(f"{path} is truncated or not {compression} ({error}): fetch it again.") from error
    except OSError as error:
        if compression is None or error.errno is not None:
            raise
        raise ValueError(f"{path} is truncated or not {compression} ({error}): fetch it again.") from error


class _Bytes(io.RawIOBase):
    """A file of fsspec as a raw stream, which `io.BufferedReader` can read lines of and look ahead in."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        """It is read, and not written."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer as far as there are bytes."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _text_records(path: str, ending: str, file: io.BufferedReader, whole: bool) -> Iterator[Record]:
    """The records of a file of text."""
    head = file.peek(4)[:4]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16: save it as UTF-8.")
    if head in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise ValueError(f"{path} is a workbook or another archive, and no text: save the sheet as CSV in UTF-8.")
    if head[:3] == b"\xef\xbb\xbf":
        file.read(3)  # the mark that some programs begin UTF-8 with
    if ending == ".txt":
        yield from _texts(path, file, whole)
    elif ending in (".csv", ".tsv"):
        yield from _csv(path, file, "\t" if ending == ".tsv" else None)
    elif _first_character(file) == b"[":
        yield from _json_array(path, file)
    else:
        yield from _json_lines(path, file, "" if ending in FORMATS else _OTHER)


def _first_character(file: io.BufferedReader) -> bytes:
    """The first byte that is no white space, which stays unread."""
    while head := file.peek(1):
        rest = head.lstrip()
        if rest:
            return rest[:1]
        file.read(len(head))
    return b""


def _texts(path: str, file: io.BufferedReader, whole: bool) -> Iterator[Record]:
    lines: Iterable[bytes] = [file.read()] if whole else file
    for number, line in enumerate(lines, start=1):
        place = path if whole else f"{path}, line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield Record(place, {}, problem=f"not UTF-8 ({error}): save the file as UTF-8")
            continue
        if text.strip():
            yield Record(place, {"text": text.strip()}, ("text",))


def _json_lines(path: str, file: io.BufferedReader, read_as: str) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _json_record(f"{path}, line {number}", line, read_as)


def _json_record(place: str, line: bytes, read_as: str) -> Record:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        return Record(place, {}, problem=f"not JSON in UTF-8 ({error}{read_as})")
    return _object(place, row)


def _json_array(path: str, file: io.BufferedReader) -> Iterator[Record]:
    try:
        rows = json.loads(file.read().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error}).") from error
    for number, row in enumerate(rows, start=1):
        yield _object(f"{path}, row {number}", row)


def _object(place: str, row: Any) -> Record:
    if not isinstance(row, dict):
        return Record(place, {}, problem=f"expected an object with text and domain, got {str(row)[:60]!r}")
    return Record(place, row, tuple(row))


def _csv(path: str, file: io.BufferedReader, delimiter: str | None) -> Iterator[Record]:
    """Rows of CSV or TSV below a header; where the header of CSV has no comma, the delimiter is what it has."""
    csv.field_size_limit(_MOST_FIELD)
    not_utf8: set[int] = set()

    def decoded() -> Iterator[str]:
        """Lines of text; the numbers of those that are none are noted."""
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode()
            except UnicodeDecodeError:
                not_utf8.add(number)
                yield line.decode(errors="replace")

    lines = decoded()
    first = next(lines, "")
    above = 0  # lines above the header
    if said := _SEPARATOR.fullmatch(first):  # Excel's own first line
        delimiter, first, above = said[1], next(lines, ""), 1
    if delimiter is None:
        delimiter = next((sign for sign in ",;\t|" if sign in first), ",")
    rows = csv.reader(_chained(first, lines), delimiter=delimiter, strict=True)
    columns = [name.strip() for name in next(rows, [])]
    if above + 1 in not_utf8:
        raise ValueError(f"{path}, line {above + 1}: the header is not UTF-8: save the file as UTF-8.")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}, line {above + 1}: expected a header of different names, got {columns}.")
    while True:
        number = above + rows.line_num + 1
        place = f"{path}, line {number}"
        try:
            fields = next(rows, None)
        except csv.Error as error:
            yield Record(place, {}, columns, f"not CSV ({error})")
            continue
        if fields is None:
            return
        if not_utf8.intersection(range(number, above + rows.line_num + 1)):
            yield Record(place, {}, columns, "not UTF-8: save the file as UTF-8")
        elif fields and len(fields) != len(columns):
            problem = (
                f"expected {len(columns)} fields as in the header, got {len(fields)}; text with {delimiter!r} or a"
            )
            yield Record(place, {}, columns, f"{problem} line break belongs in double quotes")
        elif fields:
            yield Record(place, dict(zip(columns, fields, strict=True)), columns)


def _chained(first: str, lines: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from lines


def _parquet(path: str, wanted: Wanted) -> Iterator[Record]:
    """Rows of Parquet, part by part and only the columns that are wanted."""
    check_package(path)
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            columns = table.schema_arrow.names
            names = _label_names_of_schema(table.schema_arrow.metadata or {})
            number = 0
            for batch in table.iter_batches(_BATCH, columns=[name for name in columns if wanted(name)]):
                for row in batch.to_pylist():
                    number += 1
                    yield named_labels(Record(f"{path}, row {number}", row, columns), names)
    except (ArrowException, EOFError) as error:
        raise ValueError(f"{path} is truncated or not Parquet ({error}): fetch it again.") from error


def _label_names_of_schema(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of labels that are stored as numbers, which the library `datasets` notes in a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {column: list(f["names"]) for column, f in features.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def label_names(features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The names of labels that are stored as numbers, of a data set of the library `datasets`."""
    return {column: feature.names for column, feature in (features or {}).items() if hasattr(feature, "names")}


def named_labels(record: Record, names: Mapping[str, Sequence[str]]) -> Record:
    """A record whose numbered labels are their names."""
    if not names:
        return record
    values = dict(record.values)
    for column, of in names.items():
        number = values.get(column)
        if isinstance(number, int):
            if not 0 <= number < len(of):
                return record._replace(problem=f"label {number} under {column!r} has no name; there are {len(of)}")
            values[column] = of[number]
    return record._replace(values=values)
