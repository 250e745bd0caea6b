"""A collection from beginning to end: checked, shared out among tasks, run, united."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import check_name
from ir3de.scripts.collecting.engines import Engine, cores
from ir3de.scripts.collecting.steps import ReadRows, SumDomains, UniteSums, load_router
from ir3de.scripts.collecting.sums import Privacy
from ir3de.scripts.data.parts import Part
from ir3de.scripts.data.rows import RowSource
from ir3de.scripts.fitting.private import check_privacy
from ir3de.statistics_ir3de import DomainStatistics

_MOST_TASKS = 128  # unless a person asks for more: each leaves a file
_SMALL = 8 << 20  # bytes of data that are read sooner than a second process has started
_MOST_COMMANDS = 3  # that are told to bring the files to the router
_JOB = "job.json"


@dataclass(frozen=True)
class Collection:
    """
    What is collected.

    Args:
        router (`str`): folder or Hub id of the router.
        source ([`RowSource`]): the data.
        name (`str`, *optional*): of the one domain; by default all that the data name.
        output (`Path`): a file for one domain, or a folder.
        folder (`Path`): for the tasks' sums, logs and marks; shared by all machines of a cluster.
        device (`str`): where the rows of prompts are summed.
        epsilon (`float`, *optional*): of the private mode.
        delta (`float`): of the private mode.
    """

    router: str
    source: RowSource
    name: str | None
    output: Path
    folder: Path
    device: str = "cpu"
    epsilon: float | None = None
    delta: float = 1e-6

    @property
    def privacy(self) -> Privacy | None:
        """What is promised."""
        return None if self.epsilon is None else Privacy(self.epsilon, self.delta)


@dataclass(frozen=True)
class Collected:
    """
    What came of it.

    Args:
        next (`str`): what a person may do now.
        written (`dict[Path, DomainStatistics]`): the files.
        notes (`list[str]`): what was noticed while reading.
    """

    next: str
    written: dict[Path, DomainStatistics] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(
    collection: Collection,
    engine: str = "local",
    tasks: int | None = None,
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Collected:
    """Collects, or goes on with what was begun.

    Args:
        collection ([`Collection`]): what.
        engine (`str`): where: `local`, `slurm` or `ray`.
        tasks (`int`, *optional*): among which the parts of the data are shared; by default as many as there are parts.
        workers (`int`, *optional*): tasks that run at a time; by default as many as this machine has cores.
        options (`Mapping[str, Any]`, *optional*): further arguments of datatrove's executor.

    Raises:
        ValueError: an option is out of range, a row cannot be used, or the folder belongs to another collection.
        FileNotFoundError: there are no such data.
    """
    for option, number in (("--tasks", tasks), ("--workers", workers)):
        if number is not None and number < 1:
            raise ValueError(f"{option} must be at least 1, got {number}.")
    if collection.name is not None:
        check_name(collection.name)
    load_router.cache_clear()  # the folder may hold another router by now
    model = load_router(collection.router)
    if collection.privacy is not None:
        check_privacy(*collection.privacy, model.config.feature_map)
    check_device(collection.device)
    parts = sorted(collection.source.parts(), key=lambda part: part.name)
    tasks = min(tasks or _MOST_TASKS, len(parts))
    workers = min(workers or _workers(parts), tasks)
    sums = _open(collection, model, parts, tasks)
    private = collection.privacy is not None
    reader = ReadRows(collection.source, parts, collection.name)
    summing = SumDomains(collection.router, str(sums), device=collection.device, private=private, reader=reader)
    unite = UniteSums(collection.router, str(sums), str(collection.output), tasks, collection.privacy)
    if not Engine(engine, tasks, workers, collection.folder, options or {}).run([reader, summing], unite):
        return Collected(f"Handed in: {tasks} tasks and a last one that writes {collection.output}.")
    if private:
        shutil.rmtree(collection.folder)
    return _collected(collection, unite)


def _collected(collection: Collection, unite: UniteSums) -> Collected:
    written = {path: DomainStatistics.load(path) for path in unite.written.values()}
    told = next_commands(collection.router, unite.written)
    sums = "" if collection.privacy else f" The sums in {collection.folder} may go."
    told.append(f"It holds no text, but see docs/privacy.md.{sums}")
    return Collected("\n".join(told), written, unite.report.notes())


def next_commands(router: str, written: Mapping[str, Path]) -> list[str]:
    """How the files come into the router, a line a file; the first few stand for many.

    Args:
        router (`str`): folder or Hub id of the router.
        written (`Mapping[str, Path]`): the file of each domain.
    """
    told = [_next_command(router, domain, path) for domain, path in list(written.items())[:_MOST_COMMANDS]]
    rest = len(written) - len(told)
    return [*told, f"And likewise the other {rest:,}."] if rest else told


def _next_command(router: str, domain: str, path: Path) -> str:
    """What brings a file to the router, for a shell: into a folder it is merged, on the Hub published."""
    file, name = shlex.quote(str(path)), shlex.quote(domain)
    if Path(router).is_dir():
        return f"Merge it: ir3de merge {shlex.quote(router)} {file} --name {name}"
    return f"Publish it: ir3de publish {file} --router {shlex.quote(router)} --name {name}"


def _workers(parts: Sequence[Part]) -> int:
    """How many tasks run at a time where nobody says: as many as there are cores, unless starting them takes longer."""
    sizes = [part.size for part in parts]
    known = [size for size in sizes if size is not None]
    return 1 if len(known) == len(sizes) and sum(known) < _SMALL else cores()


def _open(collection: Collection, model: IR3DEModel, parts: Sequence[Part], tasks: int) -> Path:
    """The folder for the tasks' sums. What was begun there must be the same collection.

    Raises:
        ValueError: it is another one.
    """
    source = collection.source
    about = [model.collector().fingerprint, model.config.max_length, tasks, collection.name, collection.epsilon is None]
    about += [source.text_column, source.domain_column, source.where, source.any_domain, source.skip_bad_rows]
    about += [[part.name, part.size] for part in parts]
    job = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    path = collection.folder / _JOB
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("job") != job:
        raise ValueError(
            f"{collection.folder} holds tasks of other data, options or another router: go on with that collection, or"
            " remove the folder."
        )
    collection.folder.mkdir(parents=True, exist_ok=True, mode=0o700 if collection.privacy else 0o777)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"job": job}), encoding="utf-8")
    partial.replace(path)
    return collection.folder / "sums"


def check_device(name: str | torch.device) -> torch.device:
    """Returns a device that can sum in float64, or raises ValueError."""
    try:
        device = torch.device(name)
        torch.ones(1, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--device {name} cannot sum in float64 here ({reason}): use cpu, or a CUDA GPU.") from error
    return device


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Options `KEY=VALUE` of an executor; a value that is JSON is that, else text.

    Raises:
        ValueError: one has no key.
    """
    options: dict[str, Any] = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise ValueError(f"--engine-option takes KEY=VALUE, got {option!r}.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options
