"""What every router of a comparison is asked, and what it may be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from ir3de.scripts.metrics.measures import Array
from ir3de.scripts.routers.encoders import Encoder, shared_encoder

T = TypeVar("T")


class Router(Protocol):
    """
    What a comparison asks of a router.

    Attributes:
        domains (`list[str]`): sorted, once fitted.
        choice (`str`): what was chosen on held-out prompts, for people to read.
        encoded (`int`): training prompts whose encoding may have come from a cache, so that fitting took less time.
        nbytes (`int`): size of what is kept to route with, tokenizer excluded.
    """

    domains: list[str]
    choice: str
    encoded: int

    @property
    def nbytes(self) -> int:
        """See above."""

    def fit(self, texts: Sequence[str], domains: Sequence[str]) -> object:
        """Fits to labelled prompts."""

    def route(self, texts: Sequence[str]) -> object:
        """Routes prompts as a user would have it done; this is what is timed."""

    def scores(self, texts: Sequence[str], cached: bool = False) -> Array:
        """Probabilities of shape `(texts, domains)`; `cached` where speed is not the question."""


@runtime_checkable
class TellsFamiliarity(Protocol):
    """A router that may tell how much a prompt is like what it was fitted on."""

    def familiarity(self, texts: Sequence[str]) -> Array | None:
        """Of shape `(texts,)`, larger for prompts of its domains than for others; None where it does not tell."""


@dataclass(frozen=True)
class Options:
    """
    What routers may be told.

    Args:
        encoder (`str`): Hub id or folder of the sentence encoder.
        modem_encoder (`str`, *optional*): of the encoder to fine-tune; by default DeBERTa-v3 on a GPU, and the sentence
            encoder where there is none, or where DeBERTa cannot be loaded.
        max_train (`int`, *optional*): training prompts a domain that an encoder reads.
        max_tokens (`int`): of a prompt that an encoder reads which is fine-tuned.
        seed (`int`): of whatever is random.
    """

    encoder: str
    modem_encoder: str | None = None
    max_train: int | None = 500
    max_tokens: int = 256
    seed: int = 0

    @property
    def sentence_encoder(self) -> Encoder:
        """The encoder, loaded on first use."""
        return shared_encoder(self.encoder)


Factory = Callable[[Options], Router]


def choose_routers(routers: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
    """The routers of these names.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = [name for name in names if name not in routers]
    if unknown:
        raise ValueError(f"--routers does not know {', '.join(unknown)}. Known: {', '.join(routers)}.")
    return {name: routers[name] for name in names}
