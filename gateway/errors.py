"""What a client is told when a request is refused or fails: a status, and words in the form that its API has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_KINDS = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_ANTHROPIC_KINDS = {**_KINDS, 413: "request_too_large", 503: "overloaded_error"}
TOO_LONG = "context_length_exceeded"


class GatewayError(Exception):
    """
    A request that is refused, or that could not be served.

    Args:
        status (`int`): of HTTP.
        code (`str`): for programs.
        message (`str`): for people: what was expected, what came, what to do.
        param (`str`, *optional*): the field at fault.
        retry_after (`float`, *optional*): seconds after which another try makes sense.
        details (`dict`, *optional*): the route, where there was one.
        elsewhere (`bool`): whether it is what one expert cannot do, so that another may be asked.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
        elsewhere: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.details = details
        self.elsewhere = elsewhere

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the error."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after)))
        if self.status in (408, 413):  # the rest of the body is not read
            headers["connection"] = "close"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def openai_error(error: GatewayError) -> dict[str, Any]:
    """The error as OpenAI's API has it."""
    default = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _KINDS[error.status] if error.status in (401, 403, 429) else default
    body: dict[str, Any] = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    return body if error.details is None else {**body, "ir3de": error.details}


def anthropic_error(error: GatewayError) -> dict[str, Any]:
    """The error as Anthropic's API has it."""
    kind = _ANTHROPIC_KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    return body if error.details is None else {**body, "ir3de": error.details}


def wrong(param: str, expected: str, value: Any) -> GatewayError:
    """The error of a field that holds something else than what is expected."""
    return GatewayError(400, "invalid_value", f"`{param}` {expected}; got {short(value)}.", param)


def no_model(name: str, known: Iterable[str]) -> GatewayError:
    """The error of a model that does not exist, or of an expert that only routes."""
    shown = repr(name if len(name) <= 100 else f"{name[:100]}...")  # in its own letters, controls escaped
    message = f"There is no model {shown} that answers; there are {', '.join(known)}."
    return GatewayError(404, "model_not_found", message, "model")


def short(value: Any) -> str:
    """A value in an error: its beginning, as ASCII."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value):,}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
