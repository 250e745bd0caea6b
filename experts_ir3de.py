"""The experts of a router: loaded on first use, kept within a budget of memory, shared, and asked for answers."""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, TextGenerationPipeline

from .local_experts_ir3de import LocalModel, base_spec, expected_size
from .prompts_ir3de import Prompt
from .remote_experts_ir3de import RemoteModel

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class ExpertError(RuntimeError):
    """
    An expert did not answer; the cause is chained to it.

    Args:
        expert (`str`): its name.
        cause (`Exception`): why.
    """

    def __init__(self, expert: str, cause: Exception) -> None:
        super().__init__(f"Expert {expert!r} did not answer: {describe_error(cause)}")
        self.expert = expert
        self.cause = cause


class ExpertPool:
    """
    Asks experts for answers. Those on this machine are loaded on first use; adapters of one base share one copy of it.
    It may be used from several threads.

    Args:
        config ([`IR3DEConfig`]): whose `experts` are the specs.
        device (`torch.device`, *optional*): where experts run; not with a `device_map` among `model_kwargs`.
        max_loaded_experts (`int`, *optional*): models that stay loaded; all experts of one base count as one.
        max_memory (`int` or `str`, *optional*): bytes, or a size such as `"8GB"`, that loaded models take together.
        retries (`int`): further attempts with a remote expert that is busy, broken or not reached.
        trust_remote_code (`bool`): allow the code of experts whose spec asks for it too.
        use_safetensors (`bool`): `False` allows other weights than safetensors, for experts whose spec says so too.
        model_kwargs (*optional*): for `AutoModelForCausalLM.from_pretrained`, such as `dtype` or `device_map`.
    """

    def __init__(
        self,
        config: Any,
        device: torch.device | None = None,
        max_loaded_experts: int | None = None,
        max_memory: int | str | None = None,
        retries: int = 2,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        **model_kwargs: Any,
    ) -> None:
        if max_loaded_experts is not None and max_loaded_experts < 1:
            raise ValueError(f"`max_loaded_experts` must be at least 1, got {max_loaded_experts}.")
        self._config = config
        self._device = device
        self._most = max_loaded_experts
        self._budget = None if max_memory is None else _bytes(max_memory)
        self._retries = retries
        self._allow = {"trust_remote_code": trust_remote_code, "unsafe_weights": not use_safetensors}
        self._model_kwargs = model_kwargs
        self._loaded: OrderedDict[str, LocalModel] = OrderedDict()  # the least recently used first
        self._sizes: dict[str, int] = {}  # expected ones while loading, then true ones
        self._users: dict[str, int] = {}  # generations that run, by source; a source that loads has one
        self._changed = threading.Condition()

    def for_config(self, config: Any) -> ExpertPool:
        """This pool for the experts of another config: the two share loaded models, their locks and the budget."""
        pool = copy.copy(self)
        pool._config = config
        return pool

    def spec(self, name: str) -> dict[str, Any]:
        """The present spec of an expert."""
        return next(spec for spec in self._config.experts if spec["name"] == name)

    def can_answer(self, name: str) -> bool:
        """Whether the expert has a source of answers; else it only routes."""
        return bool(self.spec(name).keys() & {"model", "adapter", "endpoint"})

    def check(self, names: Iterable[str]) -> None:
        """Checks specs before anything is loaded.

        Raises:
            ValueError: an expert has nothing to generate with, or its `generation` has an unknown option.
        """
        for name in names:
            if not self.can_answer(name):
                raise ValueError(
                    f"Expert {name!r} has no `model`, `adapter` or `endpoint`, so it cannot generate. Add one to its"
                    " spec in config.json, or pass `generate=False` to route only."
                )
            for key in self.spec(name).get("generation", {}):
                if key not in generation_options():
                    raise ValueError(
                        f"`generation` of expert {name!r} has the unknown option {key!r}.{nearest(key, [])}"
                    )

    def generate(self, name: str, prompts: Sequence[Prompt], batch_size: int | None, **options: Any) -> list[Any]:
        """Answers prompts with one expert.

        Args:
            name (`str`): of the expert.
            prompts (`Sequence[str | list[dict]]`): texts or chats.
            batch_size (`int`, *optional*): prompts that are generated for at once; all of them by default.
            options (*optional*): of the expert's text-generation pipeline, and `seed` and `timeout`; they win over the
                spec's.

        Returns:
            `list`: a text a prompt, or a list of them with `num_return_sequences` above 1, or the exception that kept
            the prompt from being answered. With `return_full_text` the prompt comes with it, as in text-generation.
        """
        spec = self.spec(name)
        options = _with_defaults(spec, options)
        try:
            if _is_remote(spec):
                return RemoteModel(spec, self._retries).generate(prompts, batch_size, options)
            with self._use(spec, options.get("timeout")) as model:
                return model.generate(spec, prompts, batch_size, options)
        except Exception as error:
            return [error] * len(prompts)

    def stream(self, name: str, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Answers a prompt piece by piece; closing the iterator stops the generation.

        Args:
            name (`str`): of the expert.
            prompt (`str | list[dict]`): text or chat.
            options (*optional*): as in [`ExpertPool.generate`].

        Raises:
            Exception: whatever kept the expert from answering.
        """
        spec = self.spec(name)
        options = _with_defaults(spec, options)
        if _is_remote(spec):
            yield from RemoteModel(spec, self._retries).stream(prompt, options)
            return
        pieces: SimpleQueue[str | Exception | None] = SimpleQueue()
        closed = threading.Event()

        def work() -> None:
            try:
                with self._use(spec, options.get("timeout")) as model:
                    model.stream(spec, prompt, options, pieces.put, closed)
                pieces.put(None)
            except Exception as error:  # raised again where the pieces are read
                pieces.put(error)

        # A thread, so that the model is free once the answer is complete, whenever its pieces are read.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            closed.set()
            thread.join()

    # Memory.

    @property
    def loaded(self) -> list[dict[str, Any]]:
        """What is in memory, the least recently used first: `model`, its `experts`, `bytes` and `device`."""
        with self._changed:
            return [
                {
                    "model": json.loads(source)["model"],
                    "experts": self._experts_of(source, model),
                    "bytes": self._sizes[source],
                    "device": model.device,
                }
                for source, model in self._loaded.items()
            ]

    def load(self, name: str) -> LocalModel:
        """The model of an expert on this machine, loaded if it is not.

        Raises:
            Exception: whatever keeps it from being loaded.
        """
        with self._use(self.spec(name), None) as model:
            return model

    def preload(self, names: Iterable[str], background: bool = True) -> threading.Thread:
        """Loads experts before they are asked, as many as the budget takes, with progress.

        Args:
            names (`Iterable[str]`): of the experts; remote ones need no loading.
            background (`bool`): return at once; `join()` the thread to wait.

        Returns:
            `threading.Thread`: that loads. An expert that fails is left for its first use, which says why.
        """
        names = [name for name in names if self.can_answer(name) and not _is_remote(self.spec(name))]

        def load() -> None:
            for name in tqdm(names, desc="Loading experts", unit=" experts", disable=None):
                with suppress(Exception):
                    self.load(name)

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        if not background:
            thread.join()
        return thread

    def unload(self) -> None:
        """Removes every loaded model that no generation is using."""
        with self._changed:
            for source in [source for source in self._loaded if not self._users.get(source)]:
                self._evict(source)

    @contextmanager
    def _use(self, spec: dict[str, Any], timeout: float | None) -> Iterator[LocalModel]:
        """The expert's model, loaded if it is not, and not removed while it is in use."""
        base = base_spec(spec)
        source = json.dumps(base, sort_keys=True)
        model = self._claim(source, base, timeout)
        try:
            model.add_adapter(spec)
            with self._changed:
                self._sizes[source] = model.size
            yield model
        finally:
            self._release(source)

    def _claim(self, source: str, base: dict[str, Any], timeout: float | None) -> LocalModel:
        """Counts a user of a model, after loading it where no other thread does."""
        end = None if timeout is None else time.monotonic() + timeout
        size = self._sizes.get(source, 0)
        if not size and (self._budget is not None or "gguf_file" in base):
            size = expected_size(base, self._allow, **self._model_kwargs)
        with self._changed:
            while source not in self._loaded and (source in self._users or not self._make_room(size)):
                if not self._changed.wait(None if end is None else max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"no memory became free for it within {timeout:g} s")
            self._users[source] = self._users.get(source, 0) + 1
            if source in self._loaded:
                self._loaded.move_to_end(source)
                return self._loaded[source]
            self._sizes[source] = size
        try:
            model = LocalModel(base, self._device, self._allow, **self._model_kwargs)
        except BaseException:
            self._release(source)
            raise
        with self._changed:
            self._loaded[source] = model
            self._changed.notify_all()
        return model

    def _release(self, source: str) -> None:
        with self._changed:
            self._users[source] -= 1
            if not self._users[source]:
                del self._users[source]
            self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        """Removes models that are not in use until one more of `size` bytes is within the budget; false if it cannot.

        Raises:
            MemoryError: it would not be within the budget alone.
        """
        if self._budget is not None and size > self._budget:
            raise MemoryError(f"it takes {size:,} bytes, and max_memory is {self._budget:,}: raise it, or quantize")
        while not self._has_room(size):
            idle = next((source for source in self._loaded if not self._users.get(source)), None)
            if idle is None:
                return False
            self._evict(idle)
        return True

    def _has_room(self, size: int) -> bool:
        held = self._loaded.keys() | self._users.keys()
        if self._most is not None and len(held) >= self._most:
            return False
        return self._budget is None or sum(self._sizes.get(source, 0) for source in held) + size <= self._budget

    def _evict(self, source: str) -> None:
        self._loaded.pop(source).close()

    def _experts_of(self, source: str, model: LocalModel) -> list[str]:
        """Names of the experts that a loaded model serves; of adapters those that are loaded."""
        bare = [
            spec["name"]
            for spec in self._config.experts
            if "model" in spec and not spec.keys() & {"adapter", "endpoint", "provider"}
            if json.dumps(base_spec(spec), sort_keys=True) == source
        ]
        return sorted([*bare, *(spec["name"] for spec in self._config.experts if model.has_adapter(spec))])


def describe_error(error: BaseException) -> str:
    """An error in one line, for a record: its type and the beginning of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@cache
def generation_options() -> frozenset[str]:
    """Names of the options that experts take: those of a text-generation pipeline and `generate`, `seed`, `timeout`."""
    stages = (TextGenerationPipeline._sanitize_parameters, TextGenerationPipeline._forward)
    named = {name for stage in stages for name in inspect.signature(stage).parameters}
    extra = {"streamer", "stopping_criteria", "logits_processor", "assistant_model", "prefix_allowed_tokens_fn"}
    options = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    ours = {"seed", "timeout", "frequency_penalty", "presence_penalty"}
    return frozenset(options | named | extra | ours) - {"self", "model_inputs", "generate_kwargs", "kwargs"}


def check_options(options: dict[str, Any]) -> None:
    """Checks the options of a call before anything is loaded.

    Raises:
        ValueError: one is out of range.
    """
    for key in ("max_new_tokens", "num_return_sequences"):
        value = options.get(key, 1)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"`{key}` must be a whole number of at least 1, got {value!r}.")
    for key in ("temperature", "timeout"):
        value = options.get(key, 1)
        if value is not None and (not isinstance(value, (int, float)) or value < 0):
            raise ValueError(f"`{key}` must be a number of at least 0, got {value!r}.")


def nearest(key: str, others: Iterable[str]) -> str:
    """A hint at the option that an unknown one was meant to be, or nothing."""
    near = difflib.get_close_matches(key, [*generation_options(), *others], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _is_remote(spec: dict[str, Any]) -> bool:
    return bool(spec.keys() & {"endpoint", "provider"})


def _with_defaults(spec: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    own = {"timeout": spec["timeout"]} if "timeout" in spec else {}
    return {**own, **spec.get("generation", {}), **options}


def _bytes(size: int | str) -> int:
    """A size in bytes.

    Raises:
        ValueError: it is neither a number above 0 nor such as `"8GB"`, `"512 MiB"`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(size).strip().upper())
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"`max_memory` must be a number of bytes or a size such as '8GB'; got {size!r}.")
    return int(float(match[1]) * _UNITS[match[2]])
