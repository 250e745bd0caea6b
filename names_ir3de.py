"""Names of experts and domains as people write them, and the file names that follow from them.

A name is any text that prints. Its file name is the name itself where that is safe on every file system, as of routers
that only knew such names; else it begins with `=`, and what is no lower-case letter, digit, `.`, `_` or `-` is written
as its bytes in UTF-8, `=` and two digits each, as in quoted-printable text. So file names are ASCII without upper-case
letters that matter, cannot leave their folder, and tell the name. One that would be too long is a hash, `+` and 40
digits, which only those who know the name can tell.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

MOST_CHARACTERS = 100  # of a name
_MOST_FILE = 200  # characters of a file name, without its ending; file systems take 255 with it
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
_KEPT = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_UNPRINTED = {"Cc": "a control character", "Cf": "an invisible character", "Cs": "half a surrogate pair"}
_UNPRINTED |= {"Co": "a private character", "Zl": "a line break", "Zp": "a line break", "Zs": "an unusual space"}
# Characters that have a place among letters and marks, and show nothing: joiners, fillers, selectors of variants.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def check_name(name: object) -> str:
    """Returns `name` if it can name an expert or a domain, else raises.

    Args:
        name (`object`): 1 to 100 characters that print, spaces among them but not at its ends.

    Raises:
        ValueError: `name` is anything else.
    """
    problem = problem_of(name)
    if problem:
        raise ValueError(f"{name!r} cannot name an expert: {problem}. Give it another name, such as 'civil law'.")
    return str(name)


def problem_of(name: object) -> str:
    """Why something cannot name an expert or a domain; empty where it can."""
    if not isinstance(name, str):
        return "it is no text"
    if not 1 <= len(name) <= MOST_CHARACTERS:
        return f"it has {len(name)} characters, expected 1 to {MOST_CHARACTERS}"
    for place, character in enumerate(name, start=1):
        kind = unicodedata.category(character)
        if kind in _UNPRINTED and character != " ":
            return f"its character {place} is {_UNPRINTED[kind]} (U+{ord(character):04X}), which does not print"
    if name != name.strip():
        return "it begins or ends with a space"
    return "" if look(name) else "nothing of it can be seen"


def check_names(names: Iterable[object], kind: str = "experts") -> None:
    """Raises ValueError unless all can be names of one router, which are told apart by people and by file systems.

    Args:
        names (`Iterable[object]`): of its experts, or of its domains.
        kind (`str`): which they are, for the message.
    """
    problems, by_look, by_file = [], dict[str, str](), dict[str, str]()
    for name in names:
        if problem := problem_of(name):
            problems.append(f"{name!r} cannot name an expert: {problem}.")
            continue
        text = str(name)
        file = file_name(text).lower()
        if look(text) in by_look:
            other = by_look[look(text)]
            how = "they look the same" if other != text else "each name is for one"
            problems.append(f"Two {kind} are named {other!r} and {text!r}: {how}.")
        elif file in by_file:
            problems.append(f"Two {kind} are named {by_file[file]!r} and {text!r}: their files differ by case alone.")
        by_look[look(text)] = by_file[file] = text
    if problems:
        raise ValueError(f"{' '.join(problems)} Give other names, as with --rename OLD=NEW.")


def alike(one: str, other: str) -> bool:
    """Whether two names cannot be in one router."""
    return look(one) == look(other) or file_name(one).lower() == file_name(other).lower()


def look(name: str) -> str:
    """What can be seen of a name: equal for names that look the same."""
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", name)).split())


@lru_cache(maxsize=4096)  # of which a corpus asks for every row
def tidy(name: str) -> str:
    """A name as it is meant: without spaces at its ends, with plain ones inside, accents in their usual form."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _quoted(character: str) -> str:
    return "".join(f"={byte:02x}" for byte in character.encode())


def file_name(name: str) -> str:
    """The file name of an expert or domain, without an ending; see this file's beginning.

    Args:
        name (`str`): that [`check_name`] has passed.
    """
    if _PLAIN.fullmatch(name) and name.split(".", maxsplit=1)[0].lower() not in _RESERVED:
        return name
    quoted = "".join(each if each in _KEPT else _quoted(each) for each in name)
    if quoted.endswith("."):
        quoted = f"{quoted[:-1]}=2e"
    if len(quoted) < _MOST_FILE:
        return f"={quoted}"
    return f"+{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def name_of_file(stem: str, known: Iterable[str] = ()) -> str:
    """The name that a file name follows from.

    Args:
        stem (`str`): the file name without its ending.
        known (`Iterable[str]`, *optional*): names that it may be of, where it does not tell.

    Raises:
        ValueError: it follows from no name, or does not tell from which.
    """
    for name in known:
        if file_name(name) == stem:
            return name
    if stem.startswith("+"):
        raise ValueError(f"{stem!r} is the file of a name too long to be told from it: say the name.")
    try:
        name = re.sub("((?:=[0-9a-f]{2})+)", _unquoted, stem[1:]) if stem.startswith("=") else stem
    except UnicodeDecodeError:
        name = ""
    if problem_of(name) or file_name(name) != stem:
        raise ValueError(f"{stem!r} is not named after a domain, as files of `ir3de collect` are: say the name.")
    return name


def _unquoted(match: re.Match[str]) -> str:
    return bytes.fromhex(match[1].replace("=", "")).decode()
