"""What a server says in an exchange, as files: what it counted, and which of its files that is.

    exchange/3f0c95b1a2d7/manifest.json            a server's, named by what its contributions' names begin with
    exchange/3f0c95b1a2d7/2026-11-28.safetensors   the contributions of a day, of all experts
    exchange/3f0c95b1a2d7/2026-09.safetensors      those of all days of a month

The manifest lists the files with their hashes, and has a number that rises each time that something changes. Of what is
known of a server the highest number counts, and all that it does not list is gone: so whoever reads in whatever order,
twice, or late, ends with the same contributions, and nothing counts twice. What was taken back leaves files that never
had it, but for the number.

Files of a month take the place of those of its days once the server has answers of the second month after it. Each day
stays a contribution of its own in them, since a half-life weighs days, and one may be set later.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import save

from ir3de.names_ir3de import check_name
from ir3de.outcomes_ir3de import Ledger, contributions_of, header_of, opened

FORMAT = "ir3de-exchange-1"
MANIFEST = "manifest.json"
_MOST_FILES = 4_000  # of a server
_MOST_SEQUENCE = 1 << 62
_FILE_FORM = re.compile(r"(\d{4}-\d{2}(?:-\d{2})?)\.safetensors")
_HASH_FORM = re.compile(r"[0-9a-f]{64}")
_STORE_FORM = re.compile(r"([0-9a-f]{32})?")


class Filed(NamedTuple):
    """
    A file of contributions.

    Args:
        digest (`str`): SHA-256 of its bytes.
        ledger ([`Ledger`], *optional*): what is in it; None where only the hash was looked at.
    """

    digest: str
    ledger: Ledger | None = None


class Said(NamedTuple):
    """
    What a server said.

    Args:
        sequence (`int`): that rises each time that it says something else.
        files (`dict[str, Filed]`): by their names.
        store (`str`): tells the store that they are of from all others; empty where they do not say.
    """

    sequence: int
    files: dict[str, Filed]
    store: str = ""

    @property
    def digests(self) -> dict[str, str]:
        """The hashes of the files."""
        return {name: filed.digest for name, filed in self.files.items()}

    @property
    def rank(self) -> tuple[int, list[tuple[str, str]]]:
        """Of two that a server said, the one with the higher rank counts."""
        return self.sequence, sorted(self.digests.items())

    @property
    def ledger(self) -> Ledger:
        """All contributions of the server."""
        united = Ledger()
        for _, filed in sorted(self.files.items()):
            united = united | (filed.ledger or Ledger())
        return united


Known = dict[str, Said]  # by the servers' tags


def join(one: Mapping[str, Said], other: Mapping[str, Said]) -> Known:
    """What two know together: the same in whatever order, and however often."""
    joined = {}
    for tag in sorted({*one, *other}):
        said = [known[tag] for known in (one, other) if tag in known]
        joined[tag] = max(said, key=lambda each: each.rank)
    return joined


def packed(ledger: Ledger) -> dict[str, bytes]:
    """A server's contributions as files; the same ones give the same bytes.

    Args:
        ledger ([`Ledger`]): its contributions, each of a day.

    Returns:
        `dict[str, bytes]`: by names: of a month and the one before it a file a day, of older ones a file a month.
    """
    by_day = ledger.by_day()
    days = sorted(by_day)
    first = _month_before(days[-1]) if days else ""
    by_name: dict[str, Ledger] = defaultdict(Ledger)
    for day in days:
        period = day if day >= first else day[:7]
        by_name[f"{period}.safetensors"] |= by_day[day]
    return {name: bytes_of(part) for name, part in by_name.items()}


def _month_before(day: str) -> str:
    """The month before a day's, as in 2026-10."""
    year, month = int(day[:4]), int(day[5:7])
    return f"{year:04d}-{month - 1:02d}" if month > 1 else f"{year - 1:04d}-12"


def bytes_of(ledger: Ledger) -> bytes:
    """A file of contributions: the ledger's own form, for several experts.

    Args:
        ledger ([`Ledger`]): the contributions.
    """
    experts = {expert: header_of(parts) for expert, parts in ledger.contributions.items()}
    tensors = {
        f"{expert}/{name}": part.sums for expert, parts in ledger.contributions.items() for name, part in parts.items()
    }
    header = {"format": FORMAT, "experts": experts}
    return save(tensors, metadata={"ir3de": json.dumps(header, sort_keys=True)})


def unpacked(path: Path, tag: str, name: str) -> Ledger:
    """The contributions in a file, checked as a stranger's.

    Args:
        path (`Path`): where it lies.
        tag (`str`): of the server whose file it is.
        name (`str`): that it has there.

    Raises:
        ValueError: it is damaged, of another version, or holds what is not of this server and time.
    """
    ledger = ledger_in(path, name)
    period = name.removesuffix(".safetensors")
    for parts in ledger.contributions.values():
        for contribution, part in parts.items():
            if not contribution.startswith(tag) or part.day is None or not part.day.startswith(period):
                raise ValueError(f"{name}: contribution {contribution} of {part.day} belongs elsewhere.")
    return ledger


def ledger_in(path: Path, name: str = "") -> Ledger:
    """The contributions in a file, checked as a stranger's but for whose they are.

    Args:
        path (`Path`): where it lies.
        name (`str`, *optional*): for messages; by default that which it has there.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    name = name or path.name
    of_expert: dict[str, dict[str, str]] = defaultdict(dict)
    with opened(path) as (file, header):
        _check_format(name, header)
        for tensor in file.keys():  # noqa: SIM118 (no mapping)
            expert, _, contribution = tensor.rpartition("/")
            of_expert[expert][contribution] = tensor
        experts = header.get("experts")
        if not isinstance(experts, dict) or experts.keys() != of_expert.keys():
            raise ValueError(f"{name}: its header does not name the experts that it has sums of.")
        return Ledger(
            {
                check_name(expert): contributions_of(name, experts[expert], file, tensors)
                for expert, tensors in sorted(of_expert.items())
            }
        )


def _check_format(name: str, header: Any) -> None:
    """Raises ValueError where a file is of another version."""
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise ValueError(f"{name} has format {str(found)[:60]!r}; this version reads {FORMAT!r}.")


def manifest_of(before: Said | None, digests: Mapping[str, str], store: str = "") -> bytes:
    """A manifest, with a number above the one before.

    Args:
        before ([`Said`], *optional*): what the server said before. Where nobody can tell any more the clock does: a
            number is never below the seconds since 1970.
        digests (`Mapping[str, str]`): SHA-256 of its files.
        store (`str`): tells the store that they are of from all others.
    """
    sequence = max(before.sequence + 1 if before else 0, int(time.time()))
    manifest = {"format": FORMAT, "sequence": sequence, "files": digests, **({"store": store} if store else {})}
    return json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"


class Manifest(NamedTuple):
    """
    A manifest as it was read.

    Args:
        sequence (`int`): its number.
        files (`dict[str, str]`): the files' SHA-256.
        store (`str`): whose they are; empty in those of a version that did not say.
    """

    sequence: int
    files: dict[str, str]
    store: str


def read_manifest(content: bytes) -> Manifest:
    """Reads a manifest.

    Raises:
        ValueError: it is malformed.
    """
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"{MANIFEST} is no JSON") from None
    _check_format(MANIFEST, manifest)
    sequence, files, store = manifest.get("sequence"), manifest.get("files"), manifest.get("store", "")
    if type(sequence) is not int or not 0 <= sequence < _MOST_SEQUENCE:
        raise ValueError(f"{MANIFEST} has no number from 0 to {_MOST_SEQUENCE:.2g} as its sequence")
    if not isinstance(files, dict) or len(files) > _MOST_FILES:
        raise ValueError(f"{MANIFEST} does not list at most {_MOST_FILES:,} files")
    for name, digest in files.items():
        if not _FILE_FORM.fullmatch(name) or not isinstance(digest, str) or not _HASH_FORM.fullmatch(digest):
            raise ValueError(f"{MANIFEST} lists {name[:60]!r}, which is no file of a day or month with its SHA-256")
    if not isinstance(store, str) or not _STORE_FORM.fullmatch(store):
        raise ValueError(f"{MANIFEST} has a `store` that is not 32 hexadecimal digits")
    return Manifest(sequence, files, store)
