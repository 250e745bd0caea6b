"""Experts on this machine, loaded: a model of text or one that sees, and the adapters that share this copy of it."""

from __future__ import annotations

import copy
import ctypes
import hashlib
import logging
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]
from accelerate.utils.memory import clear_device_cache  # type: ignore[import-untyped]
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, TextGenerationPipeline, TextStreamer
from transformers.utils.chat_template_utils import Chat

from .images_ir3de import has_images
from .loading_ir3de import loading
from .local_sources_ir3de import LocalSource, adapter_folder
from .options_ir3de import Options, for_transformers
from .prompts_ir3de import Prompt, with_prompt
from .specs_ir3de import ExpertSpec

_UNKNOWN = ""  # stands for the active adapter, after adapters were added or removed


class LocalModel:
    """
    A model in memory, and the adapters that experts have on it.

    Args:
        source ([`LocalSource`]): what it is loaded from.

    Raises:
        OSError: the weights cannot be found or read.
        MemoryError: `max_memory` is too small for any of them.
        ImportError: a package that its kind of weights needs is missing; the message names it.
    """

    def __init__(self, source: LocalSource) -> None:
        self.source = source
        # For what a device map leaves on disk and is not in safetensors there.
        self._folder = tempfile.TemporaryDirectory(prefix="ir3de-offload-")
        config = copy.deepcopy(source.config)  # given, because to read it from a GGUF file takes seconds
        kwargs = {"offload_folder": self._folder.name, "config": config, **source.where, **source.kwargs}
        with loading():
            self.model = source.auto_class.from_pretrained(source.base["model"], **kwargs)
        places = getattr(self.model, "hf_device_map", None)  # absent where all is on one device
        if places and set(places.values()) == {"disk"}:
            raise MemoryError(f"`max_memory` has no room for any layer of {source.base['model']}: raise it")
        device = None if places else self.model.device
        of_text = source.auto_class is AutoModelForCausalLM
        pipeline = TextGenerationPipeline if of_text else partial(_SeeingPipeline, source)
        self.pipe = pipeline(model=self.model, tokenizer=source.tokenizer, device=device)
        self._adapters: set[str] = set()
        self._active: str | None = None
        self._layers: list[Any] = []
        # One generation at a time: the active adapter is a state of the whole model.
        self._lock = threading.RLock()
        self.size = self._measure()  # bytes of all weights in memory, on every device, adapters included

    @property
    def device(self) -> str:
        """Where the weights are."""
        places = getattr(self.model, "hf_device_map", None) or {"": self.model.device}
        named = {place if place == "disk" else str(torch.device(place)) for place in places.values()}
        return ", ".join(sorted(named))

    def add_adapter(self, spec: ExpertSpec) -> None:
        """Loads an expert's adapter, which fits, if it has one and it is not there yet.

        Raises:
            ValueError: the weights are not all in memory; transformers would leave the adapter out of the others.
        """
        if "adapter" not in spec:
            return
        with self._lock:
            if self.has_adapter(spec):
                return
            if any(parameter.is_meta for parameter in self.model.parameters()):
                raise ValueError(
                    f"The adapter {spec['adapter']} needs all of its base in memory, and a part of it is offloaded"
                    f" ({self.device}): raise `max_memory`, quantize the base, or merge the adapter into it."
                )
            try:
                with _several_adapters():
                    self.model.load_adapter(str(adapter_folder(spec)), adapter_name=_adapter_name(spec))
            except BaseException:
                if _adapter_name(spec) in getattr(self.model, "peft_config", {}):
                    self.model.delete_adapter(_adapter_name(spec))
                raise
            finally:
                self._layers = [layer for layer in self.model.modules() if hasattr(layer, "active_adapter")]
                self._active = _UNKNOWN
            self._adapters.add(_adapter_name(spec))
            self.size = self._measure()

    def has_adapter(self, spec: ExpertSpec) -> bool:
        """Whether an expert has an adapter and it is loaded."""
        return "adapter" in spec and _adapter_name(spec) in self._adapters

    def _measure(self) -> int:
        places = getattr(self.model, "hf_device_map", None) or {}
        on_disk = tuple(f"{module}." if module else "" for module, place in places.items() if place == "disk")
        # What quantized layers keep beside their weights is in the state alone, and plain buffers are not.
        tensors = [*self.model.named_parameters(), *self.model.named_buffers(), *self.model.state_dict().items()]
        sizes: dict[Any, int] = {}
        for name, tensor in tensors:
            for part in _parts(tensor):
                if not part.is_meta:
                    sizes[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
                elif not name.startswith(on_disk):  # waits in main memory for its turn on another device
                    sizes[name] = part.nbytes
        return sum(sizes.values())

    def generate(
        self, spec: ExpertSpec, prompts: Sequence[Prompt], batch_size: int | None, options: Options
    ) -> list[Any]:
        """Answers prompts, each with its texts or with the exception that kept it from being answered.

        Args:
            spec ([`ExpertSpec`]): of an expert whose adapter, if any, was added.
            prompts (`Sequence[str | list[dict]]`): texts or chats that the source does not reject.
            batch_size (`int`, *optional*): prompts that are generated for at once; all of them by default.
            options (`dict`): of a text-generation pipeline, and `seed` and `timeout`.
        """
        options = for_transformers(options)
        full, timeout = bool(options.pop("return_full_text", False)), options.pop("timeout", None)
        seed = options.pop("seed", None)
        if "stop_strings" in options:  # which would need the tokenizer beside it
            options["stop_sequence"] = options.pop("stop_strings")
        if options.pop("truncation", False):
            options["handle_long_generation"] = "hole"  # cuts the beginning, so that the question stays
        inputs = [self.source.render(spec, prompt) for prompt in prompts]
        if any(map(has_images, inputs)):  # whose pixels make no batch
            batch_size = 1
        with self._lock:
            self._activate(spec)
            if seed is not None:
                from transformers import set_seed  # brings peft and all that peft brings, which takes a second

                set_seed(seed)
            outputs = self._run(inputs, batch_size or len(inputs), timeout, options)
        return [
            output if isinstance(output, Exception) else _texts(output, prompt if full else None)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def _run(self, inputs: list[Any], batch_size: int, timeout: float | None, options: Options) -> list[Any]:
        """Generates for a batch; where it fails, for its halves, so that one prompt does not take others with it."""
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
        spec: ExpertSpec,
        prompt: Prompt,
        options: Options,
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
            """A stopping criterion: true for every sequence once nobody reads on."""
            return torch.full((len(input_ids),), closed.is_set(), device=input_ids.device)

        criteria = [*options.get("stopping_criteria", ()), stop]
        streamer = _Streamer(self.pipe.tokenizer, put)
        [answer] = self.generate(spec, [prompt], 1, {**options, "streamer": streamer, "stopping_criteria": criteria})
        if isinstance(answer, Exception):
            raise answer

    def close(self) -> None:
        """Lets the memory of the weights go, on every device."""
        if getattr(self.model, "hf_device_map", None):
            remove_hook_from_module(self.model, recurse=True)
        del self.model, self.pipe, self._layers
        self._folder.cleanup()
        _return_memory()

    @contextmanager
    def using(self, spec: ExpertSpec) -> Iterator[Any]:
        """The model as an expert, its adapter active, for as long as the block lasts; others wait.

        Args:
            spec ([`ExpertSpec`]): of an expert whose adapter, if any, was added.
        """
        with self._lock:
            self._activate(spec)
            yield self.model

    def _activate(self, spec: ExpertSpec) -> None:
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


class _SeeingPipeline(TextGenerationPipeline):
    """
    Text generation with an image-text-to-text model, whose processor reads the chats.

    Args:
        source ([`LocalSource`]): of the model.
        kwargs (*optional*): of [`~transformers.TextGenerationPipeline`].
    """

    def __init__(self, source: LocalSource, **kwargs: Any) -> None:
        self._source = source
        super().__init__(**kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """The source has found that it sees, and causal LMs are not all that generates text."""

    def preprocess(  # type: ignore[override]
        self, prompt: Any, continue_final_message: bool | None = None, tools: Any = None, **options: Any
    ) -> dict[str, Any]:
        """What the model is given for a prompt, with the pixels of its images."""
        if not isinstance(prompt, Chat) or not self._source.sees:
            more = {"continue_final_message": continue_final_message, "tools": tools}
            return super().preprocess(prompt, **more, **options)  # type: ignore[no-any-return]
        inputs = self._source.encode(list(prompt.messages), tools, continue_final_message)
        return {**inputs.to(dtype=self.model.dtype), "prompt_text": prompt}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], **options: Any
    ) -> dict[str, Any]:
        """Generates. What a model of text does not have goes the way of options, which end in the same call."""
        of_text = ("input_ids", "attention_mask", "prompt_text")
        seen = {key: model_inputs.pop(key) for key in list(model_inputs) if key not in of_text}
        return super()._forward(model_inputs, **seen, **options)  # type: ignore[no-any-return]


class _Streamer(TextStreamer):
    """Gives the pieces of a text to a function, without the prompt."""

    def __init__(self, tokenizer: Any, put: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._put = put

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Passes a piece on."""
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


def _texts(sequences: list[dict[str, Any]], prompt: Prompt | None) -> Any:
    """The generated text, or the list of them where there are several, after the prompt if there is one."""
    texts: list[Any] = [sequence["generated_text"] for sequence in sequences]
    texts = [with_prompt(prompt, text) for text in texts] if prompt is not None else texts
    return texts[0] if len(texts) == 1 else texts


def _parts(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor is made of, which quantized ones hide."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    elif isinstance(tensor, torch.Tensor):
        yield tensor


@contextmanager
def _several_adapters() -> Iterator[None]:
    """Keeps transformers from a warning that a model has adapters already, and from a report that their weights are
    missing from the file of the next. What is missing from that file was found before (`LocalSource.check_adapter`).
    """
    logger = logging.getLogger("transformers.integrations.peft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _adapter_name(spec: ExpertSpec) -> str:
    """A name of the adapter itself: experts come and go, and another may come under the same name."""
    origin = repr((spec["adapter"], spec.get("adapter_revision"), spec.get("adapter_subfolder")))
    return f"adapter_{hashlib.sha256(origin.encode()).hexdigest()[:16]}"


def _return_memory() -> None:
    clear_device_cache(garbage_collection=True)
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return
