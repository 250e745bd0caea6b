"""Which columns of a record hold the prompt and its domain, and what they hold."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ir3de.names_ir3de import problem_of, tidy
from ir3de.scripts.data.records import Record

TEXT_COLUMNS = ("text", "prompt", "question", "instruction", "messages", "query", "utterance", "sentence")
DOMAIN_COLUMNS = ("domain", "label", "category", "intent")


class Row(NamedTuple):
    """
    A labelled prompt.

    Args:
        text (`str`): the prompt.
        domain (`str`): whose expert should answer it.
        source (`str`): where it came from, if the data say so; else empty.
        split (`str`): such as `train`, if the data say so; else empty.
        group (`str`): what it must be held out with, where a person names a column of groups; else empty.
    """

    text: str
    domain: str
    source: str = ""
    split: str = ""
    group: str = ""


class BadRowError(ValueError):
    """A row that cannot be used; the message names its file and line."""


@dataclass(frozen=True)
class Columns:
    """
    Where the rows of a part hold what.

    Args:
        text_column (`str`): with the prompt.
        domain_column (`str`, *optional*): with the domain, if there is one.
        place_domain (`str`, *optional*): the domain that the place of the part gives.
        by_hand (`bool`): a person named the domain's column.
        rename (`Mapping[str, str]`): other names of domains.
        guess (`str`): says what was guessed; else empty.
    """

    text_column: str
    domain_column: str | None
    place_domain: str | None
    by_hand: bool
    rename: Mapping[str, str]
    guess: str = ""
    _usable: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def chosen(
        cls,
        first: Record,
        text_column: str | None,
        domain_column: str | None,
        place: str | None,
        rename: Mapping[str, str],
    ) -> Columns:
        """The columns that a person named, or else the first of the common names that a part's first record has.

        Args:
            first ([`Record`]): of the part.
            text_column (`str`, *optional*): that a person named.
            domain_column (`str`, *optional*): that a person named.
            place (`str`, *optional*): the domain that the place of the part gives.
            rename (`Mapping[str, str]`): other names of domains.

        Raises:
            BadRowError: there is none with text.
        """
        text = text_column or _first_of(TEXT_COLUMNS, first.columns)
        if text is None or (text_column and text not in first.columns):
            expected = repr(text_column) if text_column else f"one of {', '.join(TEXT_COLUMNS)}"
            raise BadRowError(
                f"{first.place}: expected text under {expected}, but the row has {_listed(first.columns)}."
                f"{nearest(text_column or 'text', first.columns)} Name the column of the prompts with --text-column."
            )
        domain = domain_column or _first_of(DOMAIN_COLUMNS, first.columns)
        guesses = [
            f"{what} from {found!r}"
            for what, found in (("prompts", text), ("domains", domain))
            if found is not None and found not in ("text", "domain", text_column, domain_column)
        ]
        guess = f"Read {' and '.join(guesses)}: --text-column and --domain-column choose others." if guesses else ""
        return cls(text, domain, place, domain_column is not None, rename, guess)

    def row(self, record: Record) -> Row:
        """The record as a labelled prompt.

        Raises:
            BadRowError: it has no text or no domain.
        """
        domain = self._usable_domain(record)
        extra = (str(record.values.get(key) or "") for key in ("source", "split"))
        return Row(self.text(record), domain, *extra)

    def text(self, record: Record) -> str:
        """The prompt: text, or of a chat its last user message, as a router reads it.

        Raises:
            BadRowError: there is none.
        """
        value = record.values.get(self.text_column)
        text = value if isinstance(value, str) else _text_of_chat(value)
        if not text or not text.strip():
            raise self._missing(record, self.text_column, "--text-column")
        check_unicode(record.place, text)
        return text

    def told_domain(self, record: Record, by_place: bool) -> str | None:
        """What a record says its domain is, where that means what we mean; else None."""
        column = self._column(record)
        if column is not None and (self.by_hand or column.lower() == "domain"):
            return self._usable_domain(record)
        return self._named(self.place_domain) if by_place and self.place_domain else None

    def _column(self, record: Record) -> str | None:
        """The column with the domain, which the first record of a file may have lacked."""
        if self.domain_column is not None and (self.place_domain is None or self.domain_column in record.values):
            return self.domain_column
        return "domain" if "domain" in record.values else None

    def domain(self, record: Record) -> str:
        """The record's domain, renamed as a person wished, whether or not it can be a name.

        Raises:
            BadRowError: there is none.
        """
        column = self._column(record)
        if column is None:
            if self.place_domain is None:
                raise self._missing(record, "domain", "--domain-column")
            return self._named(self.place_domain)
        value = record.values.get(column)
        domain = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(domain, str) or not domain.strip():
            raise self._missing(record, column, "--domain-column")
        return self._named(domain)

    def label(self, record: Record) -> str:
        """The record's domain, or nothing where it says none."""
        try:
            return self.domain(record)
        except BadRowError:
            return ""

    def _named(self, domain: str) -> str:
        return self.rename.get(tidy(domain), tidy(domain))

    def _usable_domain(self, record: Record) -> str:
        domain = self.domain(record)
        if domain not in self._usable:
            if problem := problem_of(domain):
                raise BadRowError(f"{record.place}: {domain!r} cannot name a domain: {problem}. Use --rename OLD=NEW.")
            self._usable.add(domain)
        return domain

    @staticmethod
    def _missing(record: Record, column: str, option: str) -> BadRowError:
        if column in record.values:
            found = f"it is {repr(record.values[column])[:80]}."
        else:
            found = f"the row has {_listed(record.columns)}.{nearest(column, record.columns)}"
        mend = "" if column in record.columns else f"Name the column with {option}, or mend the row."
        return BadRowError(
            f"{record.place}: expected text under {column!r}, but {found}"
            f" {mend or f'Mend the row, or name another {option}.'}"
        )


def _first_of(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The column that is called by the first of these names, whatever the case of its letters."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(str(column).lower(), column)
    return next((by_name[name] for name in names if name in by_name), None)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "nothing"


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?`, where one of the names is similar; else nothing."""
    near = difflib.get_close_matches(name, [str(other) for other in names], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_unicode(place: str, text: str) -> None:
    """Raises BadRowError where text has half a surrogate pair, which is no character: no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{place}: half a surrogate pair ({text[error.start]!r}) at character {error.start + 1}, which is no text:"
            " it was cut in the middle of a character. Mend the row, or leave it out with --skip-bad-rows."
        ) from error


def _text_of_chat(value: Any) -> str | None:
    """Of a chat its last user message, or else its last one; None where it is no chat."""
    if value is None or isinstance(value, (Mapping, float, int)) or not isinstance(value, Iterable):
        return None
    messages = list(value)
    if not messages or not all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in messages):
        return None
    from ir3de.prompts_ir3de import text_of  # loads transformers, which nothing else here needs

    of_user = [message for message in messages if message["role"] == "user"] or messages
    return str(text_of(of_user[-1]["content"]))
