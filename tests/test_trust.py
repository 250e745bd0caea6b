"""Statistics from strangers: whatever the file, a clear refusal, and a router that is as before."""

import ctypes
import gzip
import io
import json
import mmap
import os
import pickle
import random
import re
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ir3de import DomainStatistics, IR3DEModel
from ir3de.edits_ir3de import experts_of
from ir3de.statistics_ir3de import FORMAT, KINDS, content_hash

from . import tiny

GOOD = tiny.statistics(tiny.sentences("law", 20))
SIZE, SPACE = GOOD.size, GOOD.fingerprint
PACKED = SIZE * (SIZE + 1) // 2
HEADER = {"format": FORMAT, "fingerprint": SPACE, "size": SIZE}
Grams = dict[str, torch.Tensor]
LIMIT, PEAK = 64 << 20, 32 << 20  # bytes that a process may ask for, and use, to refuse a file
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def good_bytes(folder: Path) -> bytes:
    GOOD.save(folder / "good.safetensors")
    return (folder / "good.safetensors").read_bytes()


def written(header: object = HEADER, tensors: Grams | None = None, **more: torch.Tensor) -> Callable[[Path], None]:
    """A file with this header and these tensors."""
    ((key, kinds),) = GOOD.contributions.items()

    def write(path: Path) -> None:
        contents = {f"{key}.{kind}": sums for kind, sums in kinds.items()} if tensors is None else tensors
        save_file({**contents, **more}, path, metadata={"ir3de": json.dumps(header)})

    return write


def raw(data: bytes | Callable[[Path], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data(path.parent)) and None


def sums(change: Callable[[Grams], None]) -> Callable[[Path], None]:
    """A file whose sums have been changed, under the name that they hash to."""

    def write(path: Path) -> None:
        grams = {kind: GOOD.gram(kind) for kind in KINDS}
        change(grams)
        DomainStatistics.from_grams(grams, SPACE).save(path)

    return write


def documents(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """A file in which the numbers of prompts that tokens occur in have been changed."""
    assert GOOD.documents is not None
    changed = change(GOOD.documents.clone())
    return lambda path: DomainStatistics.from_grams({k: GOOD.gram(k) for k in KINDS}, SPACE, changed).save(path)


def at(kind: str, row: int, column: int, value: float) -> Callable[[Path], None]:
    def change(grams: Grams) -> None:
        grams[kind][row, column] = grams[kind][column, row] = value

    return sums(change)


def scaled(kind: str, factor: float) -> Callable[[Path], None]:
    def change(grams: Grams) -> None:
        grams[kind][:-1, :-1] *= factor

    return sums(change)


def header_of(length: int, body: bytes) -> bytes:
    return struct.pack("<Q", length) + body


def zip_bomb(_: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("law.safetensors", bytes(50 << 20))
    return stream.getvalue()


class Opens:
    def __reduce__(self):
        return os.system, ("touch owned",)


def torch_pickle(_: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"A": torch.eye(3)}, stream)
    return stream.getvalue()


def tensor_header(**tensors: object) -> bytes:
    body = json.dumps({"__metadata__": {"ir3de": json.dumps(HEADER)}, **tensors}).encode()
    return header_of(len(body), body)


KEY = "0" * 16
F64 = torch.float64
FILES: dict[str, Callable[[Path], None]] = {
    "empty": raw(b""),
    "seven bytes": raw(b"\0" * 7),
    "zeros": raw(bytes(4096)),
    "ones": raw(b"\xff" * 4096),
    "text": raw(b"hello, this is a statistics file"),
    "JSON": raw(json.dumps({"A": [[1.0]]}).encode()),
    "HTML": raw(b"<!doctype html><title>404</title>"),
    "an LFS pointer": raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "a pickle": raw(pickle.dumps({"A": [1.0]})),
    "a pickle that runs code": raw(pickle.dumps(Opens())),
    "a torch pickle": raw(torch_pickle),
    "a zip bomb": raw(zip_bomb),
    "a gzip bomb": raw(lambda _: gzip.compress(bytes(50 << 20))),
    "gzip of a good file": raw(lambda folder: gzip.compress(good_bytes(folder))),
    "a header of 2^63 bytes": raw(header_of(1 << 63, b"{}")),
    "a header of 90 MB": raw(lambda _: header_of(90 << 20, b"{" + b" " * ((90 << 20) - 2) + b"}")),
    "a header past the end": raw(header_of(500, b"{}")),
    "a header that is no JSON": raw(header_of(4, b"{{{{")),
    "a header that is a list": raw(header_of(2, b"[]")),
    "tensors past the end": raw(
        tensor_header(**{f"{KEY}.tokens": {"dtype": "F64", "shape": [9], "data_offsets": [0, 72]}})
    ),
    "a tensor of 2^60 entries": raw(
        tensor_header(**{f"{KEY}.tokens": {"dtype": "F64", "shape": [1 << 60], "data_offsets": [0, 1 << 63]}})
    ),
    "overlapping tensors": raw(
        tensor_header(**{f"{KEY}.{kind}": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]} for kind in KINDS})
        + bytes(8)
    ),
    "truncated": raw(lambda folder: good_bytes(folder)[:-1]),
    "half": raw(lambda folder: good_bytes(folder)[: len(good_bytes(folder)) // 2]),
    "with a byte more": raw(lambda folder: good_bytes(folder) + b"x"),
    "one bit changed": raw(lambda folder: good_bytes(folder)[:-200] + b"\x01" + good_bytes(folder)[-199:]),
    "another file's metadata": lambda path: save_file({"a": torch.ones(1)}, path, metadata={"format": "pt"}),
    "no metadata": lambda path: save_file({f"{KEY}.tokens": torch.ones(PACKED, dtype=F64)}, path),
    "metadata of a list": written([HEADER]),
    "metadata nested deeply": lambda path: save_file({"a": torch.ones(1)}, path, metadata={"ir3de": "[" * 100000}),
    "a later format": written({**HEADER, "format": "ir3de-statistics-9"}),
    "another fingerprint": written({**HEADER, "fingerprint": "f" * 16}),
    "a fingerprint that is a number": written({**HEADER, "fingerprint": 7}),
    "a fingerprint of a megabyte": written({**HEADER, "fingerprint": "f" * 900_000}),
    "no size": written({key: HEADER[key] for key in ("format", "fingerprint")}),
    "size as text": written({**HEADER, "size": str(SIZE)}),
    "a negative size": written({**HEADER, "size": -SIZE}),
    "an enormous size": written({**HEADER, "size": 10**12}),
    "another size": written({**HEADER, "size": SIZE + 1}),
    "no contributions": written(tensors={}),
    "one kind of row only": written(tensors={f"{KEY}.tokens": torch.ones(PACKED, dtype=F64)}),
    "a third kind of row": written(**{f"{KEY}.pages": torch.ones(PACKED, dtype=F64)}),
    "a name that leaves its folder": written(**{"../../etc/passwd": torch.ones(PACKED, dtype=F64)}),
    "a contribution named otherwise": written(
        tensors={f"{KEY}.{kind}": GOOD.contributions[next(iter(GOOD.contributions))][kind] for kind in KINDS}
    ),
    "float32": written(tensors={f"{KEY}.{kind}": torch.ones(PACKED) for kind in KINDS}),
    "a matrix": written(tensors={f"{KEY}.{kind}": torch.ones(PACKED, 1, dtype=F64) for kind in KINDS}),
    "NaN": at("tokens", 0, 0, float("nan")),
    "infinity": at("prompts", 0, 1, float("inf")),
    "no rows": at("tokens", -1, -1, 0.0),
    "fewer than no rows": at("prompts", -1, -1, -20.0),
    "half a row": at("prompts", -1, -1, 20.5),
    "more rows than can be counted": at("tokens", -1, -1, 1e17),
    "fewer rows than b says": at("tokens", -1, -1, 1.0),
    "a negative diagonal": at("tokens", 3, 3, -1.0),
    "an entry beyond its diagonal": at("prompts", 2, 3, 1e3),
    "b beyond the rows": at("tokens", 2, -1, 1e6),
    "sums too large for their rows": scaled("tokens", 1e3),
    "prompt sums too large for their rows": scaled("prompts", 1e6),
    "the largest numbers": at("tokens", 0, 0, 1.7e308),
    "negated": scaled("prompts", -1.0),
    "no documents at all": documents(lambda counts: counts[:0]),
    "documents of a smaller vocabulary": documents(lambda counts: counts[:-1]),
    "documents of a larger vocabulary": documents(lambda counts: torch.cat([counts, counts[-1:]])),
    "documents of a vast vocabulary": documents(lambda _: torch.zeros((1 << 20) + 1, dtype=torch.int64)),
    "documents below zero": documents(lambda counts: counts - 1),
    "a token in more documents than there are": documents(lambda counts: counts.clamp(min=0, max=1) * 21),
    "more tokens in documents than there are": documents(lambda counts: torch.full_like(counts, 20)),
    "the largest documents": documents(lambda counts: torch.full_like(counts, 2**63 - 1)),
    "fractions of documents": documents(lambda counts: counts.double()),
    "a matrix of documents": documents(lambda counts: counts[None]),
}


@pytest.fixture(scope="module")
def router() -> IR3DEModel:
    made = tiny.router()
    made.remove_expert("law")
    return made


def refused(router: IR3DEModel, path: Path) -> str:
    """The message with which a file is refused; the router must be as before."""
    before = experts_of(router).digest, {key: value.clone() for key, value in router.state_dict().items()}
    with pytest.raises((ValueError, OSError)) as caught:
        router.add_expert("law", statistics=path)
    assert experts_of(router).digest == before[0]
    assert all(torch.equal(before[1][key], value) for key, value in router.state_dict().items())
    return str(caught.value)


def test_there_are_fifty_kinds() -> None:
    assert len(FILES) >= 50


def in_child(action: Callable[[], Any]) -> tuple[Any, int]:
    """Runs something in a process with little memory to spare; returns what it returns, and by how much memory peaked.

    Unlike tracemalloc this sees what native code takes: of pages in use the peak, of new addresses the limit.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # the threads of the parent's pool are not here: waiting for them would never end
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier tests freed does not hide what this one takes
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = memory("VmRSS")
            resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + LIMIT,) * 2)
            result = action()
            os.write(write, json.dumps([result, memory("VmHWM") - before]).encode())
        except BaseException as error:
            os.write(write, json.dumps([f"{type(error).__name__}: {error}", -1]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        result, peak = json.loads(pipe.read() or b'["died", -1]')
    os.waitpid(child, 0)
    return result, peak


def memory(key: str) -> int:
    """Bytes of this process, of a kind that Linux tells."""
    return 1024 * int(re.findall(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])


@linux
def test_the_limit_and_the_peak_see_native_memory() -> None:
    result, peak = in_child(lambda: float(torch.ones(5 << 20, dtype=torch.float64).sum()))
    assert result == 5 << 20
    assert peak > 39 << 20, "what is not small is seen"
    # Mapped, as malloc would first fill what earlier tests left free.
    assert "OSError" in in_child(lambda: len(mmap.mmap(-1, 2 * LIMIT)))[0]


@linux
@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_a_broken_or_hostile_file_is_refused(
    write: Callable[[Path], None], router: IR3DEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "law.safetensors"
    write(path)
    message, peak = in_child(lambda: refused(router, path))
    assert 0 <= peak < PEAK, message
    assert "law" in message
    assert len(message) < 600
    assert "\n" not in message.strip()
    assert not (tmp_path / "owned").exists()
    print(f"{peak / 2**20:.1f} MiB: {message}")


def test_every_random_damage_is_noticed(router: IR3DEModel, tmp_path: Path) -> None:
    good, draw = good_bytes(tmp_path), random.Random(0)
    path = tmp_path / "law.safetensors"
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.choice([1, 1, 4, 64])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        refused(router, path)


def test_folders_and_pipes_are_no_files(router: IR3DEModel, tmp_path: Path) -> None:
    (tmp_path / "law.safetensors").mkdir()
    assert "missing" in refused(router, tmp_path / "law.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "missing" in refused(router, tmp_path / "pipe.safetensors")


def test_the_undamaged_file_is_accepted(tmp_path: Path) -> None:
    made = tiny.router()
    made.remove_expert("law")
    good_bytes(tmp_path)
    made.add_expert("law", statistics=tmp_path / "good.safetensors")
    assert experts_of(made).digest == experts_of(tiny.router()).digest


def test_contributions_are_named_by_what_they_hold() -> None:
    ((key, kinds),) = GOOD.contributions.items()
    assert content_hash(kinds) == key
    assert len(key) == 16
