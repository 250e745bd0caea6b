"""Tokens go where they belong, or nowhere: by what follows from a spec, and by what leaves through the transport."""

import asyncio
import random
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.inference._providers._common import _fetch_inference_provider_mapping

from ir3de.addresses_ir3de import check_public, hub_token, is_public, server_of, token_for, token_variable
from ir3de.experts_ir3de import ExpertPool
from ir3de.gateway.forward import ExpertFailed, Forwarder, RemoteExpert
from ir3de.gateway.limits import Timeouts
from ir3de.remote_experts_ir3de import RemoteModel
from ir3de.specs_ir3de import check_expert

from . import tiny
from .test_bad_servers import bad, read_first, whole
from .test_remote_experts import completion

HUB_TOKEN = "hf_secret_of_the_hub"
HOSTS = ["a.b", "a-b", "a--b", "a.b-c", "a-b.c", "a-b-c", "a.b.c", "localhost", "127.0.0.1", "10.0.0.1", "[::1]"]
HOSTS += ["[2001:db8::1]", "2001.db8.abcd", "x--80", "a.b.80a", "hf.co", "my-hf.co", "xn--bcher-kva.example"]
PORTS = ["", ":80", ":443", ":8000", ":8443"]


def test_no_two_servers_share_a_variable() -> None:
    names: dict[str, tuple[str, int]] = {}
    for scheme, host, port in product(["http", "https"], HOSTS, PORTS):
        server = server_of(f"{scheme}://{host}{port}/v1")
        assert names.setdefault(token_variable(f"{scheme}://{host}{port}"), server[1:]) == server[1:]
    draw = random.Random(0)
    for _ in range(20_000):
        host = "".join(draw.choices("ab0.-", k=draw.randint(1, 9)))
        with suppress(ValueError):
            name, server = token_variable(f"https://{host}"), server_of(f"https://{host}")
            assert names.setdefault(name, server[1:]) == server[1:]
            assert name.replace("_", "").isalnum()
            assert name.isupper()


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("https://my-llm.org/v1", "IR3DE_TOKEN_MY__LLM_ORG"),
        ("https://my.llm.org:443", "IR3DE_TOKEN_MY_LLM_ORG"),
        ("http://127.0.0.1:8000/v1", "IR3DE_TOKEN_127_0_0_1___8000"),
        ("http://LocalHost/v1", "IR3DE_TOKEN_LOCALHOST___80"),
        ("https://[::1]:8000", "IR3DE_TOKEN__0000_0000_0000_0000_0000_0000_0000_0001___8000"),
    ],
)
def test_the_name_of_a_variable_follows_from_the_server(endpoint: str, name: str) -> None:
    assert token_variable(endpoint) == name


MALFORMED = [
    "host:8000",
    "ftp://host/v1",
    "https://",
    "https://user:secret@host/v1",
    "https://@host/v1",
    "https://:secret@host/v1",
    "https://evil.org\\@huggingface.co/v1",
    "https://huggingface.co#@evil.org/v1",
    "https://huggingface.co?@evil.org",
    "https://host/v1?token=secret",
    "https://host/v1#here",
    "https://host:0/v1",
    "https://host:70000/v1",
    "https://host:８０/v1",
    "https://hугgingface.co/v1",
    "https://huggingface.co\u3002evil.org/v1",
    "https://huggingface.co./v1",
    "https://.huggingface.co/v1",
    "https://a..b/v1",
    "https://-a.b/v1",
    "https://a-.b/v1",
    "https://hugging%66ace.co/v1",
    "https://host/v1\nhost: evil.org",
    " https://host/v1",
    "https://ho\tst/v1",
    "https://0x7f.0.0.1/v1",
    "https://127.1/v1",
    "https://2130706433/v1",
    "https://[::1%25eth0]/v1",
    "https://[::1/v1",
]


@pytest.mark.parametrize("endpoint", MALFORMED)
def test_what_two_programs_could_read_in_two_ways_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError, match="`endpoint` of expert 'a' must be a URL such as https://host/v1"):
        check_expert({"name": "a", "endpoint": endpoint})


@pytest.mark.parametrize(
    "model", ["https://evil.org", "http://evil.org/v1", "//evil.org", "../x", "a/b/c", "a b", "", "/etc"]
)
def test_a_provider_is_asked_for_a_model_of_the_hub_alone(model: str) -> None:
    with pytest.raises(ValueError, match="must be the id of a model on the Hub"):
        check_expert({"name": "a", "provider": "auto", "model": model})
    with pytest.raises(ValueError, match="'evil', which this huggingface_hub does not know"):
        check_expert({"name": "a", "provider": "evil", "model": "org/a"})


def test_a_login_that_is_none_of_the_hub_does_not_go_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "sk-of-somebody")
    with pytest.raises(ValueError, match="does not begin with 'hf_'") as caught:
        hub_token("groq")
    assert "sk-of" not in str(caught.value)


# What leaves through the transport.


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[httpx2.Request]]:
    """Every request that leaves through the HTTP library. Each is answered, or sent on elsewhere, by its path."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        where = request.url.path.partition("/to/")[2]
        if where:
            scheme, _, rest = where.partition("/")
            code = 307 if "v1" in rest else 302
            return httpx2.Response(code, headers={"location": f"{scheme}://{rest.replace('/chat/completions', '')}"})
        if request.method == "GET":
            mapping = {"groq": {"status": "live", "providerId": "judge", "task": "conversational"}}
            return httpx2.Response(200, json={"id": "org/a", "inferenceProviderMapping": mapping})
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
        return httpx2.Response(200, json={"id": "1", "created": 1, "model": "m", "choices": [choice]})

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", lambda _, request: answer(request))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    _fetch_inference_provider_mapping.cache_clear()
    yield seen
    _fetch_inference_provider_mapping.cache_clear()


def specs() -> Iterator[dict[str, Any]]:
    """Specs as a stranger may write them: hosts, ports, schemes, user info, Unicode, redirects, providers."""
    hosts = ["huggingface.co", "router.huggingface.co", "huggingface.co.evil.org", "evilhuggingface.co", "hf.co"]
    hosts += ["my-llm.org", "my.llm.org", "my_llm.org", "127.0.0.1", "localhost", "[::1]", "user:pw@huggingface.co"]
    hosts += ["huggingface.co@evil.org", "hugging\u0430face.co", "huggingface.co\uff0eevil.org", "xn--my-llm.org"]
    paths = ["/v1", "/to/https/evil.org/v1", "/to/http/huggingface.co/x"]
    for scheme, host, port, path in product(["https", "http"], hosts, ["", ":443", ":8000"], paths):
        yield {"name": "a", "endpoint": f"{scheme}://{host}{port}{path}"}
    for provider, model in product(
        ["auto", "groq", "hf-inference", "evil"], ["org/a", "https://evil.org", "a:b", "../a"]
    ):
        yield {"name": "a", "provider": provider, "model": model}


def test_no_token_leaves_to_a_server_that_it_is_not_for(
    sent: list[httpx2.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = {"my-llm.org": ("my-llm.org", 443), "127.0.0.1": ("127.0.0.1", 8000), "localhost": ("localhost", 443)}
    for host, (_, port) in owners.items():
        monkeypatch.setenv(token_variable(f"https://{host}:{port}"), f"secret_of_{host}:{port}")
    tried = asked = 0
    for spec in specs():
        tried += 1
        with suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_expert(spec)
            asked += 1
            RemoteModel(spec, retries=0).generate(["Why?"], 1, {"max_new_tokens": 1})
    assert tried >= 200
    assert asked >= 100
    reached = set()
    for request in sent:
        text = f"{request.url} {request.headers.multi_items()} {request.content!r}"
        host, port = request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)
        secure = request.url.scheme == "https" or host in ("localhost", "127.0.0.1", "::1")
        if HUB_TOKEN in text:
            assert (request.url.scheme, port) == ("https", 443)
            assert host in ("huggingface.co", "hf.co", "router.huggingface.co"), request.url
            reached.add("hub")
        for owner, port_of in owners.values():
            if f"secret_of_{owner}" in text:
                assert (host, port) == (owner, port_of)
                assert secure
                reached.add(owner)
    assert reached == {"hub", *owners}, "tokens do go where they belong"
    hosts = {request.url.host for request in sent}
    assert {"evilhuggingface.co", "my.llm.org"} <= hosts, "and others were asked without"
    assert "evil.org" not in hosts, "nor does a prompt go where a server sends it on to"


def test_a_token_that_is_left_out_is_said_with_its_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("IR3DE_TOKEN_MY_LLM_ORG", "secret")
    assert token_for("https://my.llm.org/v1") == "secret"
    with pytest.warns(UserWarning, match="read from IR3DE_TOKEN_MY__LLM_ORG") as caught:
        assert token_for("https://my-llm.org/v1") is None
    with pytest.warns(UserWarning, match="only https"):
        assert token_for("http://my.llm.org:443/v1") is None
    with pytest.warns(UserWarning, match="'_' in its name"):
        assert token_for("https://my_llm.org/v1") is None
    assert "secret" not in "".join(str(warning.message) for warning in caught)


def test_the_hubs_login_goes_to_another_hub_unless_others_could_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    for hub, goes in (("https://hub.org:8443", True), ("http://127.0.0.1:99", True), ("http://hub.org", False)):
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        assert token_for(f"{hub}/v1") == (HUB_TOKEN if goes else None)
        assert token_for("https://hub.org:1/v1") is None


# Addresses.


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("::1", "fe80::1%2", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"),
    ],
)
def test_addresses_of_private_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_strangers_endpoint_is_public_or_allowed_by_name() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")
    for endpoint in ("http://localhost:8000/v1", "http://127.0.0.1/v1", "https://[::1]/v1"):
        with pytest.raises(ValueError, match="IR3DE_ALLOW_HOSTS"):
            check_public(endpoint)
    check_public("http://localhost:8000/v1", ["localhost"])


@pytest.mark.parametrize("host", ["moved.example", "xn--bcher-kva.example"])
def test_nothing_is_sent_to_a_host_that_moved_into_a_private_network(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name was looked up and found public before; now it stands for this machine."""
    heard: list[bytes] = []
    look_up = socket.getaddrinfo

    def listen(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(whole(completion("a jury")))

    monkeypatch.setattr("socket.getaddrinfo", lambda _, *rest, **how: look_up("127.0.0.1", *rest, **how))
    with bad(listen) as server:
        config = tiny.router({"law": {"endpoint": server.url.replace("127.0.0.1", host)}}).config
        pool = ExpertPool(config, private_hosts=[], retries=0)
        [answer] = pool.generate("law", ["Why?"], None)
        assert f"{host} has the address 127.0.0.1, which is not public" in str(answer)
        with pytest.raises(ValueError, match="which is not public"):
            list(pool.stream("law", "Why?"))
        assert server.wait_closed()
        assert not any(heard)
        for allowed in ([host], None):
            assert ExpertPool(config, private_hosts=allowed).generate("law", ["Why?"], None) == ["a jury"]


@pytest.mark.parametrize(("public", "why"), [(True, "no connection"), (False, None)])
def test_the_gateway_sends_nothing_there_either(public: bool, why: str | None) -> None:
    async def ask(url: str) -> None:
        spec: Any = {"name": "law", "endpoint": url.replace("127.0.0.1", "localhost"), "public": public}
        forwarder = Forwarder(Timeouts())
        try:
            upstream = await forwarder.open(RemoteExpert(spec), "chat/completions", b"{}", {})
            upstream.close()
        finally:
            await forwarder.close()

    with bad(read_first(lambda connection: connection.sendall(whole(completion("a jury"))))) as server:
        if why is None:
            asyncio.run(ask(server.url))
        else:
            with pytest.raises(ExpertFailed, match=why):
                asyncio.run(ask(server.url))
        assert server.asked == (0 if public else 1)
