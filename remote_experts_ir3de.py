"""Experts elsewhere: OpenAI-compatible servers and Hub inference providers, with retries and timeouts."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from huggingface_hub import InferenceClient, TextGenerationStreamOutputStreamDetails, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from .addresses_ir3de import hub_token, token_for
from .options_ir3de import Options
from .prompts_ir3de import Message, Prompt, as_chat, as_text, may_refuse_system, with_prompt, with_system_folded
from .specs_ir3de import ExpertSpec
from .transport_ir3de import BoundedClient, most_bytes

logger = logging.getLogger(__name__)

TIMEOUT = 60.0  # seconds, where neither spec nor caller says
_AT_ONCE = 8  # requests to one expert, where the caller gives no batch_size
_MOST_TOKENS = 1 << 30  # that a server may claim to have read or written
_LONGEST_WAIT = 20.0  # seconds between two attempts, whatever Retry-After says

# Names of `generate` -> names of chat and of text requests. What is in neither goes as it is to servers that know it.
_CHAT_NAMES = {"max_new_tokens": "max_tokens", "num_return_sequences": "n", "stop_strings": "stop"}
_CHAT = {"max_tokens", "n", "stop", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"}
_TEXT = {"max_new_tokens", "stop", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "do_sample"}
_EXTRA = {"top_k", "min_p", "repetition_penalty"}  # of vLLM, TGI and llama.cpp beside OpenAI's own

T = TypeVar("T")


class RemoteModel:
    """
    A model behind a server.

    Args:
        spec ([`ExpertSpec`]): of an expert with an `endpoint` or a `provider`.
        retries (`int`): attempts after the first, where the server is busy, broken or not reached.
        no_system (`set[str]`, *optional*): keys of the servers that refuse system messages, see [`key_of`]; those that
            turn out to do so join it.
    """

    def __init__(self, spec: ExpertSpec, retries: int = 2, no_system: set[str] | None = None) -> None:
        self._spec = spec
        self._retries = retries
        self._no_system = set() if no_system is None else no_system
        self._token = _token(spec)
        # Why the last streamed answer of a server of plain text ended and how many tokens it took, if it said so.
        self.ending: TextGenerationStreamOutputStreamDetails | None = None
        # Tokens of the prompt and of the answer, as the server counted them for its last answer, if it did.
        self.usage: tuple[int, int] | None = None

    def generate(self, prompts: Sequence[Prompt], batch_size: int | None, options: Options) -> list[Any]:
        """Answers prompts, several at once, each with its texts or with the exception that kept it from being answered.

        Args:
            prompts (`Sequence[str | list[dict]]`): texts or chats.
            batch_size (`int`, *optional*): requests at once.
            options (`dict`): of a text-generation pipeline, as far as servers know them, and `seed` and `timeout`.
        """
        options = dict(options)
        full = bool(options.pop("return_full_text", False))

        def answer(prompt: Prompt) -> Any:
            """The server's answers to one prompt, or what went wrong."""
            try:
                texts: list[Any] = self._attempt(lambda left: self._request(prompt, options, left), options)
            except Exception as error:
                return self._safe(error)
            texts = [with_prompt(prompt, text) for text in texts] if full else texts
            return texts[0] if len(texts) == 1 else texts

        with ThreadPoolExecutor(min(batch_size or _AT_ONCE, len(prompts))) as threads:
            return list(threads.map(answer, prompts))

    def stream(self, prompt: Prompt, options: Options) -> Iterator[str]:
        """Answers a prompt piece by piece; closing the iterator closes the connection.

        Raises:
            Exception: whatever kept the prompt from being answered; before the first piece it was tried again.
        """
        options = {key: value for key, value in options.items() if key != "return_full_text"}
        client, pieces, first = self._attempt(lambda left: self._open(prompt, options, left), options)
        try:
            while first is not None:
                if first:
                    yield first
                first = next(pieces, None)
        except TimeoutError:
            raise self._too_late(options) from None
        except Exception as error:
            raise self._safe(error) from None
        finally:
            client.close()

    def _open(
        self, prompt: Prompt, options: Options, timeout: float
    ) -> tuple[InferenceClient, Iterator[str], str | None]:
        """A stream whose first piece has arrived."""
        client = self._client(timeout, options)
        try:
            pieces = _at_most(options.get("max_new_tokens"), self._pieces(client, prompt, options))
            return client, pieces, next(pieces, None)
        except BaseException:
            client.close()
            raise

    def _pieces(self, client: InferenceClient, prompt: Prompt, options: Options) -> Iterator[str]:
        if self._spec.get("task") == "text":
            text = as_text(prompt, self._spec.get("system_prompt"))
            for token in client.text_generation(text, stream=True, details=True, **self._parameters(options)):
                self.ending = token.details or self.ending
                yield "" if token.token.special else token.token.text
            return
        finished = False
        parameters = {**self._parameters(options), "model": self._spec.get("model"), "stream": True}
        for event in self._chat(prompt, lambda chat: client.chat_completion(chat, **parameters)):
            for choice in event.choices:
                finished = finished or choice.finish_reason is not None
                yield choice.delta.content or ""
        if not finished:
            raise ConnectionError("the stream ended before the answer did")

    def _request(self, prompt: Prompt, options: Options, timeout: float) -> list[str]:
        client, parameters = self._client(timeout, options), self._parameters(options)
        if self._spec.get("task") == "text":
            return [str(client.text_generation(as_text(prompt, self._spec.get("system_prompt")), **parameters))]
        parameters["model"] = self._spec.get("model")
        answer = self._chat(prompt, lambda chat: client.chat_completion(chat, **parameters))
        self.usage = _usage(answer)
        texts = [choice.message.content for choice in answer.choices]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ConnectionError("the server's answer holds no text")
        return [str(text) for text in texts]

    def _chat(self, prompt: Prompt, send: Callable[[list[Message]], T]) -> T:
        """What the server answers to a prompt as a chat. If it refuses a chat with a system message, it gets the same
        once more, with that text at the head of the first message of the user; if it takes that, so do all that follow.
        """
        chat = as_chat(prompt, self._spec.get("system_prompt"))
        folded = with_system_folded(chat)
        if folded == chat or key_of(self._spec) in self._no_system:
            return send(folded)
        try:
            return send(chat)
        except HfHubHTTPError as error:
            if not may_refuse_system(error.response.status_code, str(error)):
                raise
        answer = send(folded)
        name = self._spec["name"]
        logger.warning("The server of expert %s refuses system messages: the user's first takes their text.", name)
        self._no_system.add(key_of(self._spec))
        return answer

    def _client(self, timeout: float, options: Options) -> InferenceClient:
        limit = most_bytes(options.get("max_new_tokens")) * int(options.get("num_return_sequences") or 1)
        if "provider" in self._spec:
            if is_offline_mode():
                raise OfflineModeIsEnabled("providers are reached through the Hub, and HF_HUB_OFFLINE is set")
            model, provider = self._spec["model"], self._spec["provider"]
            return BoundedClient(timeout, limit, model=model, provider=provider, token=self._token)
        # The header is always ours: by itself the client would send the Hub's token to any server.
        headers = {"authorization": f"Bearer {self._token}" if self._token else ""}
        public = self._spec.get("public", False)
        return BoundedClient(timeout, limit, public, base_url=self._spec["endpoint"], headers=headers)

    def _timeout(self, options: Options) -> float:
        """Seconds for an answer: the smaller of what the spec and the call say."""
        return float(
            min((each for each in (options.get("timeout"), self._spec.get("timeout")) if each), default=TIMEOUT)
        )

    def _too_late(self, options: Options) -> TimeoutError:
        return TimeoutError(f"no complete answer within {self._timeout(options):g} s")

    def _parameters(self, options: Options) -> Options:
        """Generation options in the server's names.

        Raises:
            ValueError: servers do not know an option.
        """
        options = {key: value for key, value in options.items() if key != "timeout" and value is not None}
        chat = self._spec.get("task") != "text"
        if "stop_sequence" in options:
            options["stop_strings"] = options.pop("stop_sequence")
        if isinstance(options.get("stop_strings"), str):
            options["stop_strings"] = [options["stop_strings"]]
        if chat and options.pop("do_sample", True) is False:
            options["temperature"] = 0.0
        names = _CHAT_NAMES if chat else {"stop_strings": "stop"}
        options = {names.get(key, key): value for key, value in options.items()}
        known, extra = (_CHAT, _EXTRA) if chat else (_TEXT, set[str]())
        if unknown := sorted(options.keys() - known - extra):
            raise ValueError(f"a remote expert does not take {', '.join(unknown)}: leave them out")
        beside = {key: options.pop(key) for key in extra & options.keys()}
        return {**options, **({"extra_body": beside} if beside else {})}

    def _attempt(self, request: Callable[[float], T], options: Options) -> T:
        """The result of a request, which takes the seconds that are left, after some patience with a server that is
        busy, broken or not reached. The patience is part of the time for the answer.
        """
        end = time.monotonic() + self._timeout(options)
        for attempt in range(self._retries + 1):
            try:
                return request(end - time.monotonic())
            except Exception as error:
                wait = _wait_before_retry(error, attempt)
                if isinstance(error, TimeoutError):
                    error = self._too_late(options)
                if wait is None or attempt == self._retries or time.monotonic() + wait >= end:
                    raise self._safe(error) from None
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _safe(self, error: Exception) -> Exception:
        """The error without the token, whatever the server put into its answer."""
        if self._token and self._token in str(error):
            return RuntimeError(str(error).replace(self._token, "***"))
        return error


def _usage(answer: Any) -> tuple[int, int] | None:
    """Tokens of prompt and answer in a server's answer; None where they are missing or no such numbers."""
    counts = [getattr(answer.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    if all(isinstance(count, int) and 0 <= count <= _MOST_TOKENS for count in counts):
        return counts[0], counts[1]  # type: ignore[return-value]
    return None


def _wait_before_retry(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the next attempt, or None where another one would not help."""
    backoff = float(0.5 * 2**attempt)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status not in (408, 429) and status < 500:
            return None
        after = error.response.headers.get("retry-after", "")
        return min(float(after), _LONGEST_WAIT) if re.fullmatch(r"\d+(\.\d+)?", after) else backoff
    if isinstance(error, OfflineModeIsEnabled):
        return None
    # A slow server gets no second chance, nor does an option that it does not take.
    if isinstance(error, (TimeoutError, ValueError)) and not _is_broken_json(error):
        return None
    return backoff


def _at_most(number: int | None, pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer, as many as the tokens that were asked for: a server may send several tokens in a piece,
    but one that sends more pieces does not keep to the number. What it would send further is not waited for.
    """
    left = number
    for piece in pieces:
        yield piece
        if piece and left is not None:
            left -= 1
            if left <= 0:
                return


def _is_broken_json(error: Exception) -> bool:
    return "JSONDecodeError" in type(error).__name__


def key_of(spec: ExpertSpec) -> str:
    """Equal for equal models of equal servers."""
    return " ".join(spec.get(key, "") for key in ("endpoint", "provider", "model"))  # type: ignore[misc]


def _token(spec: ExpertSpec) -> str | None:
    """The token for an expert's server, or none."""
    return hub_token(spec["provider"]) if "provider" in spec else token_for(spec["endpoint"])
