"""Collecting as steps of a datatrove pipeline: read rows, sum each domain's, and unite the sums of all tasks.

They are parts for pipelines of your own, too: any reader and filter of datatrove may stand before `SumDomains`, whose
documents say in their metadata which domain they are of. See docs/collecting.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import check_names, file_name
from ir3de.scripts.collecting.sums import Collecting, Privacy, Sums, read_notes, read_sums, save_sums
from ir3de.scripts.data.parts import Part
from ir3de.scripts.data.rows import Report, RowSource, read_part, read_texts_of_part

_TEXTS = 1024  # that are tokenized at a time


class ReadRows(PipelineStep):
    """
    Reads data in any format that `ir3de` knows. Each part, that is a file or a shard of a Hub data set, is read by one
    task, and every row that cannot be used is named or counted.

    Args:
        source ([`RowSource`]): the data.
        parts (`Sequence[Part]`): theirs, in an order that all tasks agree on.
        domain (`str`, *optional*): read only rows of this domain; by default those of all, by their column.

    It keeps a `report` of what it noticed.
    """

    type = "📖 - READER"
    name = "IR3DE rows"

    def __init__(self, source: RowSource, parts: Sequence[Part], domain: str | None = None) -> None:
        super().__init__()
        self.source, self.parts, self.domain = source, list(parts), domain
        self.report = Report()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields the documents of this task's share of the parts."""
        yield from data or ()
        self.report = Report()
        for part in self.parts[rank::world_size]:
            self.stat_update("input_files")
            for number, (domain, text) in enumerate(self._rows(part)):
                yield Document(text, f"{part.name}/{number}", metadata={"domain": domain})

    def _rows(self, part: Part) -> Iterator[tuple[str, str]]:
        if self.domain is None:
            yield from ((row.domain, row.text) for row in read_part(self.source, part, self.report))
        else:
            for text in read_texts_of_part(self.source, self.parts, part, self.domain, self.report):
                yield self.domain, text


class SumDomains(PipelineStep):
    """
    Sums the documents of each domain in a router's feature space, and writes one file a task. The documents pass on.

    Args:
        router (`str`): folder or Hub id of the router.
        folder (`str`): on a disk that all tasks share, for the files of sums.
        domain (`str`, *optional*): of all documents; by default each says it in its metadata.
        domain_key (`str`): where in the metadata.
        device (`str`): where the rows of prompts are summed; one that knows float64.
        private (`bool`): bound what a prompt adds, for [`UniteSums`] to add noise.
        reader ([`ReadRows`], *optional*): that stands before it, to keep what it noticed with the sums.
    """

    type = "📊 - STATS"
    name = "IR3DE sums"

    def __init__(
        self,
        router: str,
        folder: str,
        domain: str | None = None,
        domain_key: str = "domain",
        device: str = "cpu",
        private: bool = False,
        reader: ReadRows | None = None,
    ) -> None:
        super().__init__()
        self.router, self.folder, self.domain, self.domain_key = router, str(folder), domain, domain_key
        self.device, self.private, self.reader = device, private, reader

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Adds documents, and writes the task's file after the last."""
        collecting = Collecting(load_router(self.router), self.device, self.private)
        documents = iter(data)
        while batch := list(itertools.islice(documents, _TEXTS)):
            with self.track_time("batch"):
                collecting.add([self._domain(document) for document in batch], [each.text for each in batch])
            yield from batch
        notes = self.reader.report.as_json() if self.reader else {}
        save_sums(task_file(Path(self.folder), rank), collecting.sums(), collecting.fingerprint, notes)

    def _domain(self, document: Document) -> str:
        if self.domain is not None:
            return self.domain
        domain = document.metadata.get(self.domain_key)
        if not isinstance(domain, str):
            raise ValueError(
                f"Document {document.id} says no domain under {self.domain_key!r} in its metadata, which has"
                f" {', '.join(map(repr, document.metadata)) or 'nothing'}: give `domain` or `domain_key` to SumDomains."
            )
        return domain


class UniteSums(PipelineStep):
    """
    Adds up the sums of all tasks, in order of the tasks, and writes a file of statistics for each domain.

    Args:
        router (`str`): folder or Hub id of the router.
        folder (`str`): with the files of [`SumDomains`].
        output (`str`): a file that ends with `.safetensors`, for a single domain; or a folder, for any number.
        tasks (`int`): how many there were.
        privacy ([`Privacy`], *optional*): promised to each prompt. The sums, which are without noise, are then removed.
    """

    type = "📊 - STATS"
    name = "IR3DE statistics"

    def __init__(self, router: str, folder: str, output: str, tasks: int, privacy: Privacy | None = None) -> None:
        super().__init__()
        self.router, self.folder, self.output, self.tasks = router, str(folder), str(output), tasks
        self.privacy = privacy
        self.written: dict[str, Path] = {}
        self.report = Report()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Writes the files; one task does all."""
        yield from data or ()
        if rank == 0:
            self._unite()

    def _unite(self) -> None:
        model = load_router(self.router)
        empty = model.collector()
        files = [task_file(Path(self.folder), task) for task in range(self.tasks)]
        absent = [str(path) for path in files if not path.is_file()]
        if absent:
            raise ValueError(f"{len(absent)} of {self.tasks} tasks are not done, such as {absent[0]}: run them first.")
        places: dict[str, list[tuple[Path, int]]] = {}
        for path in files:
            domains, notes = read_notes(path, empty.fingerprint)
            self.report.add(Report.from_json(notes))
            for number, domain in enumerate(domains):
                places.setdefault(domain, []).append((path, number))
        self.written = self._targets(sorted(places))
        for domain, target in self.written.items():
            sums = _total(places[domain])
            statistics = sums.statistics(empty.features, empty.fingerprint, self.privacy)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            statistics.save(partial)
            partial.replace(target)
        if self.privacy is not None:
            for path in files:
                path.unlink()

    def _targets(self, domains: Sequence[str]) -> dict[str, Path]:
        """Where the statistics of each domain go."""
        output = Path(self.output)
        if not domains:
            why = " ".join(self.report.notes())
            raise ValueError(
                f"The data have no tokens: name files with text, or see what --where leaves. {why}".strip()
            )
        check_names(domains, "domains")
        if output.suffix != ".safetensors":
            return {domain: output / f"{file_name(domain)}.safetensors" for domain in domains}
        if len(domains) > 1:
            raise ValueError(
                f"{output} is one file, and there are {len(domains)} domains: give a folder for their files."
            )
        return {domains[0]: output}


def task_file(folder: Path, task: int) -> Path:
    """Where a task keeps its sums."""
    return folder / f"{task:05d}.safetensors"


def _total(places: Sequence[tuple[Path, int]]) -> Sums:
    total = read_sums(*places[0])
    for place in places[1:]:
        total += read_sums(*place)
    return total


@lru_cache(maxsize=1)
def load_router(router: str) -> IR3DEModel:
    """The router, loaded once a process."""
    model: IR3DEModel = IR3DEModel.from_pretrained(router)
    return model
