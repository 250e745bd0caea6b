"""Where experts' servers are, and which token each may be sent: its own, or on the Hub's hosts the Hub's, or none."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import warnings
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token

_HUB_HOSTS = ("huggingface.co", "hf.co")  # not those where anyone may run a server, such as endpoints.huggingface.cloud

# What is not matched is refused rather than read in one way here and in another by the HTTP library.
_ENDPOINT = re.compile(
    r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


class Server(NamedTuple):
    """
    Who listens for requests.

    Args:
        scheme (`str`): `"http"` or `"https"`.
        host (`str`): in lower case; of an IPv6 address the full form, without brackets.
        port (`int`): also where the URL names none.
    """

    scheme: str
    host: str
    port: int

    @property
    def is_private(self) -> bool:
        """Whether nobody between could read what is sent: it is encrypted, or stays on this machine."""
        return self.scheme == "https" or is_loopback(self.host)


def server_of(endpoint: str) -> Server:
    """The server that an endpoint's URL names.

    Args:
        endpoint (`str`): in ASCII, such as `"https://host/v1"` or `"http://[::1]:8000/v1"`.

    Raises:
        ValueError: it is no such URL, or holds a user, a password, a query or a fragment.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if not match:
        raise ValueError(
            "it is taken in ASCII (a name in other letters in its `xn--` form), without user, password or query: a"
            " token comes from the environment, never from the config"
        )
    scheme, host, port = match[1], match[2].lower(), int(match[3] or (443 if match[1] == "https" else 80))
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is not between 1 and 65535")
    return Server(scheme, _checked_host(host), port)


def _checked_host(host: str) -> str:
    """The host in the one form that stands for it."""
    is_number = host.startswith("[") or host.rpartition(".")[2].isdigit() or re.search(r"(^|\.)0x[0-9a-f]*$", host)
    if not is_number:
        labels = host.split(".")
        # Names with "_" are no host names, but containers have them.
        if len(host) > 253 or not all(_LABEL.fullmatch(label.replace("_", "a")) for label in labels):
            raise ValueError(f"{host!r} is no host name: letters, digits and hyphens between dots")
        return host
    try:
        return ipaddress.ip_address(host.strip("[]")).exploded
    except ValueError:
        raise ValueError(f"{host!r} is no IP address: write it as four numbers, or as IPv6 in brackets") from None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# Tokens.


def token_variable(endpoint: str) -> str:
    """The environment variable that holds the token for an endpoint's server, and for no other.

    `IR3DE_TOKEN_` and the host in capitals, with `_` for a dot and `__` for a hyphen; then `___` and the port, unless
    it is 443. An IPv6 address is written in full after one more `_`, with `_` for a colon. Host names have no hyphen
    beside a dot, so no two servers share a name: `https://my-llm.org/v1` has `IR3DE_TOKEN_MY__LLM_ORG`, and
    `http://127.0.0.1:8000/v1` has `IR3DE_TOKEN_127_0_0_1___8000`.

    Args:
        endpoint (`str`): the URL in an expert's spec.

    Raises:
        ValueError: the URL is malformed, or its host's name has a `_`, for which there is no variable.
    """
    server = server_of(endpoint)
    if "_" in server.host:
        raise ValueError(f"{server.host!r} has a '_', so no token can be named for it: give the server another name")
    host = server.host.upper().replace("-", "__").replace(".", "_")
    if ":" in host:
        host = "_" + host.replace(":", "_")
    return f"IR3DE_TOKEN_{host}" + ("" if server.port == 443 else f"___{server.port}")


def token_for(endpoint: str) -> str | None:
    """The token that may be sent to an endpoint: its own from the environment, on the Hub's hosts its login, or none.

    The variable's name follows from the server, so that no config can have a token sent where it was not meant to go.

    Args:
        endpoint (`str`): the URL in an expert's spec.
    """
    server = server_of(endpoint)
    name = None if "_" in server.host else token_variable(endpoint)
    token = os.environ.get(name) if name else None
    if token is not None and server.is_private:
        return token
    _warn_of_unused(server, name, endpoint)
    return get_token() if _is_of_the_hub(server) else None


def _warn_of_unused(server: Server, name: str | None, endpoint: str) -> None:
    """Warns where a variable is set that looks meant for the server, but would not reach it, or not it alone."""
    former = "IR3DE_TOKEN_" + re.sub(r"[^A-Z0-9]", "_", (urlsplit(endpoint).hostname or "").upper())
    found = next((each for each in (name, former) if each and each in os.environ), None)
    if found is None:
        return
    if not server.is_private:
        advice = "only https, or a server on this machine, gets a token"
    elif name is None:
        advice = "a host with a '_' in its name gets none"
    else:
        advice = f"other servers would have that name too: its token is read from {name}"
    warnings.warn(f"The token in {found} is not sent to {server.host}, port {server.port}: {advice}.", stacklevel=3)


def _is_of_the_hub(server: Server) -> bool:
    """Whether the Hub's login may be sent to a server. The Hub that HF_ENDPOINT names counts if nobody can listen."""
    try:
        own = server_of(constants.ENDPOINT)
    except ValueError:
        own = None
    if server == own:
        return server.is_private
    known = any(server.host == host or server.host.endswith(f".{host}") for host in _HUB_HOSTS)
    return known and server.scheme == "https" and server.port == 443


def hub_token(provider: str) -> str | None:
    """The login of the Hub for its inference providers, which are reached through the Hub's router.

    Raises:
        ValueError: the login is no token of the Hub. huggingface_hub would send it to the provider itself.
    """
    token = get_token()
    if token and not token.startswith("hf_"):
        raise ValueError(
            f"the token in HF_TOKEN or of `hf auth login` does not begin with 'hf_', so that it would go to {provider}"
            " itself and not to the Hub. Take a token of the Hub, or make the expert an `endpoint`"
        )
    return token


# Addresses.


def check_public(endpoint: str, allowed: Collection[str] = ()) -> None:
    """Raises unless a stranger may name this endpoint: one that leads into no private network.

    Args:
        endpoint (`str`): the URL in an expert's spec.
        allowed (`Collection[str]`): hosts that are allowed whatever their addresses, such as `"10.0.0.5"`.

    Raises:
        ValueError: one of the host's addresses is not public.
        OSError: the host has no address.
    """
    server = server_of(endpoint)
    if server.host in allowed:
        return
    for *_, address in socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM):
        check_address(server.host, str(address[0]))


def check_address(host: str, address: str) -> None:
    """Raises ValueError where the address that a host has is not of the public internet."""
    if not is_public(address):
        raise ValueError(
            f"{host} has the address {address}, which is not public. If prompts may go there, allow it:"
            f" IR3DE_ALLOW_HOSTS={host}"
        )


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also where an IPv6 address stands for an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        inner += [part for part in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())) if part]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return all(part.is_global and not part.is_multicast for part in inner)
