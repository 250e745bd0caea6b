"""Experts on this machine before their weights are read: where these come from, and what is refused without them."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
)
from transformers.integrations.accelerate import compute_module_sizes
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig
from transformers.utils.hub import cached_file

from .images_ir3de import Picture, has_images, pictures_in, with_pictures, with_pictures_opened
from .options_ir3de import Options, for_transformers
from .prompts_ir3de import (
    Message,
    PlainText,
    Prompt,
    Unanswerable,
    as_chat,
    as_text,
    in_parts,
    text_of,
    with_system_folded,
    with_turns_merged,
)
from .specs_ir3de import BaseSpec, ExpertSpec, check_hub_id, in_bytes

logger = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def base_spec(spec: ExpertSpec) -> BaseSpec:
    """The part of a local expert's spec that names its base; experts of equal parts share one copy of it.

    Raises:
        ValueError: the adapter was trained on another base than the spec names.
        OSError: the adapter cannot be found.
    """
    base = cast(BaseSpec, {key: value for key, value in spec.items() if key in BaseSpec.__annotations__})
    if "adapter" in spec:
        trained_on = _adapter_config(spec["adapter"], **_where(spec))
        name = trained_on.get("base_model_name_or_path") or ""
        if spec.get("token") is False:  # a stranger's adapter may name no folder of this machine
            check_hub_id(f"The base of the adapter {spec['adapter']}", name)
        model = base.setdefault("model", name)
        if model != name and not Path(model).is_dir():  # with a folder the shapes are compared
            raise ValueError(
                f"The adapter {spec['adapter']} was trained on {name!r}, not on {model!r}: give the base that it"
                " belongs to, or leave `model` out."
            )
        if not model:
            raise ValueError(f"The adapter {spec['adapter']} does not name its base: add `model` to the expert.")
        if trained_on.get("revision") and "revision" not in base and model == name:
            base["revision"] = trained_on["revision"]
    return base


def adapter_folder(spec: ExpertSpec) -> Path:
    """Where the files of an expert's adapter are, fetched if they were not.

    Raises:
        OSError: one cannot be found.
    """
    files = (cached_file(spec["adapter"], file, **_where(spec)) for file in ADAPTER_FILES)
    return Path(*{str(Path(str(file)).parent) for file in files})


def _where(spec: ExpertSpec) -> dict[str, Any]:
    """What `cached_file` is told of an expert's adapter beside its name."""
    return {
        "revision": spec.get("adapter_revision"),
        "subfolder": spec.get("adapter_subfolder", ""),
        "token": spec.get("token"),
    }


@lru_cache(maxsize=1024)  # asked at each call, and on the Hub each answer is a request
def _adapter_config(adapter: str, revision: str | None, subfolder: str, token: bool | None) -> dict[str, Any]:
    file = str(cached_file(adapter, ADAPTER_FILES[0], revision=revision, subfolder=subfolder, token=token))
    return dict(json.loads(Path(file).read_text(encoding="utf-8")))


class TooLong(ValueError):
    """
    A prompt that leaves no room for its answer.

    Args:
        length (`int`): of the prompt, in tokens.
        new (`int`): tokens of the answer that are asked for.
        window (`int`): tokens that the model takes.
        can_cut (`bool`): whether its beginning may be cut, which would leave an image without its place.
    """

    def __init__(self, length: int, new: int, window: int, can_cut: bool = True) -> None:
        cut = ", lower max_new_tokens, or pass truncation=True to cut its beginning"
        super().__init__(
            f"the prompt's {length} tokens and {new} new ones exceed the window of {window} tokens: shorten it"
            f"{cut if can_cut else ' or lower max_new_tokens'}"
        )


class _Encoded(NamedTuple):
    """What a processor made of a chat; `key` is the chat, which knows its images by who they are, and `others` are
    those after the first."""

    key: str
    inputs: BatchFeature
    others: list[Picture]


class LocalSource:
    """
    A model without its weights: its config, tokenizer and window, and what can be told from them. It is a causal LM of
    text, or where config and processor say so one that sees too (image-text-to-text).

    Args:
        base ([`BaseSpec`]): of an expert.
        device (`torch.device`, *optional*): where it runs, unless there is a `device_map`.
        allow (`dict`): whether the caller allows `trust_remote_code` and unsafe weights.
        model_kwargs (*optional*): for `from_pretrained` of the model; the spec wins over them.

    Raises:
        PermissionError: the expert needs remote code or unsafe weights, and the caller does not allow them.
        OSError: the model cannot be found or read.
        ValueError: the GGUF file has an architecture or a type of weights that cannot be read.
        ImportError: a package that the quantization needs is missing; the message names it.
    """

    def __init__(
        self, base: BaseSpec, device: torch.device | None, allow: dict[str, bool], **model_kwargs: Any
    ) -> None:
        self.base = base
        self.where, self.kwargs = _loading(base, device, allow, model_kwargs)
        self._gguf_size = _gguf_size(base) if "gguf_file" in base else None
        self.config = AutoConfig.from_pretrained(base["model"], **self.where)
        self._quantizer()  # says what is missing
        self.processor = _processor_of(base, self.config, self.where)
        self.auto_class = _auto_class(self.config, self.sees)
        # Padding on the left, so that the answer follows the prompt in a batch.
        if self.processor is None:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(base["model"], padding_side="left", **self.where)
        else:
            self.tokenizer = self.processor.tokenizer
            self.tokenizer.padding_side, self.tokenizer.chat_template = "left", self.processor.chat_template
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values() if self.sees else ()
        self._control_tokens = [token.content for token in added if token.special]
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        window = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if window:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, window)
        self._reads = _reading(self.processor or self.tokenizer)
        if changes := self._reads.changes:
            logger.warning("The chat template of %s refuses or drops %s.", base["model"], " and ".join(changes))
        self._fitting: set[tuple[str, ...]] = set()  # adapters that were compared with this base
        # What the processor made of a chat, by the first of its images: for as long as that is held.
        self._encoded: WeakKeyDictionary[Picture, _Encoded] = WeakKeyDictionary()

    @property
    def sees(self) -> bool:
        """Whether the model reads images."""
        return self.processor is not None

    @property
    def has_text_class(self) -> bool:
        """Whether there is a causal LM of its config, which reads text alone."""
        return type(self.config) in MODEL_FOR_CAUSAL_LM_MAPPING

    def expected_size(self) -> int:
        """Bytes of memory that the weights will take: quantized where they are, and without what stays on disk."""
        size = self._gguf_size if self._gguf_size is not None else self._size_of_skeleton()
        places = self.kwargs.get("max_memory")
        return min(size, sum(places.values())) if places else size

    def _size_of_skeleton(self) -> int:
        model, quantizer = self._skeleton(), self._quantizer()
        if quantizer is not None:
            device_map = self.kwargs.get("device_map")
            quantizer.preprocess_model(model=model, dtype=model.dtype, device_map=device_map, checkpoint_files=[])
        return int(compute_module_sizes(model, quantizer)[0][""])

    def _quantizer(self) -> Any:
        """What quantizes the weights, or reads those that are quantized already, if anything does."""
        own = getattr(self.config, "quantization_config", None)
        quantization = copy.deepcopy(own or self.kwargs.get("quantization_config"))
        if quantization is None:
            return None
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=own is not None)
        quantizer.validate_environment(device_map=self.kwargs.get("device_map"))
        return quantizer

    def _skeleton(self) -> Any:
        """The model with shapes alone."""
        config = copy.deepcopy(self.config)
        dtype = {} if self.kwargs["dtype"] == "auto" else {"dtype": self.kwargs["dtype"]}
        with torch.device("meta"):
            return self.auto_class.from_config(config, trust_remote_code=self.where["trust_remote_code"], **dtype)

    def check_adapter(self, spec: ExpertSpec) -> None:
        """Compares an expert's adapter, if it has one, with the shapes of this base.

        Raises:
            ValueError: it does not fit.
            ImportError: peft is missing.
        """
        adapter = tuple(str(spec.get(key)) for key in ("adapter", "adapter_revision", "adapter_subfolder"))
        if "adapter" not in spec or adapter in self._fitting:
            return
        try:
            from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
        except ImportError as error:
            raise ImportError('Adapters need the package peft: `pip install "ir3de[adapters]"`.') from error
        folder, model = adapter_folder(spec), self._skeleton()
        try:
            inject_adapter_in_model(PeftConfig.from_pretrained(str(folder)), model)
            weights = get_peft_model_state_dict(model, save_embedding_layers=False)  # or it asks the Hub for the base
            with safe_open(folder / ADAPTER_FILES[1], framework="pt") as file:
                names = file.keys()
                shapes = {name.removeprefix("base_model.model."): file.get_slice(name).get_shape() for name in names}
            if shapes.keys().isdisjoint(weights):
                raise ValueError("none of its weights has a place there")
            for name in sorted(weights):
                if name not in shapes:
                    raise ValueError(f"{name} is missing from its weights")
                if list(weights[name].shape) != shapes[name]:
                    raise ValueError(f"{name} is {shapes[name]}, and {list(weights[name].shape)} has a place there")
        except ValueError as error:
            raise ValueError(f"The adapter {spec['adapter']} does not fit {self.base['model']}: {error}") from error
        self._fitting.add(adapter)

    def render(self, spec: ExpertSpec, prompt: Prompt) -> Prompt:
        """The prompt as the model reads it: a chat where it has a template, else plain text; a [`PlainText`] as it is.

        Raises:
            Unanswerable: it holds images, and the model does not see; or one of them cannot be read.
        """
        if isinstance(prompt, PlainText):
            return prompt
        if has_images(prompt):
            if not self.sees:
                raise Unanswerable("it holds images, and the expert reads text only")
            prompt = with_pictures(prompt)
        if getattr(self.tokenizer, "chat_template", None) is None:
            return as_text(prompt, spec.get("system_prompt"))
        chat = as_chat(prompt, spec.get("system_prompt"))
        if not self._reads.system:
            chat = with_system_folded(chat)
        if not self._reads.repeats:
            chat = with_turns_merged(chat)
        return chat if self._reads.strings else [in_parts(message) for message in chat]

    @property
    def changes(self) -> list[str]:
        """What is done to a chat because the template refuses or drops it, in words."""
        return self._reads.changes

    def reject(self, spec: ExpertSpec, prompts: Sequence[Prompt], options: Options) -> list[Any]:
        """What keeps each prompt from being generated for: its template refuses it, it is too long, or an option of its
        generation is not for experts on this machine; else None.
        """
        return [self._reject(spec, prompt, options) for prompt in prompts]

    def _reject(self, spec: ExpertSpec, prompt: Prompt, options: Options) -> Exception | None:
        try:
            for_transformers(options)
            length = self.length(spec, prompt, options.get("tools"))
        except Exception as error:
            return error
        new = options.get("max_new_tokens") or 1
        cut = not self.sees and (options.get("truncation") or options.get("handle_long_generation"))
        return self.too_long(length, new) if length + new > self.window and not cut else None

    def too_long(self, length: int, new: int) -> TooLong:
        """The error of a prompt that leaves no room for its answer; arguments as of [`TooLong`]."""
        return TooLong(length, new, self.window, can_cut=not self.sees)

    @property
    def window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return int(self.tokenizer.model_max_length)

    def length(self, spec: ExpertSpec, prompt: Prompt, tools: list[dict[str, Any]] | None = None) -> int:
        """Tokens of a prompt as the model reads it.

        Args:
            spec ([`ExpertSpec`]): of the expert.
            prompt (`str | list[dict]`): text or chat.
            tools (`list[dict]`, *optional*): that the chat template describes too.

        Raises:
            Exception: whatever the chat template refuses the prompt with.
        """
        text = self.render(spec, prompt)
        if isinstance(text, list) and self.sees:
            return int(self.encode(text, tools)["input_ids"].shape[-1])
        if isinstance(text, list):
            goes_on = text[-1]["role"] == "assistant"  # as the pipeline has it
            how: dict[str, Any] = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
            text = self.tokenizer.apply_chat_template(text, tools=tools, tokenize=False, **how)
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def encode(
        self, chat: list[Message], tools: list[dict[str, Any]] | None = None, goes_on: bool | None = None
    ) -> BatchFeature:
        """What the processor of a model that sees makes of a chat: ids of tokens, those of its images among them, and
        the images' pixels.

        Args:
            chat (`list[dict]`): as [`LocalSource.render`] gives it.
            tools (`list[dict]`, *optional*): that the chat template describes too.
            goes_on (`bool`, *optional*): whether the answer goes on from the last message; by default where that is the
                assistant's.

        Raises:
            Exception: whatever template or processor refuse the chat with.
        """
        assert self.processor is not None
        if goes_on is None:
            goes_on = chat[-1]["role"] == "assistant"
        pictures = pictures_in(chat)
        key = json.dumps([chat, tools or None, goes_on], default=id)  # of an image who it is
        kept = self._encoded.get(pictures[0]) if pictures else None
        if kept is not None and kept.key == key:
            return kept.inputs
        how: dict[str, Any] = {"tools": tools or None, "return_dict": True, "return_tensors": "pt"}
        how |= {"tokenize": True, "add_generation_prompt": not goes_on, "continue_final_message": goes_on}
        made = self._processed(with_pictures_opened(chat), how)
        if pictures:
            self._encoded[pictures[0]] = _Encoded(key, made, pictures[1:])
        return made

    def _processed(self, chat: list[Message], how: dict[str, Any]) -> BatchFeature:
        """A chat as the processor reads it. What a person wrote stands for no image and ends no turn, where the
        processor can read it so; some cannot, and refuse what would stand for an image that is not there.
        """
        read: Any = self.processor
        written = "\n".join(text_of(message["content"]) for message in chat)
        if any(name in written for name in self._control_tokens):
            try:
                return cast(BatchFeature, read.apply_chat_template(chat, sanitize_control_tokens=True, **how))
            except ValueError:
                logger.debug("%s tells no words from control tokens", self.base["model"])
        return cast(BatchFeature, read.apply_chat_template(chat, **how))

    def tokens(self, text: str) -> int:
        """Tokens of a text that is not read as a prompt, such as an answer."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _processor_of(base: BaseSpec, config: Any, where: dict[str, Any]) -> Any:
    """The processor of a model that sees, or None of one that reads text.

    Which it is the type of its config decides. A model without image processor or chat template, and one that is to
    read text alone, is taken for one of text.

    Raises:
        Exception: whatever keeps the processor of a model that is nothing but one that sees from being read.
    """
    if base.get("text") or "gguf_file" in base or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return None
    try:
        processor = AutoProcessor.from_pretrained(base["model"], **where)
    except (ImportError, OSError, ValueError) as error:
        missing = isinstance(error, ImportError)
        advice = 'Its processor needs further packages: `pip install "ir3de[images]"`.' if missing else ""
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            said = str(error).strip()[:300]
            logger.warning("%s reads text alone: its processor cannot be read. %s%s", base["model"], advice, said)
            return None
        if missing:
            raise ImportError(f"{base['model']} sees. {advice} {error}") from error
        raise
    sees = getattr(processor, "image_processor", None) and getattr(processor, "chat_template", None)
    return processor if sees else None


def _auto_class(config: Any, sees: bool) -> Any:
    """What loads a model: one that sees, or that has no other class, as image-text-to-text; else a causal LM."""
    only_sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if sees or only_sees else AutoModelForCausalLM


class _Reading(NamedTuple):
    """What a chat template takes: a system message, two messages of one role that follow each other, and contents that
    are strings rather than lists of parts."""

    system: bool = True
    repeats: bool = True
    strings: bool = True

    @property
    def changes(self) -> list[str]:
        """What is done to a chat for its sake, in words."""
        system = [] if self.system else ["a system message, whose text goes into the first message of the user"]
        return [*system, *([] if self.repeats else ["two messages of one role in a row, which become one"])]


def _reading(reader: Any) -> _Reading:
    """Tries the chat template of a tokenizer or processor, since some, as Gemma's, refuse system messages, and others
    drop them; and some, of models that see, drop contents that are no lists of parts.
    """
    if getattr(reader, "chat_template", None) is None:
        return _Reading()
    user: Message = {"role": "user", "content": "ir3de-first"}
    system: Message = {"role": "system", "content": "ir3de-system"}
    again: Message = {"role": "user", "content": "ir3de-second"}
    strings = _takes(reader, [user])
    if not strings:
        user, system, again = in_parts(user), in_parts(system), in_parts(again)
        if not _takes(reader, [user]):  # refuses whatever is tried: nothing is learned from that
            return _Reading()
    return _Reading(_takes(reader, [system, user]), _takes(reader, [user, again]), strings)


def _takes(reader: Any, chat: list[Message]) -> bool:
    """Whether a chat template takes a chat, and nothing of it is lost."""
    try:
        text = reader.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except Exception:
        return False
    return all(text_of(message["content"]) in text for message in chat)


def _gguf_size(base: BaseSpec) -> int:
    from gguf import GGUFReader
    from gguf.quants import _type_traits
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    path = str(cached_file(base["model"], base["gguf_file"], revision=base.get("revision"), token=base.get("token")))
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
    base: BaseSpec, device: torch.device | None, allow: dict[str, bool], model_kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for tokenizer, config and model, and those for the model alone."""
    where: dict[str, Any] = {key: value for key, value in base.items() if key in ("revision", "gguf_file", "token")}
    where["trust_remote_code"] = base.get("trust_remote_code", False)  # False, so that nobody is asked
    if where["trust_remote_code"]:
        _require(allow["trust_remote_code"], base["model"], "trust_remote_code", True, "runs code of its repository")
    own = {key: value for key, value in base.items() if key in ("dtype", "device_map")}
    kwargs: dict[str, Any] = {**model_kwargs, **own}
    kwargs.setdefault("dtype", "auto")
    if device is not None:  # straight to its device: some quantized weights cannot be moved
        kwargs.setdefault("device_map", {"": str(device)})
    if "max_memory" in base:  # a config in JSON has no numbers as keys, and devices are numbers
        kwargs["max_memory"] = {
            int(place) if str(place).isdigit() else place: in_bytes("`max_memory`", size)
            for place, size in base["max_memory"].items()
        }
    if "quantization" in base:
        kwargs["quantization_config"] = AutoQuantizationConfig.from_dict(base["quantization"])
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
