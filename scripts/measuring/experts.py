"""Whether the experts of a router answer, and what they can do: tried before anybody is served."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ir3de.addresses_ir3de import server_of, token_for, token_variable
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.experts_ir3de import ExpertPool, describe_error
from ir3de.portable_ir3de import is_internal, private_parts
from ir3de.scripts.reports.progress import progress
from ir3de.specs_ir3de import ExpertSpec, has_source, is_remote

_NEW_TOKENS = 24  # of the answer
_CAPABILITIES = ("context", "tools", "images", "json", "logprobs")
_SECONDS = 120.0  # that it may take, where the spec does not say


class Asking(NamedTuple):
    """
    How experts are tried.

    Args:
        prompt (`str`): that each is asked.
        only (`tuple[str, ...]`, *optional*): names of those to try; by default all.
        device (`str`, *optional*): of those on this machine.
    """

    prompt: str
    only: tuple[str, ...] | None = None
    device: str | None = None


@dataclass(frozen=True)
class Checked:
    """
    What was found of an expert.

    Args:
        name (`str`): of the expert.
        answer (`str`, *optional*): to the prompt.
        seconds (`float`, *optional*): that it took, loading included.
        problem (`str`, *optional*): why there is no answer, of an expert that should have given one.
        can (`dict[str, Any]`): what it can do, as far as it is known.
        notes (`list[str]`): what else a person should know.
    """

    name: str
    answer: str | None = None
    seconds: float | None = None
    problem: str | None = None
    can: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))


def check_experts(config: IR3DEConfig, asking: Asking) -> list[Checked]:
    """Loads each expert, looks at its chat template and its address, and asks it a prompt.

    Args:
        config ([`IR3DEConfig`]): of the router.
        asking ([`Asking`]): how.

    Raises:
        ValueError: there is no expert of a name.
    """
    names = config.expert_names if asking.only is None else list(asking.only)
    if unknown := [name for name in names if name not in config.expert_names]:
        raise ValueError(f"There are no experts {unknown}; this router's are {config.expert_names}.")
    device = torch.device(asking.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pool = ExpertPool(config, device, max_loaded_experts=1, retries=0)
    return [_check(pool, name, asking.prompt) for name in progress(names, "Asking", "experts")]


def _check(pool: ExpertPool, name: str, prompt: str) -> Checked:
    """Tries one expert; whatever it fails with is what is found."""
    spec = pool.spec(name)
    if not has_source(spec):
        return Checked(name, notes=["only routes: its spec names no model, adapter or endpoint"])
    notes = _of_address(spec)
    start = time.perf_counter()
    try:
        notes += private_parts([spec] if not is_remote(spec) else [])
        notes += _of_template(pool, spec)
        pool.check([name])
        can = _capabilities(pool, name)
        answer = pool.ask(name, prompt, max_new_tokens=_NEW_TOKENS, timeout=spec.get("timeout", _SECONDS)).text
    except Exception as error:
        return Checked(name, problem=describe_error(error), notes=notes)
    seconds = time.perf_counter() - start
    if pool.refuses_system(name):
        notes.append("its server refuses system messages, whose text goes into the first message of the user")
    if not answer.strip():
        return Checked(name, answer, seconds, "it answered without a word", can, notes)
    return Checked(name, answer, seconds, None, can, notes)


def _of_address(spec: ExpertSpec) -> list[str]:
    """Where prompts go, and with which token."""
    if "provider" in spec:
        return ["prompts go to Hub inference, with your Hub login"]
    if "endpoint" not in spec:
        return []
    endpoint = spec["endpoint"]
    where = "an address of a private network" if is_internal(endpoint) else "a public address"
    notes = [f"prompts go to {server_of(endpoint).host}, {where}"]
    if not server_of(endpoint).is_private:
        notes.append("http without encryption: whoever is between can read the prompts, and no token is sent")
    elif token_for(endpoint) is None:
        notes.append(f"no token: {token_variable(endpoint)} is not set")
    return notes


def _of_template(pool: ExpertPool, spec: ExpertSpec) -> list[str]:
    """What a local model's chat template does to a chat."""
    if is_remote(spec):
        return []
    source = pool.source(spec["name"])
    if getattr(source.tokenizer, "chat_template", None) is None:
        return ["no chat template: it is given plain text"]
    return [f"its chat template refuses or drops {change}" for change in source.changes]


def _capabilities(pool: ExpertPool, name: str) -> dict[str, Any]:
    """What an expert can do, as its spec and its files say; without the gateway's packages less is read from these."""
    spec = pool.spec(name)
    said = {key: spec[key] for key in _CAPABILITIES if key in spec}  # type: ignore[literal-required]
    if is_remote(spec):
        return said
    try:
        from ir3de.gateway.local import LocalExpert
    except ImportError:
        return {"context": pool.source(name).window, **said}
    expert = LocalExpert(name, pool)
    expert.learn()
    return expert.capabilities.described()
