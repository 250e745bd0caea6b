"""From a store of answers and scores to a router's outcomes, and answers taken back from both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.outcome_rows_ir3de import latest_day
from ir3de.outcomes_ir3de import Ledger
from ir3de.scripts.reports.choices import shown_outcomes
from ir3de.scripts.reports.words import number_of
from ir3de.traffic.errors import StoreUnavailable
from ir3de.traffic.exchange import Exchange
from ir3de.traffic.remade import Remade, remade, tag_of
from ir3de.traffic.removal import Which, take_back
from ir3de.traffic.repository import Repository
from ir3de.traffic.store import Store
from ir3de.traffic.texts import Texts


class Brought(NamedTuple):
    """
    What became of a router's outcomes.

    Args:
        table (`str`): domain x expert, as it is now, with a legend.
        said (`str`): what joined, what left, and what rests, in words.
        changed (`bool`): whether anything did.
    """

    table: str
    said: str
    changed: bool


def read_store(
    place: str,
    back: Sequence[Which] = (),
    texts: str | None = None,
    exchange: str | None = None,
    write: bool = True,
    take_over: bool = False,
    rename: tuple[str, str] | None = None,
) -> tuple[Remade, int]:
    """What a store is worth, after answers were taken back from it.

    Args:
        place (`str`): of the store.
        back (`Sequence[Which]`): which answers to take back.
        texts (`str`, *optional*): the file of their text, from which they go too.
        exchange (`str`, *optional*): a repository on the Hub where servers exchange outcomes; what others say there is
            part of the outcomes then.
        write (`bool`): whether to say there what this store holds.
        take_over (`bool`): what another store said there under the names of this one's servers gives way.
        rename (`tuple[str, str]`, *optional*): the old name of a server and the new one, which its answers get first.

    Returns:
        `tuple[Remade, int]`: the outcomes, and how many answers were taken back.

    Raises:
        ValueError: it is no store, or one of another version.
        OSError: it cannot be read, or written where answers are to leave; or there is no file of text, or the
            repository cannot be reached: then no answer has left.
    """
    if texts is not None and not Path(texts).is_file():
        raise FileNotFoundError(f"There is no file {texts}: name the one of `ir3de serve --keep-text`.")
    text = None if texts is None else Texts(texts)
    repository = Repository(exchange) if exchange is not None else None
    if repository is not None:
        repository.head()
    store = Store(place, make=False)
    try:
        if rename is not None:
            with store.writing() as connection:
                store.rename(connection, *rename)
        gone: list[str] = []
        for which in back:
            with store.writing() as connection:
                gone += take_back(connection, which, text)
        if gone:
            store.wipe()
        # What a server whose store is lost gave a router can be taken back too, by its name.
        named = {which.replica for which in back if which == Which(replica=which.replica) and which.replica}
        replaced = frozenset(map(tag_of, {*named, *(store.replicas if take_over else ())}))

        def worth() -> Remade:
            """What the store is worth by now."""
            made = remade(store)
            return made._replace(tags=made.tags | {tag_of(name) for name in named})

        if repository is None:
            return worth(), len(gone)
        taken_back = store.taken_back  # now, or by a server whose repository could not forget it yet
        made = Exchange(repository).round(worth, write, replaced)
        if write and (taken_back is not None or named):
            repository.forget()
        if write and taken_back is not None:
            store.forgotten(taken_back)
        return made, len(gone)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"The store cannot be used now: {error}. The router is as before.") from None
    finally:
        store.close()


def bring(model: IR3DEModel, made: Remade) -> Brought:
    """Gives a router the outcomes of a store, in the place of those that the store gave it before.

    Args:
        model ([`IR3DEModel`]): the router.
        made ([`Remade`]): the store's outcomes. Those of experts that the router lacks, and of days to come, stay
            behind; those in domains that it lacks rest in it.
    """
    usable, ahead = _until_tomorrow(made.ledger)
    leaves, joins = made._replace(ledger=usable).changes(model.outcomes, model.config.expert_names)
    if leaves or joins:
        model.replace_outcomes(leaves, joins)
    outcomes = number_of(made.outcomes, "outcome", "outcomes")
    joined = number_of(_number(joins), "contribution", "contributions")
    said = [f"{outcomes}: {joined} joined, {_number(leaves):,} left."]
    said += _resting("experts", made.ledger.contributions.keys() - {*model.config.expert_names})
    said += _resting("domains", made.ledger.domains - {*model.config.domain_names})
    if ahead:
        said.append(f"Outcomes of days to come stay behind ({', '.join(ahead)}): look at the clock of the server.")
    table = shown_outcomes(model) or "No outcomes are left."
    return Brought(table, "\n".join(said), bool(leaves or joins))


def _until_tomorrow(ledger: Ledger) -> tuple[Ledger, list[str]]:
    """A ledger without days that have begun nowhere yet, as after a clock that jumped, and these days."""
    latest = latest_day()
    kept, ahead = {}, set()
    for expert, parts in ledger.contributions.items():
        kept[expert] = {name: part for name, part in parts.items() if (part.day or "") <= latest}
        ahead |= {str(part.day) for part in parts.values()} - {str(part.day) for part in kept[expert].values()}
    return Ledger(kept), sorted(ahead)


def _resting(what: str, names: Iterable[str]) -> list[str]:
    """A line on outcomes that do not count in a router."""
    listed = sorted(names)
    return [f"Outcomes of {what} that this router lacks do not count: {', '.join(listed)}."] if listed else []


def _number(ledger: Ledger) -> int:
    return sum(len(parts) for parts in ledger.contributions.values())
