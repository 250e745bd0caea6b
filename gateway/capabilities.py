"""What an expert can do, as its spec says or its files show, and which experts can do what a request needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from .requests import Needs

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ABILITIES = ("tools", "tool_choice", "images", "json", "logprobs")  # the first fields of `Needs`


class Capabilities(NamedTuple):
    """
    What an expert can do. None stands for unknown, and what is unknown is tried.

    Args:
        context (`int`, *optional*): tokens of its window, those of the answer included.
        tools (`bool`, *optional*): calls tools.
        tool_choice (`bool`, *optional*): calls one where the request says that it must.
        images (`bool`, *optional*): sees.
        json (`bool`, *optional*): answers in JSON of a given schema.
        logprobs (`bool`, *optional*): tells the log probabilities of its tokens.
    """

    context: int | None = None
    tools: bool | None = None
    tool_choice: bool | None = None
    images: bool | None = None
    json: bool | None = None
    logprobs: bool | None = None

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Capabilities:
        """What a spec says."""
        return cls(**{key: spec[key] for key in cls._fields if key in spec})

    def completed(self, known: Mapping[str, Any]) -> Capabilities:
        """These, and what else is known; what a spec says stays."""
        return self._replace(**{key: value for key, value in known.items() if getattr(self, key) is None})

    def missing(self, needs: Needs) -> list[str]:
        """What a request needs and this expert lacks, in words."""
        lacks: list[str] = []
        if any(needs[: len(_ABILITIES)]):  # as few requests do
            lacks = [name for name in _ABILITIES if getattr(needs, name) and getattr(self, name) is False]
        if self.context is not None and needs.tokens > self.context:
            lacks.append(f"a context of about {needs.tokens:,} tokens")
        return lacks

    def described(self) -> dict[str, Any]:
        """What is known, for a list of models."""
        return {key: value for key, value in self._asdict().items() if value is not None}


def is_hub_id(name: str) -> bool:
    """Whether a model's name at a server may be that of a repository on the Hub: an owner and a name."""
    return _HUB_ID.fullmatch(name) is not None


def of_hub_model(name: str) -> dict[str, Any]:
    """What config and chat template of a model on the Hub show: its window, whether it sees, and knows of tools.

    Args:
        name (`str`): the model's Hub id.

    Raises:
        Exception: whatever keeps them from being read.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    template = AutoTokenizer.from_pretrained(name).chat_template or ""
    templates = template.values() if isinstance(template, dict) else [template]
    return {
        "context": getattr(config.get_text_config(decoder=True), "max_position_embeddings", None),
        "images": hasattr(config, "vision_config"),
        "tools": any("tools" in text for text in templates),
    }


class HasCapabilities(Protocol):
    """An expert, as far as it matters here."""

    capabilities: Capabilities
    is_here: bool


def capable(names: Iterable[str], experts: Mapping[str, HasCapabilities], needs: Needs) -> tuple[list[str], str]:
    """Those of `names` that have what a request needs, and what the others lack, in words."""
    able: list[str] = []
    lacking: dict[str, list[str]] = {}
    for name in names:
        missing = experts[name].capabilities.missing(needs)
        if needs.not_here and experts[name].is_here:
            missing.append(needs.not_here.message.rstrip("."))
        if not missing:
            able.append(name)
        for what in missing:
            lacking.setdefault(what, []).append(name)
    return able, "; ".join(f"{what}: not with {', '.join(who)}" for what, who in lacking.items())
