"""Saving a folder of files so that a killed save leaves the old files or the new ones, never a mixture that is loaded.

New files are written to a hidden folder inside. One rename, of config.json, is the moment from which the new files
count. What is then left in the hidden folder is moved into place at once, or by whoever loads or saves next.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

STATISTICS_FOLDER = "statistics"
SECOND_FOLDER = "second"  # a router's second opinion, with a config and statistics of its own
CONFIG = "config.json"
_STAGED, _WRITING = ".ir3de-staged", ".ir3de-writing-"


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write new files to, a config.json among them; at the end of the `with` block they replace the old."""
    folder.mkdir(parents=True, exist_ok=True)
    finish_save(folder)
    for left in folder.glob(f"{_WRITING}*"):  # of a killed save
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_WRITING, dir=folder) as writing:
        new = Path(writing, "new")
        new.mkdir()
        yield new
        if (folder / _STAGED).exists():  # killed before its moment; moved first, because a half-deleted one would count
            (folder / _STAGED).rename(Path(writing, "old"))
        new.rename(folder / _STAGED)
        os.replace(folder / _STAGED / CONFIG, folder / CONFIG)
        finish_save(folder)


def finish_save(folder: Path) -> None:
    """Moves into place what a save that was killed after its moment has left to move."""
    new = folder / _STAGED
    if not new.is_dir() or (new / CONFIG).exists():
        return
    for path in sorted(path for path in new.rglob("*") if path.is_file()):
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.replace(path, target)
    for part in (folder, folder / SECOND_FOLDER):
        _drop_former(part)
    shutil.rmtree(new, ignore_errors=True)


def _drop_former(folder: Path) -> None:
    """Deletes the statistics of experts that the config no longer has."""
    if not (folder / CONFIG).is_file():
        return
    experts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["experts"]
    for path in (folder / STATISTICS_FOLDER).glob("*.safetensors"):
        if path.stem not in {expert["name"] for expert in experts}:
            path.unlink(missing_ok=True)
