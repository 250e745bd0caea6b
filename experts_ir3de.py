"""The experts of a router: loaded on first use, kept within a budget of memory, shared, and asked for answers."""

from __future__ import annotations

import copy
import json
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm.auto import tqdm

from .addresses_ir3de import server_of
from .configuration_ir3de import IR3DEConfig
from .local_experts_ir3de import LocalModel
from .local_sources_ir3de import LocalSource, base_spec
from .options_ir3de import Options, check_options, check_seed, generation_options, nearest
from .prompts_ir3de import Prompt, Unanswerable
from .remote_experts_ir3de import RemoteModel, key_of
from .specs_ir3de import BaseSpec, ExpertSpec, check_strangers_spec, has_source, in_bytes, is_remote

_MOST_SAID = 300  # characters of what an error says

T = TypeVar("T")


class Reply(NamedTuple):
    """
    What an expert answered to one prompt.

    Args:
        text (`str`): the answer.
        read (`int`, *optional*): tokens of the prompt as the expert reads it; None where a server does not say.
        written (`int`, *optional*): tokens of the answer, likewise.
    """

    text: str
    read: int | None
    written: int | None


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


def from_thread(work: Callable[[Callable[[T], None], threading.Event], None]) -> Iterator[T]:
    """The pieces that work gives from a thread of its own, so that a model is free once its answer is complete,
    whenever the pieces are read.

    Args:
        work (`Callable`): called with a function that takes a piece, and with an event that is set once nobody reads
            on: the iterator was closed.

    Raises:
        Exception: whatever the work failed with, where its pieces are read.
    """
    pieces: SimpleQueue[tuple[T] | Exception | None] = SimpleQueue()
    closed = threading.Event()

    def run() -> None:
        """Works; what fails goes the way of the pieces."""
        try:
            work(lambda piece: pieces.put((piece,)), closed)
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece[0]
    finally:
        closed.set()
        thread.join()


class ExpertPool:
    """
    Asks experts for answers. Those on this machine are loaded on first use; adapters of one base share one copy of it.
    It may be used from several threads.

    Args:
        config ([`IR3DEConfig`]): whose `experts` are the specs.
        device (`torch.device`, *optional*): where experts run, unless they have a `device_map`.
        max_loaded_experts (`int`, *optional*): models that stay loaded; all experts of one base count as one.
        max_memory (`int` or `str`, *optional*): bytes, or a size such as `"8GB"`, that loaded models take together.
        retries (`int`): further attempts with a remote expert that is busy, broken or not reached.
        trust_remote_code (`bool`): allow the code of experts whose spec asks for it too.
        use_safetensors (`bool`): `False` allows other weights than safetensors, for experts whose spec says so too.
        private_hosts (`Collection[str]`, *optional*): ask only servers with public addresses, and these hosts. By
            default servers may be anywhere.
        model_kwargs (*optional*): for `from_pretrained` of the model, such as `dtype` or `device_map`.
    """

    def __init__(
        self,
        config: IR3DEConfig,
        device: torch.device | None = None,
        max_loaded_experts: int | None = None,
        max_memory: int | str | None = None,
        retries: int = 2,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        private_hosts: Collection[str] | None = None,
        **model_kwargs: Any,
    ) -> None:
        if max_loaded_experts is not None and max_loaded_experts < 1:
            raise ValueError(f"`max_loaded_experts` must be at least 1, got {max_loaded_experts}.")
        self._config = config
        self._device = device
        self._most = max_loaded_experts
        self._budget = None if max_memory is None else in_bytes("`max_memory`", max_memory)
        self._retries = retries
        self._allow = {"trust_remote_code": trust_remote_code, "unsafe_weights": not use_safetensors}
        self._private_hosts = private_hosts
        self._model_kwargs = model_kwargs
        self._trusted: list[ExpertSpec] | None = None  # specs; None: all
        self._no_system: set[str] = set()  # servers that refuse system messages, as was seen
        self._start_empty()

    def _start_empty(self) -> None:
        self._sources: dict[str, LocalSource] = {}
        self._loaded: OrderedDict[str, LocalModel] = OrderedDict()  # the least recently used first
        self._sizes: dict[str, int] = {}  # expected ones while loading, then true ones
        self._users: dict[str, int] = {}  # generations that run, by source; a source that loads has one
        self._changed = threading.Condition()
        _POOLS.add(self)

    def _forget_threads(self) -> None:
        """In a process that was forked, where the threads are not that were loading or generating: their models are
        loaded anew, since their locks may be held, and nobody waits for them.
        """
        for key in self._users:
            self._loaded.pop(key, None)
            self._sources.pop(key, None)
            self._sizes.pop(key, None)
        self._users.clear()
        threading.Condition.__init__(self._changed)  # in place, since pools share it

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: how experts are loaded, and none of those in memory."""
        here = ("_sources", "_loaded", "_sizes", "_users", "_changed")
        return {key: value for key, value in self.__dict__.items() if key not in here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def __copy__(self) -> ExpertPool:
        """A pool that shares what is in memory."""
        pool = object.__new__(type(self))
        pool.__dict__.update(self.__dict__)
        _POOLS.add(pool)
        return pool

    def for_config(self, config: IR3DEConfig) -> ExpertPool:
        """This pool for the experts of another config: the two share loaded models, their locks and the budget."""
        pool = copy.copy(self)
        pool._config = config
        return pool

    def for_strangers(self) -> ExpertPool:
        """This pool, for configs that strangers edit: it trusts the present specs alone.

        Other experts are fetched from the Hub without this machine's login, and from nowhere else.
        """
        pool = self.for_config(self._config)
        pool._trusted = copy.deepcopy(self._config.specs)
        return pool

    def spec(self, name: str) -> ExpertSpec:
        """The present spec of an expert; a stranger's has `token: False`, and one whose server must have a public
        address has `public: True`.

        Raises:
            ValueError: the spec is a stranger's, and names something else than repositories on the Hub.
        """
        spec = next(spec for spec in self._config.specs if spec["name"] == name)
        if self._trusted is None or spec in self._trusted:
            return {**spec, "public": True} if self._must_be_public(spec) else spec
        check_strangers_spec(spec)
        return {**spec, "token": False}

    def _must_be_public(self, spec: ExpertSpec) -> bool:
        if self._private_hosts is None or "endpoint" not in spec:
            return False
        return server_of(spec["endpoint"]).host not in self._private_hosts

    def _remote(self, spec: ExpertSpec) -> RemoteModel:
        return RemoteModel(spec, self._retries, self._no_system)

    def sees(self, name: str) -> bool:
        """Whether the expert reads images here: its model on this machine does. What is behind a server gets text."""
        if is_remote(self.spec(name)):
            return False
        try:
            return self.source(name).sees and not _reads_text_alone(self.spec(name))
        except Exception:  # which its first use says
            return False

    def refuses_system(self, name: str) -> bool:
        """Whether the server of an expert has refused a chat for its system message, and took it without one."""
        return key_of(self.spec(name)) in self._no_system

    def can_answer(self, name: str) -> bool:
        """Whether the expert has a source of answers; else it only routes."""
        return has_source(self.spec(name))

    def check(self, names: Iterable[str]) -> None:
        """Checks specs before anything is loaded.

        Raises:
            Unanswerable: an expert has nothing to generate with.
            ValueError: its `generation` has an unknown option, or one that is out of range.
        """
        for name in names:
            if not self.can_answer(name):
                raise Unanswerable(
                    f"Expert {name!r} has no `model`, `adapter` or `endpoint`, so it cannot generate. Add one to its"
                    " spec in config.json, or pass `generate=False` to route only."
                )
            for key in self.spec(name).get("generation", {}):
                if key not in generation_options():
                    raise ValueError(
                        f"`generation` of expert {name!r} has the unknown option {key!r}.{nearest(key, [])}"
                    )
            self.check_ranges(name)

    def check_ranges(self, name: str) -> None:
        """Raises ValueError where a default option of an expert's generation is out of range."""
        spec = self.spec(name)
        options, whose = spec.get("generation", {}), f"expert {name!r}"
        check_options(options, whose)
        if not is_remote(spec):
            check_seed(options, whose)

    def generate(self, name: str, prompts: Sequence[Prompt], batch_size: int | None, **options: Any) -> list[Any]:
        """Answers prompts with one expert.

        Args:
            name (`str`): of the expert.
            prompts (`Sequence[str | list[dict]]`): texts or chats.
            batch_size (`int`, *optional*): prompts that are generated for at once; all of them by default.
            options (*optional*): of the expert's text-generation pipeline, and `seed` and `timeout`; they win over the
                spec's, but for the `timeout`, of which the smaller counts.

        Returns:
            `list`: a text a prompt, or a list of them with `num_return_sequences` above 1, or the exception that kept
            the prompt from being answered. With `return_full_text` the prompt comes with it, as in text-generation.
        """
        try:
            spec = self.spec(name)
            options = _with_defaults(spec, options)
            if is_remote(spec):
                return self._remote(spec).generate(prompts, batch_size, options)
            source = self._source(spec)
            answers = source.reject(spec, prompts, options)
            good = [index for index, rejection in enumerate(answers) if rejection is None]
            if good:
                with self._use(spec, source, options.get("timeout")) as model:
                    outputs = model.generate(spec, [prompts[index] for index in good], batch_size, options)
                for index, output in zip(good, outputs, strict=True):
                    answers[index] = output
            return answers
        except Exception as error:
            return [error] * len(prompts)

    def ask(self, name: str, prompt: Prompt, **options: Any) -> Reply:
        """Answers one prompt, and counts its tokens: by the expert's own tokenizer, or as its server says.

        Args:
            name (`str`): of the expert.
            prompt (`str | list[dict]`): text or chat.
            options (*optional*): as in [`ExpertPool.generate`], of a single answer.

        Raises:
            Exception: whatever kept the expert from answering.
        """
        spec = self.spec(name)
        if is_remote(spec):
            remote = self._remote(spec)
            [answer] = remote.generate([prompt], 1, _with_defaults(spec, options))
            read, written = remote.usage or (None, None)
        else:
            [answer] = self.generate(name, [prompt], 1, **options)
        if isinstance(answer, Exception):
            raise answer
        if not is_remote(spec):
            source = self.source(name)
            read, written = source.length(spec, prompt), source.tokens(str(answer))
        return Reply(str(answer), read, written)

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
        if is_remote(spec):
            yield from self._remote(spec).stream(prompt, options)
            return

        def work(give: Callable[[str], None], closed: threading.Event) -> None:
            """Generates, and gives what there is of the answer."""
            source = self._source(spec)
            [rejection] = source.reject(spec, [prompt], options)
            if rejection is not None:
                raise rejection
            with self._use(spec, source, options.get("timeout")) as model:
                model.stream(spec, prompt, options, give, closed)

        yield from from_thread(work)

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
        spec = self.spec(name)
        with self._use(spec, self._source(spec), None) as model:
            return model

    def preload(self, names: Iterable[str], background: bool = True) -> threading.Thread:
        """Loads experts before they are asked, as many as the budget takes, with progress.

        Args:
            names (`Iterable[str]`): of the experts; remote ones need no loading.
            background (`bool`): return at once; `join()` the thread to wait.

        Returns:
            `threading.Thread`: that loads. An expert that fails is left for its first use, which says why.
        """
        names = [name for name in names if self.can_answer(name) and not is_remote(self.spec(name))]

        def load() -> None:
            """Loads one expert after the other."""
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

    def source(self, name: str) -> LocalSource:
        """What an expert on this machine is loaded from: its config and its tokenizer, without its weights.

        Raises:
            Exception: whatever keeps these from being read.
        """
        return self._source(self.spec(name))

    def _source(self, spec: ExpertSpec) -> LocalSource:
        """What a local expert is loaded from, after the checks that need no weights."""
        base = base_spec(spec)
        source = self._source_of(base)
        if source.sees and source.has_text_class and _reads_text_alone(spec):
            source = self._source_of({**base, "text": True})
        source.check_adapter(spec)
        return source

    def _source_of(self, base: BaseSpec) -> LocalSource:
        key = _key(base)
        source = self._sources.get(key)
        if source is None:
            source = LocalSource(base, self._device, self._allow, **self._model_kwargs)
            source = self._sources.setdefault(key, source)
        return source

    @contextmanager
    def _use(self, spec: ExpertSpec, source: LocalSource, timeout: float | None) -> Iterator[LocalModel]:
        """The expert's model, loaded if it is not, and not removed while it is in use."""
        key = _key(source.base)
        model = self._claim(key, source, timeout)
        try:
            model.add_adapter(spec)
            with self._changed:
                self._sizes[key] = model.size  # the scales of quantized weights and the adapters come on top
                while not self._within_budget(0) and (idle := self._idle()):
                    self._evict(idle)
            yield model
        finally:
            self._release(key)

    def _claim(self, key: str, source: LocalSource, timeout: float | None) -> LocalModel:
        """Counts a user of a model, after loading it where no other thread does."""
        end = None if timeout is None else time.monotonic() + timeout
        size = self._sizes.get(key, 0)
        if not size and self._budget is not None:
            size = source.expected_size()
        with self._changed:
            while key not in self._loaded and (key in self._users or not self._make_room(size)):
                if not self._changed.wait(None if end is None else max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"no memory became free for it within {timeout:g} s")
            self._users[key] = self._users.get(key, 0) + 1
            if key in self._loaded:
                self._loaded.move_to_end(key)
                return self._loaded[key]
            self._sizes[key] = size
        try:
            model = LocalModel(source)
        except BaseException:
            self._release(key)
            raise
        with self._changed:
            self._loaded[key] = model
            self._changed.notify_all()
        return model

    def _release(self, key: str) -> None:
        with self._changed:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
            self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        """Removes models that are not in use until one more of `size` bytes is within the budget; false if it cannot.

        Raises:
            MemoryError: it would not be within the budget alone.
        """
        if self._budget is not None and size > self._budget:
            raise MemoryError(f"it takes {size:,} bytes, and max_memory is {self._budget:,}: raise it, or quantize")
        while not self._has_room(size):
            idle = self._idle()
            if idle is None:
                return False
            self._evict(idle)
        return True

    def _has_room(self, size: int) -> bool:
        full = self._most is not None and len(self._loaded.keys() | self._users.keys()) >= self._most
        return not full and self._within_budget(size)

    def _within_budget(self, size: int) -> bool:
        held = sum(self._sizes.get(key, 0) for key in self._loaded.keys() | self._users.keys())
        return self._budget is None or held + size <= self._budget

    def _idle(self) -> str | None:
        return next((key for key in self._loaded if not self._users.get(key)), None)

    def _evict(self, key: str) -> None:
        self._sources.pop(key, None)
        self._loaded.pop(key).close()

    def _key_of(self, spec: ExpertSpec) -> str:
        """Of the model that an expert is answered by, if one is loaded."""
        base = base_spec(spec)
        of_text = _key({**base, "text": True})
        return of_text if of_text in self._loaded and _reads_text_alone(spec) else _key(base)

    def _experts_of(self, source: str, model: LocalModel) -> list[str]:
        """Names of the experts that a loaded model serves; of adapters those that are loaded."""
        specs = [self.spec(name) for name in self._config.expert_names]
        bare = [
            spec["name"]
            for spec in specs
            if "model" in spec and "adapter" not in spec and not is_remote(spec)
            if self._key_of(spec) == source
        ]
        return sorted([*bare, *(spec["name"] for spec in specs if model.has_adapter(spec))])


_POOLS: weakref.WeakSet[ExpertPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool._forget_threads()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def describe_error(error: BaseException) -> str:
    """An error in one line, for a record: its type and the beginning of what it says."""
    # huggingface_hub gives a server's own words last, after a line that announces them and one with a link.
    lines = [line for line in str(error).split("\n") if not line.startswith("For more information check:")]
    printable = "".join(letter if letter.isprintable() else " " for letter in " ".join(lines))
    said = " ".join(printable.split())[:_MOST_SAID]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _key(base: BaseSpec) -> str:
    """Equal for equal bases."""
    return json.dumps(base, sort_keys=True)


def _reads_text_alone(spec: ExpertSpec) -> bool:
    """Whether an expert is one of text, even if its model sees: as its spec says, or as adapters need it."""
    return "adapter" in spec or spec.get("images") is False


def _with_defaults(spec: ExpertSpec, options: Options) -> Options:
    """The options of a call over those of the expert's spec; of two timeouts the smaller."""
    merged: Options = {**spec.get("generation", {}), **options}
    timeouts = [each for each in (merged.get("timeout"), spec.get("timeout")) if each]
    return {**merged, "timeout": min(timeouts)} if timeouts else merged
