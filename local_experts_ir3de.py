"""Experts on this machine: causal LMs, GGUF files, and adapters that share one copy of their base."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    TextGenerationPipeline,
    TextStreamer,
    set_seed,
)
from transformers.utils.hub import cached_file

from .prompts_ir3de import Prompt, as_chat, as_text, with_prompt

_BASE_KEYS = ("model", "revision", "gguf_file", "dtype", "device_map", "quantization")
_UNKNOWN = ""  # stands for the active adapter, after adapters were added or removed
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def base_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The part of a local expert's spec that names its base; experts of equal parts share one copy of it.

    Raises:
        ValueError: the adapter was trained on another base than the spec names.
        OSError: the adapter cannot be found.
    """
    base = {key: spec[key] for key in (*_BASE_KEYS, "trust_remote_code", "use_safetensors") if key in spec}
    if "adapter" in spec:
        trained_on = json.loads(Path(_adapter_file(spec, _ADAPTER_FILES[0])).read_text(encoding="utf-8"))
        name = trained_on.get("base_model_name_or_path") or ""
        model = base.setdefault("model", name)
        if model != name and not Path(model).is_dir():  # of a folder the shapes are checked, when it is loaded
            raise ValueError(
                f"The adapter {spec['adapter']} was trained on {name!r}, not on {model!r}: give the base that it"
                " belongs to, or leave `model` out."
            )
        if not model:
            raise ValueError(f"The adapter {spec['adapter']} does not name its base: add `model` to the expert.")
        if trained_on.get("revision") and "revision" not in base and model == name:
            base["revision"] = trained_on["revision"]
    return base


def _adapter_file(spec: dict[str, Any], filename: str) -> str:
    return str(cached_file(spec["adapter"], filename, revision=spec.get("adapter_revision")))


class LocalModel:
    """
    A causal LM in memory, and the adapters that experts have on it.

    Args:
        base (`dict`): of [`base_spec`].
        device (`torch.device`, *optional*): where it runs; not with a `device_map`.
        allow (`dict`): whether the caller allows `trust_remote_code` and unsafe weights.
        model_kwargs (*optional*): for `AutoModelForCausalLM.from_pretrained`; the spec wins over them.

    Raises:
        PermissionError: the expert needs remote code or unsafe weights, and the caller does not allow them.
        OSError: the model cannot be found or read.
    """

    def __init__(
        self, base: dict[str, Any], device: torch.device | None, allow: dict[str, bool], **model_kwargs: Any
    ) -> None:
        where, kwargs = _loading(base, allow, model_kwargs)
        # Padding on the left, so that the answer follows the prompt in a batch.
        tokenizer = AutoTokenizer.from_pretrained(base["model"], padding_side="left", **where)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(base["model"], **where, **kwargs)
        window = getattr(self.model.config, "max_position_embeddings", None)
        tokenizer.model_max_length = min(tokenizer.model_max_length, window or tokenizer.model_max_length)
        device = None if "device_map" in kwargs else device
        self.pipe = TextGenerationPipeline(model=self.model, tokenizer=tokenizer, device=device)
        self._adapters: set[str] = set()
        self._active: str | None = None
        self._layers: list[Any] = []
        # One generation at a time: the active adapter is a state of the whole model.
        self._lock = threading.RLock()

    @property
    def device(self) -> str:
        """Where the weights are."""
        return str(self.model.device)

    @property
    def size(self) -> int:
        """Bytes of all weights, adapters included."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}.values())

    def add_adapter(self, spec: dict[str, Any]) -> None:
        """Loads an expert's adapter, if it has one and it is not there yet.

        Raises:
            ValueError: its weights do not fit the model.
        """
        if "adapter" not in spec:
            return
        with self._lock:
            if self.has_adapter(spec):
                return
            folder = Path(*{str(Path(_adapter_file(spec, file)).parent) for file in _ADAPTER_FILES})
            try:
                self.model.load_adapter(str(folder), adapter_name=_adapter_name(spec))
            except ImportError as error:
                raise ImportError("Adapters need the package peft: `pip install ir3de[adapters]`.") from error
            except (RuntimeError, ValueError) as error:
                if _adapter_name(spec) in getattr(self.model, "peft_config", {}):
                    self.model.delete_adapter(_adapter_name(spec))
                raise ValueError(
                    f"The adapter {spec['adapter']} does not fit {self.model.name_or_path}: {error}"
                ) from error
            finally:
                self._layers = [layer for layer in self.model.modules() if hasattr(layer, "active_adapter")]
                self._active = _UNKNOWN
            self._adapters.add(_adapter_name(spec))

    def has_adapter(self, spec: dict[str, Any]) -> bool:
        """Whether an expert has an adapter and it is loaded."""
        return "adapter" in spec and _adapter_name(spec) in self._adapters

    def generate(
        self, spec: dict[str, Any], prompts: Sequence[Prompt], batch_size: int | None, options: dict[str, Any]
    ) -> list[Any]:
        """Answers prompts, each with its texts or with the exception that kept it from being answered.

        Args:
            spec (`dict`): of an expert whose adapter, if any, was added.
            prompts (`Sequence[str | list[dict]]`): texts or chats.
            batch_size (`int`, *optional*): prompts that are generated for at once; all of them by default.
            options (`dict`): of a text-generation pipeline, and `seed` and `timeout`.
        """
        options = dict(options)
        full, timeout = bool(options.pop("return_full_text", False)), options.pop("timeout", None)
        seed = options.pop("seed", None)
        if "stop_strings" in options:  # which would need the tokenizer beside it
            options["stop_sequence"] = options.pop("stop_strings")
        if options.pop("truncation", False):
            options["handle_long_generation"] = "hole"  # cuts the beginning, so that the question stays
        answers: list[Any] = [self._reject(spec, prompt, options) for prompt in prompts]
        good = [index for index, rejection in enumerate(answers) if rejection is None]
        inputs = [self._render(spec, prompts[index]) for index in good]
        with self._lock:
            self._activate(spec)
            if seed is not None:
                set_seed(seed)
            outputs = self._run(inputs, batch_size or len(inputs), timeout, options)
        for index, output in zip(good, outputs, strict=True):
            answers[index] = output
            if not isinstance(output, Exception):
                texts = [sequence["generated_text"] for sequence in output]
                texts = [with_prompt(prompts[index], text) for text in texts] if full else texts
                answers[index] = texts[0] if len(texts) == 1 else texts
        return answers

    def _run(self, inputs: list[Any], batch_size: int, timeout: float | None, options: dict[str, Any]) -> list[Any]:
        """Generates for a batch; where it fails, for its halves, so that one prompt does not take others with it."""
        if not inputs:
            return []
        late = _Deadline(timeout)
        criteria = [*options.get("stopping_criteria", ()), late]
        try:
            settings = {**options, "stopping_criteria": criteria, "return_full_text": False, "batch_size": batch_size}
            # A single prompt goes in as it is: of a list the pipeline makes a data loader, which moves the seed.
            outputs: list[Any] = [self.pipe(*inputs, **settings)] if len(inputs) == 1 else self.pipe(inputs, **settings)
            if late.passed:
                raise TimeoutError(f"no answer within {timeout:g} s")
            return outputs
        except Exception as error:
            if len(inputs) == 1 or late.passed or "streamer" in options:
                return [error] * len(inputs)
        _return_memory()
        half = len(inputs) // 2
        return [
            *self._run(inputs[:half], batch_size, timeout, options),
            *self._run(inputs[half:], batch_size, timeout, options),
        ]

    def stream(
        self,
        spec: dict[str, Any],
        prompt: Prompt,
        options: dict[str, Any],
        put: Callable[[str], None],
        closed: threading.Event,
    ) -> None:
        """Answers a prompt piece by piece.

        Args:
            spec, prompt, options: as in [`LocalModel.generate`].
            put (`Callable`): takes each piece.
            closed (`threading.Event`): stops the generation once it is set.

        Raises:
            Exception: whatever kept the prompt from being answered.
        """

        def stop(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), closed.is_set(), device=input_ids.device)

        criteria = [*options.get("stopping_criteria", ()), stop]
        streamer = _Streamer(self.pipe.tokenizer, put)
        [answer] = self.generate(spec, [prompt], 1, {**options, "streamer": streamer, "stopping_criteria": criteria})
        if isinstance(answer, Exception):
            raise answer

    def close(self) -> None:
        """Lets the memory of the weights go, on every device."""
        if getattr(self.model, "hf_device_map", None):
            from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]

            remove_hook_from_module(self.model, recurse=True)
        del self.model, self.pipe, self._layers
        _return_memory()

    @contextmanager
    def using(self, spec: dict[str, Any]) -> Iterator[Any]:
        """The model as an expert, its adapter active, for as long as the block lasts; others wait.

        Args:
            spec (`dict`): of an expert whose adapter, if any, was added.
        """
        with self._lock:
            self._activate(spec)
            yield self.model

    def _activate(self, spec: dict[str, Any]) -> None:
        """Switches to the expert's adapter, or to the base alone; the model's own method takes twice as long."""
        name = _adapter_name(spec) if self.has_adapter(spec) else None
        if name == self._active:
            return
        for layer in self._layers:
            if name is None or self._active in (None, _UNKNOWN):
                layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name, inference_mode=True)
        self._active = name

    def _render(self, spec: dict[str, Any], prompt: Prompt) -> Prompt:
        """The prompt as the model reads it: a chat where it has a template, else plain text."""
        has_template = getattr(self.pipe.tokenizer, "chat_template", None) is not None
        return (as_chat if has_template else as_text)(prompt, spec.get("system_prompt"))

    def _reject(self, spec: dict[str, Any], prompt: Prompt, options: dict[str, Any]) -> Exception | None:
        """What keeps a prompt from being generated for: its template refuses it, or it is too long."""
        tokenizer: Any = self.pipe.tokenizer
        try:
            rendered = self._render(spec, prompt)
            if isinstance(rendered, list):
                rendered = tokenizer.apply_chat_template(rendered, add_generation_prompt=True, tokenize=False)
            length = len(tokenizer(rendered, verbose=False)["input_ids"])
        except Exception as error:
            return error
        new, window = options.get("max_new_tokens") or 1, tokenizer.model_max_length
        if length + new > window and options.get("handle_long_generation") is None:
            return ValueError(
                f"the prompt's {length} tokens and {new} new ones exceed the window of {window} tokens: shorten it,"
                " lower max_new_tokens, or pass truncation=True to cut its beginning"
            )
        return None


class _Streamer(TextStreamer):
    """Gives the pieces of a text to a function, without the prompt."""

    def __init__(self, tokenizer: Any, put: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._put = put

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._put(text)


class _Deadline:
    """A stopping criterion that stops when time is up, and remembers it."""

    def __init__(self, timeout: float | None) -> None:
        self._end = time.monotonic() + timeout if timeout else None
        self.passed = False

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.passed = self.passed or (self._end is not None and time.monotonic() > self._end)
        return torch.full((len(input_ids),), self.passed, device=input_ids.device)


def expected_size(base: dict[str, Any], allow: dict[str, bool], **model_kwargs: Any) -> int:
    """Bytes that a model will take, told from its config before its weights are read; of GGUF from the file.

    Raises:
        ValueError: the GGUF file has an architecture or a type of weights that cannot be read.
    """
    where, kwargs = _loading(base, allow, model_kwargs)
    if "gguf_file" in base:
        return _gguf_size(str(cached_file(base["model"], base["gguf_file"], revision=base.get("revision"))))
    config = AutoConfig.from_pretrained(base["model"], **where)
    dtype = kwargs["dtype"] if kwargs["dtype"] != "auto" else getattr(config, "dtype", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=where["trust_remote_code"])
    width = getattr(torch, dtype).itemsize if isinstance(dtype, str) else getattr(dtype, "itemsize", 4)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return int(parameters * width + sum(buffer.nbytes for buffer in model.buffers()))


def _gguf_size(path: str) -> int:
    from gguf import GGUFReader
    from gguf.quants import _type_traits
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a GGUF file, or is damaged ({error}): fetch it again.") from error
    field = reader.get_field("general.architecture")
    architecture = field.contents() if field else None
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{path} holds a model of type {architecture!r}, which transformers cannot read. It reads"
            f" {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}; others can answer behind an `endpoint`."
        )
    kinds = {tensor.tensor_type for tensor in reader.tensors}
    unreadable = {kind.name for kind in kinds if kind not in _type_traits and kind.name not in ("F32", "F16")}
    if unreadable:
        raise ValueError(
            f"{path} is quantized as {', '.join(sorted(unreadable))}, which cannot be expanded: use another"
            " quantization, such as Q4_K_M or Q8_0."
        )
    return 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)


def _loading(
    base: dict[str, Any], allow: dict[str, bool], model_kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for tokenizer, config and model, and those for the model alone."""
    where: dict[str, Any] = {key: base[key] for key in ("revision", "gguf_file") if key in base}
    where["trust_remote_code"] = base.get("trust_remote_code", False)  # False, so that nobody is asked
    if where["trust_remote_code"]:
        _require(allow["trust_remote_code"], base["model"], "trust_remote_code", True, "runs code of its repository")
    kwargs: dict[str, Any] = {**model_kwargs, **{key: base[key] for key in ("dtype", "device_map") if key in base}}
    kwargs.setdefault("dtype", "auto")
    if "quantization" in base:
        kwargs["quantization_config"] = base["quantization"]
    if "gguf_file" not in base:
        unsafe = base.get("use_safetensors") is False
        if unsafe:
            _require(allow["unsafe_weights"], base["model"], "use_safetensors", False, "has no safetensors weights")
        kwargs["use_safetensors"] = None if unsafe else True
    return where, kwargs


def _require(allowed: bool, model: str, key: str, value: bool, why: str) -> None:
    if not allowed:
        raise PermissionError(
            f"{model} {why}. If you trust it, allow it: pipeline(..., expert_kwargs={{{key!r}: {value}}})."
        )


def _adapter_name(spec: dict[str, Any]) -> str:
    """A name of the adapter itself: experts come and go, and another may come under the same name."""
    origin = repr((spec["adapter"], spec.get("adapter_revision")))
    return f"adapter_{hashlib.sha256(origin.encode()).hexdigest()[:16]}"


def _return_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return
