"""Experts behind a server: a request goes on as it came, and the bytes of the answer come back as they are."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import zlib
from asyncio import timeout
from collections.abc import Container, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp

from ir3de.addresses_ir3de import check_address, hub_token, token_for
from ir3de.specs_ir3de import ExpertSpec

from .apis import MESSAGES, Api
from .capabilities import Capabilities, is_hub_id, of_hub_model
from .errors import GatewayError
from .limits import Timeouts
from .requests import Ask

if TYPE_CHECKING:
    from .relay import Reply

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # goes into a header as it is

# Of a client's headers those that an answer may depend on. Keys, cookies and addresses stay here.
_PASSED_ON = frozenset(
    ("accept", "accept-encoding", "accept-language", "baggage", "idempotency-key", "openai-beta", "traceparent")
) | frozenset(("tracestate", "user-agent", "x-session-id"))
_PASSED_ON_PREFIXES = ("anthropic-", "x-stainless-")
# Of a server's headers those that concern the connection to it alone, or that are ours to set.
_NOT_PASSED_BACK = frozenset(
    (b"alt-svc", b"connection", b"content-length", b"date", b"keep-alive", b"proxy-authenticate", b"server")
) | frozenset((b"set-cookie", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"x-request-id"))
# What a server says of its own state, or of how it was set up, and not of the request: another one may do better.
_FAILURES = frozenset((401, 402, 403, 404, 405, 407, 408, 421, 425, 429))
_ASK_AGAIN = frozenset((425, 429, 500, 502, 503, 504, 529))
# How servers say that a conversation is too long: OpenAI's and llama.cpp's codes; vLLM's, SGLang's, TGI's, Anthropic's
# and Google's words.
_TOO_LONG = re.compile(
    r"(?i)context_length_exceeded|exceed_context_size|(?:maximum|model's|available) context (?:length|size|window)"
    r"|exceeds? (?:the )?context|maximum model length|prompt is too long|input token count|`max_new_tokens` must be <="
)
_REASONS = ("code", "type", "message", "error", "error_type", "detail")  # fields of a refusal
_READ = 8192  # bytes of a refusal
_LONGEST_WAIT = 100_000  # seconds that a server may ask for
_DIGITS = re.compile(r"\d{1,5}(?:\.\d{1,9})?", re.ASCII)
_SAID = 1.0  # seconds that the words of a failure are waited for
_WHOLE = 16 << 20  # bytes of an answer in one piece that are held until it is complete


class ExpertFailed(Exception):
    """
    An expert did not begin to answer, or broke off.

    Args:
        why (`str`): in a word or two, without anything that the server said.
        again (`bool`): whether the same expert may do better a moment later.
        broken (`bool`): whether it counts for the circuit breaker.
        status (`int`): of its answer, if there was one.
        retry_after (`float`, *optional*): seconds that it asks to be left alone for.
        said (`str`): the beginning of what the server said of a fault of its own, which nobody is shown.
    """

    def __init__(
        self,
        why: str,
        again: bool = False,
        broken: bool = True,
        status: int = 0,
        retry_after: float | None = None,
        said: str = "",
    ) -> None:
        super().__init__(why)
        self.why = why
        self.again = again
        self.broken = broken
        self.status = status
        self.retry_after = retry_after
        self.said = said


class RemoteExpert:
    """
    An expert behind a server.

    Args:
        spec (`dict`): with an `endpoint` or a `provider`.
    """

    is_here = False

    def __init__(self, spec: ExpertSpec) -> None:
        self.name = spec["name"]
        self.capabilities = Capabilities.of_spec(spec)
        self.timeout: float | None = spec.get("timeout")
        self.public = spec.get("public", False)
        self._spec = spec
        self.no_system = False  # whether its server refuses system messages, as was seen
        if "provider" in spec:
            self.base = "https://router.huggingface.co/v1"
            suffix = "" if spec["provider"] == "auto" else f":{spec['provider']}"
            self.model = f"{spec['model']}{suffix}"
            self._token = hub_token(spec["provider"])
        else:
            base = spec["endpoint"].rstrip("/").removesuffix("/chat/completions")
            self.base = base if base.endswith("/v1") else f"{base}/v1"
            self.model = spec.get("model", self.name)
            self._token = token_for(spec["endpoint"])

    def learn(self) -> None:
        """Reads from the files of its model on the Hub, if that is one, what the spec does not say.

        Raises:
            Exception: whatever keeps these files from being read.
        """
        name = self._spec.get("model", "")
        if "provider" in self._spec or is_hub_id(name):
            self.capabilities = self.capabilities.completed(of_hub_model(name))

    def headers(self, client: Mapping[str, str], request_id: str, api: Api | None) -> dict[str, str]:
        """Headers of a request: of the client's those that may matter to the answer, and the server's own token."""
        headers = {
            name: value for name, value in client.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
        }
        headers |= {"content-type": "application/json", "x-request-id": request_id}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
            if api is MESSAGES:
                headers["x-api-key"] = self._token
        return headers

    def body(self, ask: Ask, conversation: str | None = None, no_system: bool = False) -> bytes:
        """The request's body, with the server's name for the model, and with what the spec adds where it is silent.

        Args:
            ask ([`Ask`]): the request.
            conversation (`str`, *optional*): JSON that stands for its conversation.
            no_system (`bool`): put the spec's system prompt into the first message of a user, if there is one.
        """
        changes: dict[str, str | None] = {"model": json.dumps(self.model), "ir3de": None}
        if conversation is not None:
            changes[ask.api.conversation] = conversation
        prompt = self._spec.get("system_prompt")
        if prompt is not None and (added := ask.api.with_system_prompt(ask.body, prompt)):
            changes |= (_folded(ask, conversation, prompt) if no_system else None) or added
        if "generation" in self._spec:
            changes |= ask.api.with_defaults(ask.body, self._spec["generation"])
        return ask.body.with_changes(changes)


def _folded(ask: Ask, conversation: str | None, prompt: str) -> dict[str, str | None] | None:
    """The change that puts a system prompt into the first message of a user, if there is one."""
    field = ask.api.conversation
    folded = ask.api.with_prompt_folded(ask.body.raw(field) if conversation is None else conversation, prompt)
    return None if folded is None else {field: folded}


class Upstream:
    """
    A server's answer that has begun.

    Args:
        response (`aiohttp.ClientResponse`): whose head has arrived.
        idle (`float`): seconds that it may pause.
        end (`float`): when all of it must be here, of the loop's clock, whatever keeps the line alive until then.
    """

    counted = (0, 0)
    said = ""  # of a fault of its own, of which no answer begins

    def __init__(self, response: aiohttp.ClientResponse, idle: float, end: float) -> None:
        self._response = response
        self._idle, self._end = idle, end
        self.status = response.status
        self.headers: Headers = [
            (name.lower(), value) for name, value in response.raw_headers if name.lower() not in _NOT_PASSED_BACK
        ]
        kind = response.content_type if "content-type" in response.headers else "application/json"
        self.is_events = kind == "text/event-stream"
        self._is_held = not self.is_events and (
            kind == "application/json" or kind.endswith("+json") or self.status >= 400
        )
        self.is_coded = response.headers.get("content-encoding", "identity") != "identity"
        self.first = b""
        self.complete = False

    async def begin(self) -> None:
        """Waits for the first piece, or for all of an answer that is JSON or a refusal."""
        parts: list[bytes] = []
        size = 0
        while not self.complete and (not parts or self._is_held) and size < _WHOLE:
            part = await self._response.content.readany()
            self.complete = not part
            parts.append(part)
            size += len(part)
        self.first = b"".join(parts)
        length = self._response.headers.get("content-length")
        if length and not (self.complete or self._is_held or self.is_events):  # whose bytes stay as they are
            self.headers.append((b"content-length", length.encode()))

    async def read(self) -> bytes:
        """The next piece; empty at the end.

        Raises:
            ExpertFailed: the server broke off, or paused for too long.
        """
        if self.complete:
            return b""
        try:
            async with timeout(min(self._idle, self._end - asyncio.get_running_loop().time())):
                part = await self._response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _failed(error) from None
        self.complete = not part
        return part

    def close(self) -> None:
        """Closes the connection, unless the answer is complete."""
        self._response.close()


class PublicResolver(aiohttp.abc.AbstractResolver):
    """Finds the addresses of hosts that must have public ones, whatever their names stood for before."""

    def __init__(self) -> None:
        self._resolver = aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        """The addresses of a host.

        Raises:
            OSError: it has none, or one that is not public.
        """
        found = await self._resolver.resolve(host, port, family)
        try:
            for address in found:
                check_address(host, address["host"])
        except ValueError as error:
            logger.error("Nothing is sent: %s.", error)
            raise OSError(str(error)) from None
        return found

    async def close(self) -> None:
        """Releases what it holds."""
        await self._resolver.close()


class Forwarder:
    """
    Sends requests to servers, over connections that all share.

    Args:
        timeouts ([`Timeouts`]): of a server.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether addresses must be public

    async def open(
        self,
        expert: RemoteExpert,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        method: str = "POST",
        passed: Container[int] = (),
    ) -> Upstream:
        """Sends a request and waits until the answer begins.

        Args:
            expert ([`RemoteExpert`]): whose server it goes to.
            path (`str`): after `/v1/`.
            body (`bytes`, *optional*): of the request.
            headers (`Mapping[str, str]`): of the request.
            method (`str`): of HTTP.
            passed (`Container[int]`): statuses that are answers here, and no failures of the server.

        Raises:
            ExpertFailed: there is no answer, or one that says that the server cannot answer.
        """
        session = self._sessions.get(expert.public) or self._start(expert.public)
        response: aiohttp.ClientResponse | None = None
        end = asyncio.get_running_loop().time() + (expert.timeout or self._timeouts.longest)
        try:
            async with timeout(expert.timeout or min(self._timeouts.first_byte, self._timeouts.longest)):
                response = await session.request(
                    method, f"{expert.base}/{path}", data=body, headers=headers, allow_redirects=False
                )
                if _is_failure(response.status) and response.status not in passed:
                    raise _refused(response, await _said(response) if response.status == 500 else "")
                upstream = Upstream(response, self._timeouts.idle, end)
                await upstream.begin()
            return upstream
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, (aiohttp.ClientError, OSError, asyncio.TimeoutError)):
                raise _failed(error) from None
            raise

    def _start(self, public: bool) -> aiohttp.ClientSession:
        """Makes a session, which belongs to the loop that runs."""
        resolver = PublicResolver() if public else None
        self._sessions[public] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, resolver=resolver),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "user-agent"),
        )
        return self._sessions[public]

    async def close(self) -> None:
        """Closes all connections."""
        while self._sessions:
            await self._sessions.popitem()[1].close()


@lru_cache(maxsize=1024)
def in_header(text: str) -> bytes:
    """A text as the value of a header: percent-encoded where it holds anything but plain ASCII."""
    return quote(text, safe=_PLAIN).encode()


def _is_failure(status: int) -> bool:
    return status in _FAILURES or status >= 500 or 300 <= status < 400


async def _said(response: aiohttp.ClientResponse) -> str:
    """The beginning of what a server says; nothing where that does not come soon."""
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with timeout(_SAID):
            return (await response.content.readany()).decode(errors="replace")
    return ""


def _refused(response: aiohttp.ClientResponse, said: str) -> ExpertFailed:
    status = response.status
    return ExpertFailed(
        f"status {status}",
        again=status in _ASK_AGAIN,
        broken=status >= 500,
        status=status,
        retry_after=_seconds(response.headers.get("retry-after", "")),
        said=said,
    )


def _seconds(after: str) -> float | None:
    """The seconds of a header `retry-after`: a number, or the date when they have gone by; None if it is neither."""
    if _DIGITS.fullmatch(after):
        return float(after)
    try:
        date = parsedate_to_datetime(after)
        left = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return max(0.0, left) if left < _LONGEST_WAIT else None


def says_too_long(reply: Reply) -> bool:
    """Whether a server refuses a request because the conversation is too long for it, so that another may be asked."""
    if reply.status not in (400, 413, 422) or not reply.complete:
        return False
    return any(map(_TOO_LONG.search, _reasons(_beginning(reply))))


def _reasons(refusal: bytes) -> list[str]:
    """What a server says of why it refuses, without what it repeats of the request; of what is no JSON all of it."""
    text = refusal.decode(errors="replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    reasons: list[str] = []
    for each in (said, said.get("error") if isinstance(said, dict) else None):
        values = [each.get(key) for key in _REASONS] if isinstance(each, dict) else [each]
        reasons += [value for value in values if isinstance(value, str)]
    return reasons


def _beginning(reply: Reply) -> bytes:
    """The beginning of an answer, also of one that is compressed, unless in a way that needs another package."""
    if not reply.is_coded:
        return reply.first[:_READ]
    with suppress(zlib.error):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(reply.first, _READ)  # gzip or deflate
    return b""


def _failed(error: BaseException) -> ExpertFailed:
    """What went wrong, without the server's words or address."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ExpertFailed("no connection in time")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return ExpertFailed("no answer in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ExpertFailed("no connection", again=True)
    return ExpertFailed("broken connection", again=True)


def unavailable(failures: Mapping[str, str], retry_after: float | None, busy: bool) -> GatewayError:
    """The error of a request that no expert answered.

    Args:
        failures (`Mapping[str, str]`): why each did not, by name.
        retry_after (`float`, *optional*): seconds until one may.
        busy (`bool`): whether all of them were busy, and nothing else.
    """
    said = "; ".join(f"{name}: {why}" for name, why in failures.items())
    if busy:
        return GatewayError(429, "busy", f"No expert has room ({said}): try again in a moment.", None, retry_after or 1)
    if retry_after is not None:
        return GatewayError(503, "expert_unavailable", f"No expert is available ({said}).", None, retry_after)
    return GatewayError(502, "expert_failed", f"No expert answered ({said}).")
