"""A router's folder: one writer at a time, readers that never write, and after a kill the old files or the new.

A save writes all its files to a hidden folder inside. One replacement, of a small file that names that folder, is the
moment from which the new files count, and they are read where they are. Then they are put into their places, and when
all are there the small file and the hidden folder go. What a killed save has left is read by readers, and replaced by
the next writer, who never carries on with it: so a stranger's folder cannot have anything written or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .names_ir3de import file_name

try:
    import fcntl
except ImportError:  # on Windows, where two writers at once must be kept apart by whoever starts them
    fcntl = None  # type: ignore[assignment]

STATISTICS_FOLDER = "statistics"
OUTCOMES_FOLDER = "outcomes"
PICTURES = ("confusion.png", "frontier.png")  # beside the card, which names those that there are
SECOND_FOLDER = "second"  # a router's second opinion, with a config and statistics of its own
CONFIG = "config.json"
_SWITCH, _STATE = ".ir3de-switch", ".ir3de-state-"
_STATE_NAME = re.compile(rf"{re.escape(_STATE)}[a-z0-9_]{{1,32}}")
_FORMER = ".ir3de-staged"  # of a save by version 0.1.0 before its release
_LEFT = (f"{_STATE}*", f"{_SWITCH}-*", ".ir3de-writing-*", _FORMER)  # what killed saves leave
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}  # no space, or no right
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOSYS}  # some network file systems


# Reading.


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[Path]:
    """Where a folder's files are to be read, and stay as they are for as long as the `with` block lasts.

    Raises:
        ValueError: the folder is what a killed save and a copy have left of one.
    """
    with _locked(folder, exclusive=False):
        yield current(folder)


def current(folder: Path) -> Path:
    """The folder itself, or the hidden one inside where the files of a save are that was killed after its moment.

    Raises:
        ValueError: that one is missing, or a save by an earlier version was killed.
    """
    try:
        status = os.lstat(folder / _SWITCH)
    except FileNotFoundError:
        _check_former(folder)
        return folder
    # A pipe would keep us waiting, and a link leads elsewhere.
    name = ""
    if stat.S_ISREG(status.st_mode) and status.st_size < 100:
        name = (folder / _SWITCH).read_text(encoding="ascii", errors="replace").strip()
    state = folder / name
    if not _STATE_NAME.fullmatch(name) or state.is_symlink() or not (state / CONFIG).is_file():
        raise ValueError(
            f"{folder} is not whole: its file {_SWITCH} says that the last save is in {name[:80]!r}, which is no such"
            " folder inside. Copy or fetch it again with its hidden files, or save the router anew."
        )
    return state


def _check_former(folder: Path) -> None:
    """Raises ValueError where files are half those of one router and half those of another."""
    former = folder / _FORMER
    if former.is_dir() and not (former / CONFIG).exists():
        raise ValueError(
            f"{folder} holds a save by an earlier version that was killed: move what is in {_FORMER} over the files"
            " beside it and delete it, or save the router anew."
        )


# Writing.


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write new files to, a config.json among them; at the end of the `with` block they replace the old.

    Raises:
        ValueError: a folder inside, into which files would be put, is a link to elsewhere.
        OSError: the disk is full, or the folder may not be written to. Nothing was saved, and a folder that was made
            for it is gone.
    """
    with _made(folder), _locked(folder, exclusive=True):
        with _nothing_saved(folder):
            new = Path(tempfile.mkdtemp(prefix=_STATE, dir=folder))
        try:
            with _nothing_saved(folder):
                yield new
                _check_stays_inside(new, folder)
                _open_to_others(new)
                _sync(new)
                _switch_to(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _sync_folder(folder)
        _put_into_place(new, folder)
        (folder / _SWITCH).unlink()
        _sync_folder(folder)
        _clear_up(folder)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder; where what follows fails, those that were made and hold nothing go again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _nothing_saved(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # of one that was not made, or holds something by now
            for path in missing:
                path.rmdir()
        raise


@contextlib.contextmanager
def _nothing_saved(folder: Path) -> Iterator[None]:
    """Has errors of the disk name the folder that a person knows, and say that nothing changed."""
    try:
        yield
    except SafetensorError as error:  # of a disk that is full
        raise OSError(f"Nothing was saved to {folder}: {error}") from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}, so nothing was saved", str(folder)) from error


@contextlib.contextmanager
def writing_tensors(path: Path) -> Iterator[None]:
    """What writes a safetensors file goes in here: then it is for whom the umask says, and an error names it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(usual_mode(path.parent))


def usual_mode(folder: Path) -> int:
    """The mode that `open` gives a new file in a folder, by the umask. That cannot be read without changing it for all
    threads, so a file is made and looked at. safetensors from 0.8 on writes files that only their owner may read.
    """
    probe = folder / f"{_STATE}mode-{uuid.uuid4().hex}"
    probe.touch(exist_ok=False)
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        os.remove(probe)


def _open_to_others(new: Path) -> None:
    """Gives new files, and the folder they are in, the modes that they would have without safetensors and tempfile."""
    mode = usual_mode(new)
    for path in new.rglob("*.safetensors"):
        path.chmod(mode)
    new.chmod(mode | (mode & 0o444) >> 2)  # who may read a folder may enter it


def _switch_to(new: Path, folder: Path) -> None:
    """Makes the new files count."""
    handle, switch = tempfile.mkstemp(prefix=f"{_SWITCH}-", dir=folder)
    with open(handle, "w", encoding="ascii") as file:
        file.write(new.name)
        file.flush()
        os.fsync(file.fileno())
    os.replace(switch, folder / _SWITCH)


def _put_into_place(new: Path, folder: Path) -> None:
    """Copies the new files over the old, and deletes those of domains, experts and pictures that are gone."""
    for path in sorted(path for path in new.rglob("*") if path.is_file()):
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = new.with_name(f"{new.name}.copy")  # renamed over the target, so that a link there is replaced
        _link_or_copy(path, copy)
        os.replace(copy, target)
    for name in PICTURES:
        if (folder / name).exists() and not (new / name).exists():
            (folder / name).unlink()
    for part in (folder, folder / SECOND_FOLDER):
        _drop_former(part)
    for each in {path.parent.relative_to(new) for path in new.rglob("*")}:
        if each != Path():  # a killed save of this part alone counts no more
            (folder / each / _SWITCH).unlink(missing_ok=True)
            _clear_up(folder / each)
        _sync_folder(folder / each)


def _link_or_copy(path: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, copy)
        _sync_file(copy)


def _drop_former(folder: Path) -> None:
    """Deletes the statistics of domains and the outcomes of experts that the config no longer has."""
    if not (folder / CONFIG).is_file():
        return
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    domains = config.get("domains") or [expert["name"] for expert in config["experts"]]
    for part, names in ((STATISTICS_FOLDER, domains), (OUTCOMES_FOLDER, config.get("judged") or ())):
        for path in (folder / part).glob("*.safetensors"):
            if path.stem not in set(map(file_name, names)):
                path.unlink(missing_ok=True)
    outcomes = folder / OUTCOMES_FOLDER
    if outcomes.is_dir() and not any(outcomes.iterdir()):
        outcomes.rmdir()


def _check_stays_inside(new: Path, folder: Path) -> None:
    """Raises ValueError where new files would be put through a link, or old ones deleted through one."""
    inside = [path.relative_to(new) for path in new.rglob("*") if path.is_dir()]
    second = Path(SECOND_FOLDER)
    for part in {*inside, Path(STATISTICS_FOLDER), Path(OUTCOMES_FOLDER), second, second / STATISTICS_FOLDER}:
        if (folder / part).is_symlink():
            raise ValueError(f"{folder / part} is a link to elsewhere: save to a folder without it. Nothing was saved.")


def _clear_up(folder: Path) -> None:
    """Deletes what this save and killed ones have left. Links are deleted themselves, not what they lead to."""
    for pattern in _LEFT:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


# The disk.


def _sync(folder: Path) -> None:
    """Waits until a folder's files are on the disk, so that no crash makes an empty one of a file that counts."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_file(path)
        elif path.is_dir():
            _sync_folder(path)
    _sync_folder(folder)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # which knows no such thing
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Keeps writers apart from each other and from readers, in threads and processes. The lock is on the folder itself:
    there is no file to write or to leave, and a killed process holds none.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
        with contextlib.suppress(OSError):  # also of copies of the handle that a fork has made meanwhile
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
