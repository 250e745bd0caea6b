"""The ledger of a store, remade in a process of its own: in this one it would keep requests waiting.

What is told between the two is a file of contributions, as servers exchange them, and a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .errors import StoreUnavailable, WrongStore
from .remade import Remade, remade
from .statements import bytes_of, ledger_in
from .store import Store

_PLACE, _REPLICA = "IR3DE_APART_STORE", "IR3DE_APART_REPLICA"  # not arguments, which all users of a machine may read
# Under the name of the command the package leaves transformers alone, which would take ten times as long to import.
_CODE = "import sys; sys.argv[0] = 'ir3de'; from ir3de.traffic.apart import main; main()"
_ERRORS: dict[str, type[Exception]] = {error.__name__: error for error in (StoreUnavailable, WrongStore, OverflowError)}
_NICER = 10  # than the server, where both want the same processor


def remade_apart(store: Store) -> Remade:
    """What [`remade`] makes, made by another process.

    Args:
        store ([`Store`]): with the scores.

    Raises:
        OverflowError, StoreUnavailable, WrongStore: as there.
        RuntimeError: the other process ended otherwise; the message has its last line.
    """
    with tempfile.TemporaryDirectory(prefix="ir3de-apart-") as folder:
        path = Path(folder, "ledger.safetensors")
        told = {_PLACE: store.place, _REPLICA: store.replica}
        command = [sys.executable, "-c", _CODE, str(path)]
        done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            *_, last = ["it said nothing", *done.stderr.splitlines()]
            raise RuntimeError(f"The store was not counted, by a process that ended with {done.returncode}: {last}")
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "error" in said:
            raise _ERRORS[said["error"]](said["message"])
        ledger = ledger_in(path)
    return Remade(ledger, frozenset(said["tags"]), said["outcomes"], said["store"], frozenset(said["held"]))


def main() -> None:
    """What the other process does: writes the ledger into the file that it is told, and says the rest."""
    if hasattr(os, "nice"):
        os.nice(_NICER)
    try:
        store = Store(os.environ[_PLACE], os.environ[_REPLICA], make=False)
        made = remade(store)
    except tuple(_ERRORS.values()) as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return
    Path(sys.argv[1]).write_bytes(bytes_of(made.ledger))
    said = {"tags": sorted(made.tags), "outcomes": made.outcomes, "store": made.store, "held": sorted(made.held)}
    print(json.dumps(said))
