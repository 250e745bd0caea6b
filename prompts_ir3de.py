"""What a prompt is: to the router token ids; to an expert text or a chat, checked and rendered as that reads it."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

Message = dict[str, Any]  # `role`, `content`, and for tools more
Prompt = str | list[Message]

IMAGE_TYPES = ("image_url", "input_image", "image")  # of a part: OpenAI's two, and Anthropic's and transformers'
_OF_TEMPLATE = re.compile(r"(?i)jinja|chat.?template|raise_exception|system (role|message)|roles must alternate")
ROLES = ("system", "developer", "user", "assistant", "tool")


def token_ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    """The ids of the first tokens of each text: what `tokenizer(texts)` gives without special tokens, in less time
    (`short_cuts` of scripts/bench/scale.py).

    That call also tracks the place of every token in its text, which a route has no use for. A tokenizer that encodes
    in a way of its own is called as ever.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        texts (`list[str]`): to tokenize.
        max_length (`int`): tokens of a text that are kept. They are cut here, because a tokenizer that is told to
            truncate goes on doing so and is saved like that.
    """
    if getattr(type(tokenizer), "_encode_plus", None) is not PreTrainedTokenizerFast._encode_plus:
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [ids[:max_length] for ids in encoded["input_ids"]]
    whole = {"padding_strategy": PaddingStrategy.DO_NOT_PAD, "truncation_strategy": TruncationStrategy.DO_NOT_TRUNCATE}
    unused = dict.fromkeys(("max_length", "stride", "pad_to_multiple_of", "padding_side"))
    tokenizer.set_truncation_and_padding(**whole, **unused)  # an earlier call may have left others
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids[:max_length] for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


class PlainText(str):
    """A prompt that an expert goes on from as it stands, without its chat template and its system prompt."""

    __slots__ = ()


class Unanswerable(ValueError):
    """A prompt that no expert is asked, since it is empty or not text, or its expert only routes."""


def check_prompt(prompt: Prompt, index: int = 0, sees: bool = False) -> None:
    """Checks that an expert can read a prompt.

    Args:
        prompt (`str | list[dict]`): text or chat.
        index (`int`): its place among the inputs, for the message.
        sees (`bool`): whether the expert reads images too.

    Raises:
        Unanswerable: a message has an unknown role, or content that the expert does not read.
    """
    for message in [] if isinstance(prompt, str) else prompt:
        if message["role"] not in ROLES:
            raise Unanswerable(
                f"Prompt {index} has a message of role {message['role']!r}; a role is one of {', '.join(ROLES)}."
            )
        content = message["content"]
        if content is None and "tool_calls" in message:
            continue
        for part in content if isinstance(content, (list, tuple)) else [content]:
            if not (sees if is_image(part) else is_text(part)):
                kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
                read = "text and images" if sees else "text"
                raise Unanswerable(
                    f"Prompt {index} has content of type {kind!r}, and the experts read {read} only: send the text, or"
                    " route alone with `generate=False`."
                )


def is_text(part: object) -> bool:
    """Whether a part of a message's content is text: a string, or a mapping with one under `text`."""
    return isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))


def is_image(part: object) -> bool:
    """Whether a part of a message's content is an image, in the form of any API."""
    return isinstance(part, dict) and part.get("type") in IMAGE_TYPES


def as_chat(prompt: Prompt, system_prompt: str | None = None) -> list[Message]:
    """A prompt as a chat, with the system prompt first unless it has one of its own. A content is a string, or where it
    holds images a list of parts.
    """
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_flat(message) for message in prompt]
    if system_prompt is not None and chat[0]["role"] not in ("system", "developer"):
        chat = [{"role": "system", "content": system_prompt}, *chat]
    return chat


def with_system_folded(chat: list[Message]) -> list[Message]:
    """A chat without system messages: their text stands at the head of the first message of a user."""
    said = [message["content"] for message in chat if message["role"] in ("system", "developer")]
    rest = [message for message in chat if message["role"] not in ("system", "developer")]
    if not said:
        return chat
    for place, message in enumerate(rest):
        if message["role"] == "user":
            content = _joined(*said, message["content"])
            return [*rest[:place], {**message, "content": content}, *rest[place + 1 :]]
    return [{"role": "user", "content": _joined(*said)}, *rest]


def may_refuse_system(status: int, said: str) -> bool:
    """Whether a server's answer may be that of a chat template which takes no system message: most say that the request
    is wrong, and llama.cpp that the server is, in the template's words.

    Args:
        status (`int`): of HTTP.
        said (`str`): what the server says; may be empty where the status is not 500.
    """
    return status in (400, 422) or (status == 500 and _OF_TEMPLATE.search(said) is not None)


def with_turns_merged(chat: list[Message]) -> list[Message]:
    """A chat in which user and assistant take turns: messages of one of them that follow each other become one."""
    merged: list[Message] = []
    for message in chat:
        last = merged[-1] if merged else None
        if last is None or message["role"] != last["role"] or not _is_plain(message) or not _is_plain(last):
            merged.append(message)
        else:
            merged[-1] = {**last, "content": _joined(last["content"], message["content"])}
    return merged


def in_parts(message: Message) -> Message:
    """A message whose content is a list of parts, as some chat templates want it."""
    return {**message, "content": _parts(message["content"])} if isinstance(message["content"], str) else message


def _joined(*contents: Any) -> Any:
    """Contents of messages as one, with an empty line between them: text, or parts where there is an image."""
    if not any(map(_has_image, contents)):
        return "\n\n".join(map(text_of, contents))
    between = _parts("\n\n")
    return list(chain.from_iterable([*between, *_parts(content)] for content in contents))[1:]


def _has_image(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and any(map(is_image, content))


def _parts(content: Any) -> list[Message]:
    """The parts of a content: texts with nothing beside them, and images as they are."""
    parts = content if isinstance(content, (list, tuple)) else [content]
    return [part if is_image(part) else {"type": "text", "text": text_of([part])} for part in parts]


def _is_plain(message: Message) -> bool:
    return message["role"] in ("user", "assistant") and "tool_calls" not in message


def as_text(prompt: Prompt, system_prompt: str | None = None) -> str:
    """A prompt as plain text, for a model without a chat template."""
    if isinstance(prompt, PlainText):
        return prompt
    return "\n\n".join(text_of(message["content"]) for message in as_chat(prompt, system_prompt))


def text_of(content: object) -> str:
    """The text of a message's content, which is text or a list of parts; images and the like have none."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else []
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def with_prompt(prompt: Prompt, answer: str) -> Prompt:
    """What `return_full_text` gives: the prompt and the answer together."""
    if isinstance(prompt, str):
        return prompt + answer
    return [*prompt, {"role": "assistant", "content": answer}]


def _flat(message: Message) -> Message:
    """A message whose content is a string, unless there is none or it holds images."""
    content = message["content"]
    if not isinstance(content, (list, tuple)):
        return message
    return {**message, "content": _parts(content) if _has_image(content) else text_of(content)}
