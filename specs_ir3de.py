"""What the spec of an expert may say: its keys, the kinds of their values, and what contradicts itself."""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, TypeGuard, cast

from .addresses_ir3de import server_of
from .names_ir3de import check_name

_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "revision", "gguf_file", "adapter", "adapter_revision", "dtype"), (str,)),
    "adapter_subfolder": (str,),
    **dict.fromkeys(("endpoint", "provider", "task", "system_prompt"), (str,)),
    **dict.fromkeys(("trust_remote_code", "use_safetensors", "tools", "images", "json", "logprobs"), (bool,)),
    **dict.fromkeys(("quantization", "max_memory", "generation", "price"), (dict,)),
    "device_map": (str, dict),
}
_KIND_NAMES = {str: "a string", bool: "true or false", dict: "a mapping"}
_DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
_TASKS = ("chat", "text")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

_SUBFOLDER = re.compile(r"(?!\.)[^/\\\0]+(?:/(?!\.)[^/\\\0]+)*")  # nothing that leads out of a repository
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)  # of a model or router


class BaseSpec(TypedDict, total=False):
    """
    The part of an [`ExpertSpec`] that says which model is loaded, and how; experts on this machine whose parts are
    equal share one copy of it.

    Args:
        model (`str`): Hub id or folder of a causal LM, or of a model that sees (image-text-to-text); with an `endpoint`
            or a `provider`, the model's name there.
        revision (`str`, *optional*): of the model.
        gguf_file (`str`, *optional*): the model's GGUF file, where its weights are GGUF.
        dtype (`str`, *optional*): of the weights, or `"auto"`.
        device_map (`str` or `dict`, *optional*): of `from_pretrained`.
        max_memory (`dict`, *optional*): with a `device_map`, a size a device; what is beyond all of them stays on disk.
        quantization (`dict`, *optional*): transformers' `quantization_config`, such as `{"load_in_4bit": true}`.
        trust_remote_code (`bool`, *optional*): true counts only where the caller allows it too.
        use_safetensors (`bool`, *optional*): false counts only where the caller allows it too.
        token (`bool`, *optional*): in no config; false where a stranger's expert is fetched, without the Hub's login.
        text (`bool`, *optional*): in no config; true where a model that sees is loaded to read text alone.
    """

    model: str
    revision: str
    gguf_file: str
    dtype: str
    device_map: str | dict[str, Any]
    max_memory: dict[str, int | str]
    quantization: dict[str, Any]
    trust_remote_code: bool
    use_safetensors: bool
    token: bool
    text: bool


class _Named(TypedDict):
    """What every spec has."""

    name: str


class ExpertSpec(_Named, BaseSpec, total=False):
    """
    An expert, as config.json has it: beside the keys of [`BaseSpec`] these. Its source of answers is on this machine a
    `model`, an `adapter` or both, elsewhere an `endpoint` or a `provider`; without one it only routes.

    Args:
        name (`str`): of the expert: 1 to 100 characters that print.
        adapter (`str`, *optional*): Hub id or folder of a PEFT adapter on `model`, or on the base that it names.
        adapter_revision (`str`, *optional*): of the adapter.
        adapter_subfolder (`str`, *optional*): of the adapter's repository or folder, where its files are.
        endpoint (`str`, *optional*): URL of an OpenAI-compatible server.
        provider (`str`, *optional*): of Hub inference, for `model`.
        task (`str`, *optional*): `"chat"`, or `"text"` for a server of plain text generation.
        timeout (`float`, *optional*): seconds that an answer may take.
        system_prompt (`str`, *optional*): put before a prompt that has none of its own.
        generation (`dict`, *optional*): default options of its generation.
        cost (`float`, *optional*): of an answer, in any unit that all experts share.
        context (`int`, *optional*): tokens that its window holds, those of the answer included. This and what follows
            says which requests it can take; what is not said is read from its files where they are at hand, else tried.
        tools (`bool`, *optional*): whether it calls tools.
        images (`bool`, *optional*): whether it sees. With false a model on this machine that does is loaded as one of
            text, where there is a class for that.
        json (`bool`, *optional*): whether it answers in JSON of a given schema.
        logprobs (`bool`, *optional*): whether it tells the log probabilities of its tokens.
        domains (`list[str]`, *optional*): that it serves; by default the one of its own name, if there is one.
        public (`bool`, *optional*): in no config; true where its server must have a public address.
        price (`dict`, *optional*): `input` and `output`, of a million tokens each, in the unit of the costs.
    """

    adapter: str
    adapter_revision: str
    adapter_subfolder: str
    endpoint: str
    provider: str
    task: str
    timeout: float
    system_prompt: str
    generation: dict[str, Any]
    cost: float
    context: int
    tools: bool
    images: bool
    json: bool
    logprobs: bool
    domains: list[str]
    price: dict[str, float]
    public: bool


EXPERT_KEYS = tuple(key for key in ExpertSpec.__annotations__ if key not in ("token", "text", "public"))
_LOCAL_KEYS = {*BaseSpec.__annotations__, "adapter", "adapter_revision", "adapter_subfolder"} - {"model"}


def takes_text(key: str) -> bool:
    """Whether the value of a spec's key is text, rather than a number, a list or a mapping."""
    return _KINDS.get(key) == (str,)


def has_source(spec: ExpertSpec | Mapping[str, object]) -> bool:
    """Whether an expert has a source of answers; else it only routes."""
    return bool(spec.keys() & {"model", "adapter", "endpoint"})


def is_remote(spec: ExpertSpec | Mapping[str, object]) -> bool:
    """Whether an expert answers elsewhere, where its prompts go."""
    return bool(spec.keys() & {"endpoint", "provider"})


def check_expert(spec: object) -> ExpertSpec:
    """Returns a copy of an expert's spec without its empty entries, or raises.

    Args:
        spec (`object`): a mapping with `name` and, where the expert is to generate, its source; see [`ExpertSpec`].

    Raises:
        ValueError: a key is unknown (the nearest valid one is named), a value is of the wrong kind, or there are two
            sources.
    """
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f"An expert is a mapping with at least a `name`, such as {{'name': 'math'}}; got {spec!r}.")
    name = check_name(spec["name"])
    for key in spec:
        if key not in EXPERT_KEYS:
            near = difflib.get_close_matches(str(key), EXPERT_KEYS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(EXPERT_KEYS)}."
            raise ValueError(f"Expert {name!r} has the unknown key {key!r}. {hint}")
    clean = {key: value for key, value in spec.items() if value is not None}
    for key, kinds in _KINDS.items():
        if key in clean and not isinstance(clean[key], kinds):
            expected = " or ".join(_KIND_NAMES[kind] for kind in kinds)
            raise ValueError(f"`{key}` of expert {name!r} must be {expected}, got {clean[key]!r}.")
    for key, values in (("dtype", _DTYPES), ("task", _TASKS)):
        if clean.get(key, values[0]) not in values:
            raise ValueError(f"`{key}` of expert {name!r} must be one of {', '.join(values)}; got {clean[key]!r}.")
    for key in ("cost", "timeout"):
        if not is_number(clean.get(key, 1)) or clean.get(key, 1) < 0:
            raise ValueError(f"`{key}` of expert {name!r} must be a number of at least 0, got {clean[key]!r}.")
    context = clean.get("context", 1)
    if not isinstance(context, int) or isinstance(context, bool) or context < 1:
        raise ValueError(f"`context` of expert {name!r} must be a whole number of at least 1, got {context!r}.")
    _check_price(name, clean.get("price"))
    _check_source(name, clean)
    return cast(ExpertSpec, clean | _domains_of(name, clean))


def _check_price(name: str, price: dict[str, Any] | None) -> None:
    """Raises ValueError unless these are prices of a million tokens that are read and written, or there are none."""
    if price is None:
        return
    if price.keys() != {"input", "output"} or not all(is_number(value) and value >= 0 for value in price.values()):
        raise ValueError(
            f"`price` of expert {name!r} must have `input` and `output`, what a million tokens of each cost, numbers of"
            f" at least 0; got {price!r}."
        )


def _domains_of(name: str, spec: dict[str, Any]) -> dict[str, list[str]]:
    """The entry of the domains that an expert serves, sorted, each once; none where there is none."""
    if "domains" not in spec:
        return {}
    if not isinstance(spec["domains"], (list, tuple)):
        raise ValueError(f"`domains` of expert {name!r} must be a list of names, got {spec['domains']!r}.")
    return {"domains": sorted({check_name(domain) for domain in spec["domains"]})}


def served(spec: ExpertSpec) -> list[str]:
    """The domains that an expert serves, some of which a router may not have: by default the one of its own name."""
    return spec.get("domains", [spec["name"]])


def nearest_name(name: str, names: Iterable[str]) -> str:
    """A hint at the name that an unknown one was meant to be: with a space before it, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_source(name: str, spec: dict[str, Any]) -> None:
    """Raises ValueError unless the spec names one source of answers, or none: then the expert only routes."""
    keys = spec.keys()
    remote = sorted(keys & {"endpoint", "provider"})
    local = sorted(keys & _LOCAL_KEYS)
    if len(remote) == 2 or (remote and local):
        raise ValueError(
            f"Expert {name!r} has two sources: {' and '.join([*remote, *local])}. It answers either on this machine"
            " (`model`, `adapter`) or elsewhere (`endpoint`, `provider`): remove one."
        )
    if {"gguf_file", "quantization"} <= keys:
        raise ValueError(f"Expert {name!r} has `gguf_file` and `quantization`: GGUF weights are quantized already.")
    if "quantization" in keys:
        _check_quantization(name, spec["quantization"])
    for size in spec.get("max_memory", {}).values():
        in_bytes(f"`max_memory` of expert {name!r}", size)
    if not spec.get("gguf_file", ".gguf").lower().endswith(".gguf"):
        raise ValueError(f"`gguf_file` of expert {name!r} must name a .gguf file, got {spec['gguf_file']!r}.")
    if not _SUBFOLDER.fullmatch(spec.get("adapter_subfolder", "a")):
        raise ValueError(
            f"`adapter_subfolder` of expert {name!r} must be names with slashes between them, such as adapters/law; got"
            f" {spec['adapter_subfolder']!r}."
        )
    if "max_memory" in keys and "device_map" not in keys:
        raise ValueError(f"Expert {name!r} has `max_memory` but no `device_map` that it could bound: add one ('auto').")
    needs = {"revision": "model", "gguf_file": "model", "adapter_revision": "adapter", "provider": "model"}
    needs["adapter_subfolder"] = "adapter"
    for key, needed in needs.items():
        if key in keys and needed not in keys:
            raise ValueError(f"Expert {name!r} has `{key}` but no `{needed}`: add its Hub id or folder.")
    if local and not keys & {"model", "adapter"}:
        raise ValueError(f"Expert {name!r} gives details of a model but no `model`: add its Hub id or folder.")
    if keys & {"task", "timeout"} and not keys & {"model", "adapter", "endpoint"}:
        raise ValueError(f"Expert {name!r} has no source: add `model`, `adapter` or `endpoint`.")
    _check_elsewhere(name, spec)


def _check_elsewhere(name: str, spec: dict[str, Any]) -> None:
    """Raises ValueError where an endpoint is no URL, or a provider is asked for no model of the Hub."""
    if "endpoint" in spec:
        try:
            server_of(spec["endpoint"])
        except ValueError as error:
            raise ValueError(f"`endpoint` of expert {name!r} must be a URL such as https://host/v1; {error}.") from None
    if "provider" in spec:
        _check_provider(name, spec["model"], spec["provider"])


def _check_provider(name: str, model: str, provider: str) -> None:
    """Raises ValueError unless the Hub's router would be asked for one of its own models.

    Of a URL as `model` huggingface_hub makes the server that it sends the Hub's token to.
    """
    from huggingface_hub.inference._providers import PROVIDERS

    if not HUB_ID.fullmatch(model):
        raise ValueError(
            f"`model` of expert {name!r} has a `provider`, so it must be the id of a model on the Hub, such as"
            f" org/name; got {model!r}. A server of your own is an `endpoint`."
        )
    if provider not in ("auto", *PROVIDERS):
        raise ValueError(
            f"`provider` of expert {name!r} is {provider!r}, which this huggingface_hub does not know. It knows auto,"
            f" {', '.join(sorted(PROVIDERS))}; a later version may know more."
        )


def _check_quantization(name: str, quantization: dict[str, Any]) -> None:
    """Raises ValueError unless transformers knows the method; whether its package is here counts only at loading."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    bits = next((bits for bits in ("4bit", "8bit") if quantization.get(f"load_in_{bits}")), None)
    method = f"bitsandbytes_{bits}" if bits else quantization.get("quant_method")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ValueError(
            f"`quantization` of expert {name!r} has the unknown method {method!r}: expected what transformers takes as"
            " `quantization_config`, such as {'load_in_4bit': true}, or a `quant_method` and its options. Methods:"
            f" {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}."
        )


def check_strangers_spec(spec: ExpertSpec) -> None:
    """Raises ValueError unless an expert answers from public repositories of the Hub, without code of their own.

    Args:
        spec (`dict`): of an expert that a stranger added.
    """
    name = spec["name"]
    if sent := sorted(spec.keys() & {"endpoint", "provider"}):
        raise ValueError(f"Expert {name!r} sends prompts elsewhere, by its `{sent[0]}`: strangers' experts may not.")
    for key in ("model", "adapter"):
        if key in spec:
            check_hub_id(f"`{key}` of expert {name!r}", spec[key])
    if spec.get("trust_remote_code") or spec.get("use_safetensors") is False:
        raise ValueError(f"Expert {name!r} runs code of its repository: strangers' experts may not.")


def check_hub_id(what: str, name: object) -> str:
    """Returns the id of a repository on the Hub, which must not be a folder of this machine too.

    Args:
        what (`str`): names it in the message.
        name (`object`): such as `"org/name"`.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(name, str) or not HUB_ID.fullmatch(name) or os.path.lexists(name):
        raise ValueError(f"{what} must be the id of a repository on the Hub, such as org/name; got {name!r}.")
    return name


def in_bytes(what: str, size: object) -> int:
    """A size in bytes.

    Args:
        what (`str`): names the size in the message.
        size (`int` or `str`): a number of bytes, or a size such as `"8GB"`, `"512 MiB"`.

    Raises:
        ValueError: it is neither, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(size).strip().upper())
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"{what} must be a number of bytes or a size such as '8GB'; got {size!r}.")
    return int(float(match[1]) * _UNITS[match[2]])


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite real number (a bool is not, nor is a whole number beyond all floats)."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)
