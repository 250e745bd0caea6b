"""Experts elsewhere: a real OpenAI-compatible server, and one that fails in every way between it and us."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.inference._providers import CONVERSATIONAL_AUTO_ROUTER
from huggingface_hub.inference._providers._common import _fetch_inference_provider_mapping

from ir3de import IR3DERoutingPipeline
from ir3de.addresses_ir3de import token_variable
from ir3de.experts_ir3de import ExpertError
from ir3de.gateway.serving import served

from . import tiny
from .gateway_world import world

LAW = "the court and a judge"
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


class Server(ThreadingHTTPServer):
    """A server whose answers a function gives: it takes the handler and the request's body."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, respond: Callable[[BaseHTTPRequestHandler, bytes], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                respond(self, self.rfile.read(int(self.headers.get("content-length", 0))))

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serve(respond: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[Server]:
    """A running server."""
    server = Server(respond)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """Sends a complete response."""
    handler.send_response(status)
    for key, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: str) -> bytes:
    """The body of an answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


def chunk(text: str, finish: str | None = None) -> bytes:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "1", "created": 1, "model": "m", "choices": [choice]}).encode() + b"\n\n"


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pipe(spec: dict[str, Any], others: dict[str, Any] | None = None, **kwargs: Any) -> IR3DERoutingPipeline:
    """A pipeline whose law expert has this spec."""
    return IR3DERoutingPipeline(tiny.router({"law": spec, **(others or {})}), device="cpu", **kwargs)


@pytest.fixture(autouse=True, scope="module")
def online() -> Iterator[None]:
    """The client talks to no server while it is offline, not even to one here; experts are local folders anyhow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a chat model."""
    return tiny.expert(tmp_path_factory.mktemp("served"), seed=1, chat=True)


@pytest.fixture(scope="module")
def real(model: str) -> Iterator[str]:
    """`transformers serve` with that model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("openai")
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--port", str(port)]
    server = subprocess.Popen([*command, "--device", "cpu"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://localhost:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.2)
        yield f"{url}/v1"
    finally:
        server.terminate()
        server.wait(30)


# A real server.


def test_through_the_gateway_a_real_server_answers_as_it_does_directly(real: str, model: str) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": LAW}], "max_tokens": 8, "temperature": 0.0}
    with world({"law": {"endpoint": real, "model": model}}, names=("code", "math")) as made:
        direct, through = openai.OpenAI(base_url=real, api_key="-"), openai.OpenAI(base_url=made.url, api_key="-")
        whole = through.chat.completions.with_raw_response.create(model="ir3de", **asked)
        assert whole.headers["x-ir3de-expert"] == "law"
        expected = direct.chat.completions.create(model=model, **asked).choices[0].message.content
        assert whole.parse().choices[0].message.content == expected
        stream = through.chat.completions.create(model="ir3de", stream=True, **asked)
        assert "".join(each.choices[0].delta.content or "" for each in stream if each.choices) == expected != ""


def test_answers_chats_and_streams_are_those_of_a_direct_client(real: str, model: str) -> None:
    made = pipe({"endpoint": real, "model": model, "system_prompt": "show python"})
    client = InferenceClient(base_url=real)
    system = {"role": "system", "content": "show python"}
    for prompt in (LAW, [{"role": "user", "content": LAW}, {"role": "assistant", "content": "a jury"},
                         {"role": "user", "content": "the court"}]):  # fmt: skip
        chat = [system, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]
        direct = client.chat_completion(chat, model=model, max_tokens=8, temperature=0.0)
        record = made(prompt, on_error="raise", **GREEDY)
        assert record["generated_text"] == direct.choices[0].message.content != ""
        events = list(made.stream(prompt, on_error="raise", **GREEDY))
        pieces = [event["text"] for event in events if event["event"] == "text"]
        streamed = client.chat_completion(chat, model=model, max_tokens=8, temperature=0.0, stream=True)
        assert "".join(pieces) == "".join(e.choices[0].delta.content or "" for e in streamed if e.choices)
        assert len(pieces) > 1
        assert events[-1] == {"event": "record", **record}


def test_a_remote_expert_answers_as_the_same_model_here(real: str, model: str) -> None:
    here, there = pipe({"model": model}), pipe({"endpoint": real, "model": model})
    prompts = [LAW, "the jury and the trial", "a contract clause"]
    assert there(prompts, experts=["law"], **GREEDY) == here(prompts, experts=["law"], **GREEDY)


def test_through_a_proxy_that_fails_every_prompt_gets_an_answer_or_a_recorded_failure(real: str, model: str) -> None:
    faults = ["dropped", "429", "500", "stalled", "broken", "ok", "ok"]
    seen, answered, lock = Counter[str](), Counter[str](), threading.Lock()

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        prompt = json.loads(body)["messages"][-1]["content"]
        with lock:
            fault = faults[(seen.total() + seen[prompt]) % len(faults)]
            seen[prompt] += 1
        if fault == "429":
            send(handler, 429, b"{}", retry_after="0.1")
        elif fault == "500":
            send(handler, 500, b"oops")
        elif fault == "broken":
            send(handler, 200, b'{"choices": [')
        elif fault == "stalled":
            time.sleep(3.5)
        elif fault == "ok":
            request = urllib.request.Request(real + "/chat/completions", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                send(handler, 200, answer.read())
            with lock:
                answered[prompt] += 1
        handler.close_connection = True

    prompts = [f"the court and judge number {i}" for i in range(200)]
    with serve(respond) as proxy:
        made = pipe({"endpoint": proxy.url, "model": model, "timeout": 3})
        records = made(prompts, experts=["law"], do_sample=False, max_new_tokens=4)
    direct = pipe({"endpoint": real, "model": model})(prompts, experts=["law"], do_sample=False, max_new_tokens=4)
    failed = [record for record in records if record["generated_text"] is None]
    assert len(records) == 200
    assert all(record["failures"] for record in failed)
    assert 0 < len(failed) < 100
    kinds = {failure["error"].split(":")[0] for record in failed for failure in record["failures"]}
    assert "TimeoutError" in kinds
    for prompt, record, expected in zip(prompts, records, direct, strict=True):
        if record["generated_text"] is not None:
            assert record["generated_text"] == expected["generated_text"]
        assert answered[prompt] == (record["generated_text"] is not None), "none lost, none doubled"


# Faults, one by one.


def test_where_nobody_listens_the_next_expert_answers(model: str) -> None:
    others = {"code": {"model": model}, "math": {"model": model}}
    made = pipe({"endpoint": f"http://127.0.0.1:{free_port()}/v1"}, others, expert_kwargs={"retries": 1})
    record = made(LAW, **GREEDY)
    assert record["expert"] in others
    assert record["generated_text"]
    assert "ConnectError" in record["failures"][0]["error"]
    events = list(made.stream(LAW, **GREEDY))
    assert events[-1] == {"event": "record", **record}


@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (404, 1), (422, 1), (429, 3), (500, 3), (503, 3)])
def test_what_may_pass_is_tried_again_and_what_does_not_is_not(status: int, attempts: int) -> None:
    seen: list[bytes] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append(body)
        send(handler, status, b'{"error": "no"}', retry_after="0")

    with serve(respond) as server, pytest.raises(ExpertError, match=str(status)):
        pipe({"endpoint": server.url})(LAW, on_error="raise")
    assert len(seen) == attempts


def test_retry_after_is_respected() -> None:
    times: list[float] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            send(handler, 429, b"{}", retry_after="1")
        else:
            send(handler, 200, completion("a jury"))

    with serve(respond) as server:
        assert pipe({"endpoint": server.url})(LAW)["generated_text"] == "a jury"
    assert times[1] - times[0] >= 1


def test_a_stream_that_stalls_or_breaks_off_is_a_failure_and_its_pieces_are_dropped(model: str) -> None:
    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(chunk("half an answer"))
        handler.wfile.flush()
        if json.loads(body)["messages"][-1]["content"] == LAW:
            time.sleep(3)
        handler.close_connection = True

    with serve(respond) as server:
        made = pipe({"endpoint": server.url, "timeout": 1}, {"code": {"model": model}})
        for prompt, error in ((LAW, "Timeout"), (LAW + " jury", "the stream ended before the answer did")):
            events = list(made.stream(prompt, **GREEDY))
            kinds = [event["event"] for event in events]
            assert kinds[:3] == ["route", "text", "route"]
            assert error in events[2]["failures"][0]["error"]
            pieces = [event["text"] for event in events[3:-1]]
            assert events[-1]["generated_text"] == "".join(pieces)
            assert events[-1]["expert"] == events[2]["expert"] == "code"


def test_closing_a_stream_closes_the_connection() -> None:
    broken = threading.Event()

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(500):
                handler.wfile.write(chunk("a jury "))
                time.sleep(0.01)
        except OSError:
            broken.set()

    with serve(respond) as server:
        events = pipe({"endpoint": server.url}).stream(LAW)
        assert [next(events)["event"], next(events)["event"]] == ["route", "text"]
        events.close()
        assert broken.wait(4)


# Requests.


def test_options_reach_the_server_in_its_names() -> None:
    bodies: list[dict[str, Any]] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        bodies.append(json.loads(body))
        send(handler, 200, completion("a jury"))

    with serve(respond) as server:
        made = pipe({"endpoint": server.url, "model": "judge-7b", "generation": {"temperature": 0.3, "top_p": 0.5}})
        record = made(LAW, max_new_tokens=3, top_p=0.9, top_k=4, seed=5, stop_strings="end", return_full_text=True)
        assert record["generated_text"] == LAW + "a jury"
        with pytest.raises(ExpertError, match="does not take num_beams"):
            made(LAW, num_beams=2, on_error="raise")
    expected = {"model": "judge-7b", "max_tokens": 3, "temperature": 0.3, "top_p": 0.9, "top_k": 4, "seed": 5}
    assert expected.items() <= bodies[0].items()
    assert bodies[0]["stop"] == ["end"]
    assert len(bodies) == 1


@pytest.mark.parametrize("seed", [-1, 2**40, 10**400])
def test_a_server_is_sent_any_seed_and_one_of_its_spec_keeps_no_gateway_from_starting(seed: int) -> None:
    bodies: list[dict[str, Any]] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        bodies.append(json.loads(body))
        send(handler, 200, completion("a jury"))

    with serve(respond) as server:
        pipe({"endpoint": server.url})(LAW, seed=seed, on_error="raise")
        made = pipe({"endpoint": server.url, "generation": {"seed": seed}})
        made(LAW, on_error="raise")
    assert [body["seed"] for body in bodies] == [seed, seed]
    assert list(served(made).experts) == ["law"]


def test_plain_text_goes_to_a_server_of_text_generation() -> None:
    bodies: list[dict[str, Any]] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        bodies.append(json.loads(body))
        send(handler, 200, b'[{"generated_text": "a jury"}]')

    with serve(respond) as server:
        made = pipe({"endpoint": server.url, "task": "text"})
        assert made(LAW, max_new_tokens=3)["generated_text"] == "a jury"
    assert bodies[0]["inputs"] == LAW
    assert bodies[0]["parameters"]["max_new_tokens"] == 3


def test_tokens_go_only_where_they_belong_and_into_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append(handler.headers.get("authorization", ""))
        send(handler, 401, json.dumps({"error": f"bad token {seen[-1]}"}).encode())

    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_hub")
    assert huggingface_hub.get_token() == "hf_secret_of_the_hub"
    with serve(respond) as server:
        made = pipe({"endpoint": server.url})
        made(LAW)
        monkeypatch.setenv(f"IR3DE_TOKEN_127_0_0_1___{server.server_port}", "secret_of_the_server")
        record = made(LAW)
    assert "hf_secret" not in seen[0]
    assert seen[1] == "Bearer secret_of_the_server"
    assert "secret" not in json.dumps(record)


# Hub inference providers.


TOKEN = "hf_secret_of_the_hub"


@contextmanager
def provider(
    patch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler, bytes], None]
) -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """The Hub and its router in one server: the provider groq knows the model org/judge as judge-8b.

    Yields:
        `list`: path, authorization and body of each request to the router.
    """
    seen: list[tuple[str, str, dict[str, Any]]] = []

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.command == "GET":
            known = {"status": "live", "providerId": "judge-8b", "task": "conversational"}
            mapping = {"groq": known} if handler.path.startswith("/api/models/org/judge") else {}
            return send(handler, 200, json.dumps({"id": "org/judge", "inferenceProviderMapping": mapping}).encode())
        seen.append((handler.path, handler.headers["authorization"], json.loads(body)))
        answer(handler, body)

    with serve(respond) as server:
        url = server.url.removesuffix("/v1")
        patch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        patch.setattr(huggingface_hub.constants, "INFERENCE_PROXY_TEMPLATE", url + "/{provider}")
        patch.setattr(CONVERSATIONAL_AUTO_ROUTER, "base_url", url)
        patch.setenv("HF_TOKEN", TOKEN)
        _fetch_inference_provider_mapping.cache_clear()
        yield seen


def test_a_provider_is_asked_through_the_router_for_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"provider": "groq", "model": "org/judge", "system_prompt": "You judge."}
    with provider(monkeypatch, lambda handler, _: send(handler, 200, completion("a jury"))) as seen:
        record = pipe(spec)(LAW, on_error="raise", **GREEDY)
        auto = pipe({**spec, "provider": "auto"})(LAW, on_error="raise", **GREEDY)
        with pytest.raises(ExpertError, match="org/judge is not supported by provider cohere"):
            pipe({**spec, "provider": "cohere"})(LAW, on_error="raise")
        with pytest.raises(ValueError, match="'grok', which this huggingface_hub does not know"):
            pipe({**spec, "provider": "grok"})
    assert record["generated_text"] == auto["generated_text"] == "a jury"
    (path, token, body), (auto_path, auto_token, auto_body) = seen
    assert (path, auto_path) == ("/groq/openai/v1/chat/completions", "/v1/chat/completions")
    assert token == auto_token == f"Bearer {TOKEN}"
    assert (body["model"], auto_body["model"]) == ("judge-8b", "org/judge")
    assert body["messages"] == [{"role": "system", "content": "You judge."}, {"role": "user", "content": LAW}]
    assert (body["max_tokens"], body["temperature"]) == (8, 0)


def test_a_provider_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        assert json.loads(body)["stream"] is True
        pieces = chunk("a ") + chunk("jury") + chunk("", "stop") + b"data: [DONE]\n\n"
        send(handler, 200, pieces, content_type="text/event-stream")

    with provider(monkeypatch, answer):
        events = list(pipe({"provider": "groq", "model": "org/judge"}).stream(LAW, on_error="raise"))
    assert [event["text"] for event in events if event["event"] == "text"] == ["a ", "jury"]
    assert events[-1]["generated_text"] == "a jury"


@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (402, 1), (429, 3), (500, 3)])
def test_a_provider_that_refuses_is_passed_over_and_the_token_stays_here(
    model: str, status: int, attempts: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        sent = handler.headers["authorization"]
        send(handler, status, json.dumps({"error": f"no: {sent}"}).encode(), retry_after="0")

    caplog.set_level("DEBUG")
    with provider(monkeypatch, answer) as seen:
        made = pipe({"provider": "groq", "model": "org/judge"}, {"code": {"model": model}})
        record = made(LAW, **GREEDY)
        events = list(made.stream(LAW, **GREEDY))
        with pytest.raises(ExpertError) as raised:
            made(LAW, on_error="raise")
    assert len(seen) == 3 * attempts
    assert "no: Bearer ***" in str(raised.value.cause)
    assert record["expert"] == "code"
    assert str(status) in record["failures"][0]["error"]
    assert events[-1] == {"event": "record", **record}
    assert TOKEN not in json.dumps([record, events, made.model.config.to_dict()]) + caplog.text + str(
        raised.value.cause
    )


def test_a_provider_without_a_token_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(monkeypatch, lambda *_: pytest.fail("asked")) as seen:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
        with pytest.raises(ExpertError, match="hf auth login"):
            pipe({"provider": "groq", "model": "org/judge"})(LAW, on_error="raise")
    assert not seen


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}, (11, 7)),
        ({"prompt_tokens": "many", "completion_tokens": -1, "total_tokens": 0}, (None, None)),
        (None, (None, None)),
    ],
)
def test_a_server_counts_its_tokens_itself(usage: dict[str, Any] | None, counted: tuple[int | None, ...]) -> None:
    body = {**json.loads(completion("a proof")), **({"usage": usage} if usage else {})}
    with serve(lambda handler, _: send(handler, 200, json.dumps(body).encode())) as server:
        reply = pipe({"endpoint": server.url, "model": "m"}).experts.ask("law", LAW, max_new_tokens=3)
    assert (reply.text, reply.read, reply.written) == ("a proof", *counted)


def test_an_expert_that_fails_when_asked_raises() -> None:
    spec = {"endpoint": f"http://127.0.0.1:{free_port()}/v1", "model": "m"}
    with pytest.raises(Exception, match="onnect"):
        pipe(spec, expert_kwargs={"retries": 0}).experts.ask("law", LAW)


# A server whose chat template takes no system message.


def without_system(
    got: list[Any], status: int = 400, said: str = "System role not supported"
) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """A server that refuses chats with a system message, and streams or answers the others; it notes what it got."""

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body)
        got.append(asked["messages"])
        if any(message["role"] == "system" for message in asked["messages"]):
            send(handler, status, json.dumps({"error": {"code": status, "message": said}}).encode())
        elif asked.get("stream"):
            send(handler, 200, chunk("a jury", "stop") + b"data: [DONE]\n\n", content_type="text/event-stream")
        else:
            send(handler, 200, completion("a jury"))

    return respond


FOLDED = [{"role": "user", "content": f"Be brief.\n\n{LAW}"}]
REFUSED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LAW}]


@pytest.mark.parametrize(
    ("status", "said"), [(400, "System role not supported"), (500, "Error: Jinja Exception: System role not supported")]
)
def test_a_server_without_system_messages_gets_their_text_with_the_users_and_this_is_remembered(
    status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []
    with serve(without_system(got, status, said)) as server:
        made = pipe({"endpoint": server.url, "model": "m", "system_prompt": "Be brief."})
        assert made(LAW, on_error="raise")["generated_text"] == "a jury"
        assert got == [REFUSED, FOLDED]
        assert "refuses system messages" in caplog.text
        events = list(made.stream(LAW, on_error="raise"))
        assert [event["text"] for event in events if event["event"] == "text"] == ["a jury"]
        assert got == [REFUSED, FOLDED, FOLDED]
        del got[:]
        another = pipe({"endpoint": server.url, "model": "m", "system_prompt": "Be brief."})
        assert list(another.stream(LAW, on_error="raise"))[-1]["expert"] == "law"
        assert got == [REFUSED, FOLDED]


def test_a_server_that_is_broken_gets_what_it_got_again() -> None:
    got: list[Any] = []
    with serve(without_system(got, 500, "out of memory")) as server:
        made = pipe({"endpoint": server.url, "model": "m", "system_prompt": "Be brief."}, expert_kwargs={"retries": 1})
        with pytest.raises(ExpertError, match="out of memory"):
            made(LAW, on_error="raise")
    assert got == [REFUSED, REFUSED]


TOLD = "The court\n is closed, \u001b[31mtoken-of-law"


@pytest.mark.parametrize(
    "body",
    [
        TOLD.encode(),
        json.dumps({"error": {"message": TOLD}}).encode(),
        json.dumps({"detail": TOLD}).encode(),
        json.dumps({"object": "error", "message": TOLD, "rest": "x" * 9999}).encode(),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_what_a_server_says_of_its_refusal_is_told_in_one_line_without_the_token(
    body: bytes, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(lambda handler, _: send(handler, status, body)) as server:
        monkeypatch.setenv(token_variable(server.url), "token-of-law")
        record = pipe({"endpoint": server.url, "model": "m"})(LAW)
    said = next(failure["error"] for failure in record["failures"] if failure["expert"] == "law")
    assert "is closed" in said
    assert "***" in said
    assert said.isprintable()
    assert len(said) < 400
    assert "token-of-law" not in said + caplog.text
