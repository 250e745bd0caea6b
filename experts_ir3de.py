"""From an expert's spec to something that answers: loading, sharing and prompting of the experts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextGenerationPipeline, TextIteratorStreamer

Prompt = str | list[dict[str, Any]]


class ExpertPool:
    """
    Loads experts on first use. Experts of the same model and revision share one copy of it.

    Args:
        experts (`list[dict]`): specs, as in [`IR3DEConfig`].
        device (`torch.device`, *optional*): where the experts run; not with a `device_map` among `model_kwargs`.
        model_kwargs (*optional*): for `AutoModelForCausalLM.from_pretrained`, such as `dtype` or `device_map`.
    """

    def __init__(self, experts: list[dict[str, Any]], device: torch.device | None = None, **model_kwargs: Any) -> None:
        self._specs = {expert["name"]: expert for expert in experts}
        self._device = device
        self._model_kwargs = model_kwargs
        self._loaded: dict[tuple[Any, ...], TextGenerationPipeline] = {}
        self._lock = threading.Lock()

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError where one of the experts has no model to generate with."""
        for name in names:
            if "model" not in self._specs[name]:
                raise ValueError(
                    f"Expert {name!r} has no `model`, so it cannot generate. Add one to its spec in config.json, or"
                    " pass `generate=False` to route only."
                )

    def load(self, name: str) -> TextGenerationPipeline:
        """The expert's own text-generation pipeline, loaded if it is not yet.

        Raises:
            ValueError: the expert has no model.
            OSError: its model cannot be found or read.
        """
        self.check([name])
        spec = self._specs[name]
        source = tuple(spec.get(key) for key in ("model", "revision", "gguf_file", "dtype"))
        with self._lock:
            if source not in self._loaded:
                self._loaded[source] = self._load(spec)
            return self._loaded[source]

    def _load(self, spec: dict[str, Any]) -> TextGenerationPipeline:
        where = {key: spec[key] for key in ("revision", "gguf_file") if key in spec}
        kwargs = {"dtype": spec.get("dtype", "auto"), **self._model_kwargs}
        if "gguf_file" not in spec:
            kwargs.setdefault("use_safetensors", True)
        # Padding on the left, so that the answer follows the prompt in a batch.
        tokenizer = AutoTokenizer.from_pretrained(spec["model"], padding_side="left", **where)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(spec["model"], **where, **kwargs)
        device = None if "device_map" in kwargs else self._device
        return TextGenerationPipeline(model=model, tokenizer=tokenizer, device=device)

    def generate(self, name: str, prompts: Sequence[Prompt], batch_size: int | None, **options: Any) -> list[Any]:
        """Answers prompts with one expert.

        Args:
            name (`str`): of the expert.
            prompts (`Sequence[str | list[dict]]`): texts or chats.
            batch_size (`int`, *optional*): prompts that are generated for at once; all of them by default.
            options (*optional*): of the expert's text-generation pipeline; they win over the spec's `generation`.

        Returns:
            `list`: a text a prompt, or a list of them with `num_return_sequences` above 1; with `return_full_text` the
            prompt comes with it, as in text-generation.
        """
        pipe, spec = self.load(name), self._specs[name]
        options = {**spec.get("generation", {}), **options}
        full = bool(options.pop("return_full_text", False))
        inputs: Any = [self._render(pipe.tokenizer, spec, prompt) for prompt in prompts]
        outputs = pipe(inputs, batch_size=batch_size or len(inputs), return_full_text=False, **options)
        answers: list[Any] = []
        for prompt, sequences in zip(prompts, outputs, strict=True):
            texts: list[Any] = [sequence["generated_text"] for sequence in sequences]
            if full:
                texts = [_with_prompt(prompt, text) for text in texts]
            answers.append(texts[0] if len(texts) == 1 else texts)
        return answers

    def stream(self, name: str, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Answers a prompt piece by piece; closing the iterator stops the generation.

        Args:
            name (`str`): of the expert.
            prompt (`str | list[dict]`): text or chat.
            options (*optional*): as in [`ExpertPool.generate`].
        """
        tokenizer: Any = self.load(name).tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        closed, failures = threading.Event(), list[BaseException]()

        def stop(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), closed.is_set(), device=input_ids.device)

        def generate() -> None:
            try:
                self.generate(name, [prompt], 1, **options, streamer=streamer, stopping_criteria=[stop])
            except BaseException as error:  # raised again where the pieces are read
                failures.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            closed.set()
            thread.join()
        if failures:
            raise failures[0]

    @staticmethod
    def _render(tokenizer: Any, spec: dict[str, Any], prompt: Prompt) -> Prompt:
        """The prompt as the expert reads it: a chat where it has a template, else plain text."""
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if "system_prompt" in spec and chat[0]["role"] != "system":
            chat = [{"role": "system", "content": spec["system_prompt"]}, *chat]
        if tokenizer.chat_template is not None:
            return chat
        return "\n\n".join(text_of(message["content"]) for message in chat)


def text_of(content: Any) -> str:
    """The text of a message's content, which is text or a list of parts; images and the like have none."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _with_prompt(prompt: Prompt, answer: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt + answer
    return [*prompt, {"role": "assistant", "content": answer}]
