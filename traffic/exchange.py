"""Servers that learn together: each says in files of its own what its store holds, and reads what the others say.

A server writes in its own folder alone, on top of the commit that it has read before its store: so what is there later
is never older. A folder that is removed is a server that says nothing.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from ir3de.outcomes_ir3de import Ledger

from .errors import ExchangeRefused, MovedOn, OtherStore
from .remade import TAG, Remade
from .statements import MANIFEST, Filed, Known, Manifest, Said, join, manifest_of, packed, read_manifest, unpacked

logger = logging.getLogger(__name__)

FOLDER = "exchange"
ATTEMPTS = 30  # to write, while others write too
_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds before the second attempt, and at most
_MOST_MANIFEST, _MOST_BYTES = 1 << 20, 1 << 28  # of a server
_MOST_SERVERS = 1_000
_TAG_FORM = re.compile(f"[0-9a-f]{{{TAG}}}")


class Found(NamedTuple):
    """
    A file of the repository.

    Args:
        size (`int`): in bytes.
        id (`str`): SHA-256 of its content, or what git names that by.
    """

    size: int
    id: str


class Place(Protocol):
    """A repository with commits, as the Hub's. All of it raises [`ExchangeRefused`] where it cannot be reached."""

    def head(self) -> str:
        """The present commit; empty where there is none yet."""

    def files(self, head: str) -> dict[str, Found]:
        """The files below `FOLDER` in a commit, by their paths."""

    def fetch(self, head: str, path: str, folder: Path) -> Path:
        """Brings a file of a commit into a folder of this machine."""

    def commit(self, head: str, files: Mapping[str, bytes | None], message: str) -> None:
        """Writes files, or removes them (None), on top of a commit.

        Raises:
            MovedOn: it is not the present one any more. Nothing was written.
        """


class Exchange:
    """
    What a server knows of all that exchange outcomes with it.

    Args:
        place ([`Place`]): where they do.
        pause (`float`): seconds that an attempt to write waits at most after the first one; later ones wait longer.
    """

    def __init__(self, place: Place, pause: float = _PAUSE) -> None:
        self.known: Known = {}
        self.aside: dict[str, str] = {}  # servers that are not read, and why
        self._place = place
        self._pause = pause
        self._seen: dict[str, str] = {}  # the manifests that were read
        self._met: set[str] = set()  # servers that were ever known

    def round(self, own: Callable[[], Remade], write: bool = True, replaced: frozenset[str] = frozenset()) -> Remade:
        """Reads what others say, and says what a store holds.

        Args:
            own (`Callable`): remakes the ledger of this server's store.
            write (`bool`): whether to say it.
            replaced (`frozenset[str]`): tags of servers of which what another store said gives way.

        Returns:
            [`Remade`]: of all.

        Raises:
            OtherStore: another store has said something under the name of a server of this one. Nothing was written.
            ExchangeRefused: the repository cannot be read or written. What could be read is known.
            StoreUnavailable: the store cannot be read.
        """
        for attempt in range(ATTEMPTS):
            head = self._place.head()
            found = self._place.files(head) if head else {}
            # After the head: what is written on top of it is then no older than what is there.
            made = own()
            with tempfile.TemporaryDirectory(prefix="ir3de-exchange-") as folder:
                self._read(head, found, made, replaced, Path(folder))
            made = made._replace(tags=self._own(made, replaced))
            changes = self._changes(made, found) if write else {}
            if not changes:
                return self.united(made)
            try:
                self._place.commit(head, changes, "Outcomes of traffic")
                return self.united(made)
            except MovedOn:
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE, self._pause * 2**attempt)))
        raise ExchangeRefused(f"others wrote to it during each of {ATTEMPTS} attempts")

    def united(self, made: Remade) -> Remade:
        """What a store and all others that are known are worth together.

        Args:
            made ([`Remade`]): of the store. Of its servers it says more than anybody else.
        """
        ledger, outcomes = made.ledger, made.outcomes
        others = {tag: said.ledger for tag, said in sorted(self.known.items()) if tag not in made.tags}
        for other in others.values():
            ledger = ledger | other
            outcomes += other.number
        return Remade(ledger, made.tags | self._met, outcomes)

    def _own(self, made: Remade, replaced: frozenset[str]) -> frozenset[str]:
        """The servers that a store speaks for: not one that it has nothing of any more, and another store has.

        Raises:
            OtherStore: both have.
        """
        said = {tag: self.known[tag] for tag in made.tags - replaced if tag in self.known}
        anothers = {tag for tag, each in said.items() if each.files and each.store not in ("", made.store)}
        if both := sorted(anothers & made.held):
            for tag in both:  # of which the hashes alone were looked at: once the store has left it, all is read
                del self.known[tag], self._seen[tag]
            raise OtherStore(
                f"{FOLDER}/{both[0]} there holds what another store says under the same name of a server. Give each"
                " server a `--replica` of its own, and what this store has already of this one the new name too:"
                " `ir3de outcomes ROUTER --from-store STORE --rename OLD=NEW`. Or where the other store is lost, let"
                " this one take its place: `ir3de outcomes ROUTER --from-store STORE --exchange REPO_ID --take-over`"
            )
        return made.tags - anothers

    def _read(
        self, head: str, found: Mapping[str, Found], made: Remade, replaced: frozenset[str], folder: Path
    ) -> None:
        """Takes in what has changed; a server whose files are wrong is set aside, and known as before."""
        tags = {path.split("/")[1] for path in found}
        self.known = {tag: said for tag, said in self.known.items() if tag in tags}
        self.aside = {tag: why for tag, why in self.aside.items() if tag in tags}
        self._seen = {tag: id_ for tag, id_ in self._seen.items() if tag in tags}
        for tag in sorted(tags):
            manifest = found.get(f"{FOLDER}/{tag}/{MANIFEST}", Found(0, ""))
            if self._seen.get(tag) == manifest.id:
                continue
            try:
                if not manifest.id or not _TAG_FORM.fullmatch(tag):
                    raise ValueError("it is no folder of a server")
                if len(self.known) >= _MOST_SERVERS and tag not in self.known:
                    raise ValueError(f"there are {_MOST_SERVERS:,} servers already")
                listed = self._manifest(head, tag, found, folder)
                own = tag in made.tags and (listed.store in ("", made.store) or tag in made.held or tag in replaced)
                said = self._said(head, tag, listed, found, own, folder)
            except ValueError as error:
                self._set_aside(tag, str(error))
            else:
                self.aside.pop(tag, None)
                self._take_in(tag, said, own)
            self._seen[tag] = manifest.id

    def _take_in(self, tag: str, said: Said, own: bool) -> None:
        """Takes in what a server says; of this one's own what is there, to compare it with the store."""
        self._met.add(tag)
        if own and tag in self.known:
            said = said._replace(sequence=max(said.sequence, self.known[tag].sequence))
        self.known = self.known | {tag: said} if own else join(self.known, {tag: said})

    def _set_aside(self, tag: str, why: str) -> None:
        """Says once why a server is not read."""
        if self.aside.get(tag) != why:
            logger.error("What %r says in the exchange is not read: %s", tag[:40], why[:400])
        self.aside[tag] = why

    def _manifest(self, head: str, tag: str, found: Mapping[str, Found], folder: Path) -> Manifest:
        """What a server lists.

        Raises:
            ValueError: it is malformed.
        """
        path = f"{FOLDER}/{tag}/{MANIFEST}"
        _check_size(path, found[path].size, _MOST_MANIFEST)
        return read_manifest(self._place.fetch(head, path, folder).read_bytes())

    def _said(
        self, head: str, tag: str, manifest: Manifest, found: Mapping[str, Found], own: bool, folder: Path
    ) -> Said:
        """What a server says; of this one's own store only the hashes are looked at.

        Raises:
            ValueError: a file is wrong, or missing.
        """
        before = self.known[tag].files if tag in self.known else {}
        listed = (found.get(f"{FOLDER}/{tag}/{name}") for name in manifest.files)
        _check_size(tag, sum(file.size for file in listed if file), _MOST_BYTES)
        files = {}
        for name, digest in manifest.files.items():
            if own:
                files[name] = Filed(digest)
            elif name in before and before[name].digest == digest and before[name].ledger is not None:
                files[name] = before[name]
            else:
                files[name] = self._filed(head, tag, name, digest, found, folder)
        return Said(manifest.sequence, files, manifest.store)

    def _filed(self, head: str, tag: str, name: str, digest: str, found: Mapping[str, Found], folder: Path) -> Filed:
        """A file that the manifest names.

        Raises:
            ValueError: it is another one, or its content is wrong.
        """
        path = f"{FOLDER}/{tag}/{name}"
        if path not in found:
            raise ValueError(f"{name} is missing")
        fetched = self._place.fetch(head, path, folder)
        if hashlib.sha256(fetched.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{name} is not the file that its manifest names")
        ledger = unpacked(fetched, tag, name)
        fetched.unlink()
        return Filed(digest, ledger)

    def _changes(self, made: Remade, found: Mapping[str, Found]) -> dict[str, bytes | None]:
        """The files to write, or to remove, so that the repository says what the store says."""
        changes: dict[str, bytes | None] = {}
        for tag in sorted(made.tags):
            here = f"{FOLDER}/{tag}/"
            now = packed(_of_tag(made.ledger, tag))
            there = {path.removeprefix(here): file.id for path, file in found.items() if path.startswith(here)}
            wanted: dict[str, bytes | None] = dict.fromkeys(there.keys() - {*now, MANIFEST})
            wanted |= {name: content for name, content in now.items() if there.get(name) not in _ids(content)}
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in now.items()}
            before = self.known.get(tag)
            is_said = before is not None and before.digests == digests and tag not in self.aside
            if before is not None and digests and made.store:
                is_said = is_said and before.store == made.store
            if wanted or not (is_said or (before is None and not there)):
                wanted[MANIFEST] = manifest_of(before, digests, made.store)
            changes |= {here + name: content for name, content in wanted.items()}
        return changes


def _check_size(what: str, size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{what} has {size:,} bytes, expected at most {most:,}")


def _ids(content: bytes) -> set[str]:
    """What a repository may name a content by."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return {hashlib.sha256(content).hexdigest(), git.hexdigest()}


def _of_tag(ledger: Ledger, tag: str) -> Ledger:
    """The contributions of one server."""
    return Ledger(
        {
            expert: {name: part for name, part in parts.items() if name.startswith(tag)}
            for expert, parts in ledger.contributions.items()
        }
    )
