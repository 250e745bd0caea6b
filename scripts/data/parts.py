"""What a source of data consists of: files, shards of a Hub data set, or a table in memory, each read by itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from ir3de.scripts.command import need
from ir3de.scripts.data.records import (
    FORMATS,
    Record,
    Wanted,
    check_package,
    label_names,
    named_labels,
    read_records,
    split_name,
)


class Part(Protocol):
    """
    What is read by one task.

    Args:
        name (`str`): for people, and to sort by.
        domain (`str`, *optional*): that the place of the part gives its rows, where they name none themselves.
    """

    @property
    def name(self) -> str:
        """Where it is."""

    @property
    def domain(self) -> str | None:
        """What its rows belong to, by the name of its folder or file."""

    @property
    def size(self) -> int | None:
        """Its bytes, where they are known."""

    @property
    def at_hand(self) -> bool:
        """Whether it is on this machine."""

    def records(self, wanted: Wanted) -> Iterator[Record]:
        """Streams its rows."""


@dataclass(frozen=True)
class FilePart:
    """
    A file.

    Args:
        name (`str`): its path or address.
        domain (`str`, *optional*): by its place in a folder.
        whole (`bool`, *optional*): a text file is one prompt; else each of its lines is.

    Raises:
        ImportError: what reads it is not installed.
    """

    name: str
    domain: str | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        check_package(self.name)

    @property
    def size(self) -> int | None:
        """Its bytes."""
        fs, path = fsspec.url_to_fs(self.name)
        size: int | None = fs.size(path)
        return size

    @property
    def at_hand(self) -> bool:
        """Whether it is on this machine."""
        return "://" not in self.name

    def records(self, wanted: Wanted) -> Iterator[Record]:
        """Streams its rows."""
        return read_records(self.name, wanted, self.whole)


class _WithoutPlace:
    """What parts have in common that are no files: no place says a domain, and nothing tells their size."""

    @property
    def domain(self) -> str | None:
        """None: rows must name theirs."""
        return None

    @property
    def size(self) -> int | None:
        """None: it is not known."""
        return None


@dataclass(frozen=True)
class HubPart(_WithoutPlace):
    """
    A shard of a Hub data set.

    Args:
        dataset (`str`): its id, or `id:configuration`.
        split (`str`): such as `train`.
        shard (`int`): number of the shard, from 0.
        shards (`int`): how many there are.
    """

    dataset: str
    split: str
    shard: int = 0
    shards: int = 1

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.dataset}, {self.split}" + (f", shard {self.shard}" if self.shards > 1 else "")

    @property
    def at_hand(self) -> bool:
        """It is not on this machine."""
        return False

    def records(self, wanted: Wanted) -> Iterator[Record]:
        """Streams its rows."""
        rows: Any = _load_hub(self.dataset, self.split)
        if self.shards > 1:
            rows = rows.shard(num_shards=self.shards, index=self.shard)
        return _records_of_rows(self.name, rows, label_names(getattr(rows, "features", None)))


@dataclass(frozen=True)
class TablePart(_WithoutPlace):
    """
    A table in memory.

    Args:
        table (`Any`): a data frame of pandas, a data set of `datasets`, or a list of mappings.
    """

    table: Any

    @property
    def name(self) -> str:
        """What it is."""
        return type(self.table).__name__

    @property
    def at_hand(self) -> bool:
        """It is in memory."""
        return True

    def records(self, wanted: Wanted) -> Iterator[Record]:
        """Streams its rows."""
        if hasattr(self.table, "itertuples"):  # of pandas
            columns = [str(name) for name in self.table.columns]
            rows = (dict(zip(columns, row, strict=True)) for row in self.table.itertuples(index=False, name=None))
            return _records_of_rows(self.name, rows, {})
        return _records_of_rows(self.name, self.table, label_names(getattr(self.table, "features", None)))


def _records_of_rows(name: str, rows: Iterable[Any], names: dict[str, list[str]]) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        yield named_labels(Record(f"{name}, row {number}", row, tuple(row)), names)


def parts_of(source: Any, split: str) -> list[Part]:
    """What a source consists of, in a fixed order.

    Args:
        source (`str`, or a table in memory): a file, a folder, an address that fsspec knows, or a Hub data set's id.
        split (`str`): of a Hub data set.

    Raises:
        FileNotFoundError: there is no such file, folder or data set.
        ValueError: a folder has no file of a known format.
    """
    if not isinstance(source, str):
        if isinstance(source, dict):
            raise ValueError(f"These data are split into {', '.join(map(str, source))}: give one of them.")
        return [TablePart(source)]
    if "://" in source:
        return _of_address(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(str(path))
    if path.is_file():
        return [FilePart(str(path))]
    if _looks_like_a_path(source):
        raise FileNotFoundError(f"There is no file {source}.{_near_file(path)}")
    shards = getattr(_load_hub(source, split), "num_shards", 1)
    return [HubPart(source, split, shard, shards) for shard in range(shards)]


def is_hub_id(source: str) -> bool:
    """Whether a source is read from the Hub: it is no address, no file or folder, and not meant as one."""
    return "://" not in source and not Path(source).expanduser().exists() and not _looks_like_a_path(source)


def _of_address(source: str) -> list[Part]:
    fs, path = fsspec.url_to_fs(source)
    if fs.isdir(path):
        return _of_folder(source)
    if not fs.exists(path):
        raise FileNotFoundError(f"There is no file {source}.")
    return [FilePart(source)]


def _of_folder(source: str) -> list[Part]:
    """Its files, at any depth; a row that names no domain has that of the first folder below, or else of the file."""
    fs, root = fsspec.url_to_fs(source)
    if fs.isfile(f"{root}/dataset_info.json") and fs.isfile(f"{root}/state.json"):
        need("datasets", "data", f"Reading {source} needs datasets")
        from datasets import load_from_disk

        return [TablePart(load_from_disk(source))]
    parts: list[Part] = []
    for path in sorted(fs.find(root)):
        below = path[len(root) :].strip("/").split("/")
        bare, ending, _ = split_name(path)
        if ending not in FORMATS or any(name.startswith((".", "_")) for name in below):
            continue
        place = path if "://" not in source else fs.unstrip_protocol(path)
        deep = len(below) > 1
        parts.append(FilePart(place, below[0] if deep else bare, whole=deep and ending == ".txt"))
    if not parts:
        raise ValueError(f"{source} has no file that ends with {', '.join(FORMATS)}, plain or .gz.")
    return parts


def _looks_like_a_path(source: str) -> bool:
    """Whether a name that is not there was meant as a file: an id has at most one slash, and no ending of a file."""
    name = source.partition(":")[0]
    return split_name(source)[1] in FORMATS or name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name


def _near_file(path: Path) -> str:
    """A file of a similar name, if there is one."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _load_hub(dataset: str, split: str) -> Any:
    """A Hub data set that is read as a stream.

    Raises:
        FileNotFoundError: there is none of this id, or it is not open to this account.
        ValueError: there is no such split or configuration.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError as error:
        raise ImportError(f'Reading the Hub data set {dataset} needs datasets: `pip install "ir3de[data]"`.') from error
    name, _, configuration = dataset.partition(":")
    try:
        return load_dataset(name, configuration or None, split=split, streaming=True)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"There is no file or folder {dataset}, and no Hub data set of this id that you may read ({error})"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"There is no file or folder {dataset}, and the Hub, where it may be a data set, cannot be reached"
            f" ({error})."
        ) from error
