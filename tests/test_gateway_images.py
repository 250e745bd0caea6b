"""Experts on this machine that see, behind the gateway: the same image over all of its APIs."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from ir3de import IR3DERoutingPipeline
from ir3de.gateway.limits import Limits
from ir3de.gateway.serving import prepare_in_background
from ir3de.gateway.settings import Settings
from ir3de.images_ir3de import Picture

from . import tiny
from .gateway_world import CODE, World, world
from .pictures import FIRST, SECOND, base64_of, chat, file_of, part_of, picture, url_of

TEXT = CODE[0]["content"]
LENGTH = 8  # of a chat of that text, in tokens
LIMITS = Limits(body=2 << 20, max_tokens=400, default_tokens=8, at_once=2, waiting=2, seconds=60, images=3)
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def specs(expert_specs: dict[str, dict[str, Any]], seeing: str) -> dict[str, dict[str, Any]]:
    return {"code": expert_specs["code"], "law": expert_specs["law"], "math": {"model": seeing}}


@pytest.fixture(scope="module")
def here(specs: dict[str, dict[str, Any]]) -> Iterator[World]:
    """A gateway whose experts are all on this machine; the one for math sees."""
    with world(specs, Settings(limits=LIMITS), names=()) as made:
        prepare_in_background(made.gateway.serving).join()
        yield made


@pytest.fixture(scope="module")
def pipe(specs: dict[str, dict[str, Any]]) -> IR3DERoutingPipeline:
    return IR3DERoutingPipeline(tiny.router(specs), device="cpu")


def client(made: World) -> openai.OpenAI:
    return openai.OpenAI(base_url=made.url, api_key="none", max_retries=0)


def said(pipe: IR3DERoutingPipeline, image: Image.Image) -> str:
    """What the expert says of an image."""
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    return str(pipe(chat(TEXT, part_of(image)), experts=["math"], **options)["generated_text"])


# Answers.


def test_an_image_is_seen_over_all_apis_whole_and_streamed(here: World, pipe: IR3DERoutingPipeline) -> None:
    asks = client(here)
    texts = []
    for image in (FIRST, SECOND):
        expected = said(pipe, image)
        asked: dict[str, Any] = {"model": "ir3de", "messages": chat(TEXT, part_of(image)), **GREEDY}
        answer = asks.chat.completions.create(**asked)
        assert (answer.model, answer.choices[0].message.content) == ("math", expected)
        chunks = asks.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected

        parts = [{"type": "input_text", "text": TEXT}, {"type": "input_image", "image_url": url_of(image)}]
        given: dict[str, Any] = {"model": "ir3de", "input": [{"role": "user", "content": parts}]}
        given |= {"max_output_tokens": 6, "temperature": 0}
        response = asks.responses.create(**given)
        assert (response.model, response.output_text) == ("math", expected)
        with asks.responses.stream(**given) as stream:
            assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == expected

        source = {"type": "base64", "media_type": "image/png", "data": base64_of(file_of(image))}
        blocks = [{"type": "text", "text": TEXT}, {"type": "image", "source": source}]
        message: dict[str, Any] = {"messages": [{"role": "user", "content": blocks}], **GREEDY}
        whole = here.ask("messages", **message).json
        assert (whole["model"], whole["content"]) == ("math", [{"type": "text", "text": expected}])
        events = here.ask("messages", **message, stream=True).body.decode().split("\n\n")
        deltas = [
            json.loads(event.split("data: ")[1]) for event in events if event.startswith("event: content_block_d")
        ]
        assert "".join(delta["delta"]["text"] for delta in deltas) == expected

        uses = (answer.usage.prompt_tokens, response.usage.input_tokens, whole["usage"]["input_tokens"])
        assert uses == (LENGTH + tiny.IMAGE_TOKENS,) * 3
        texts.append(expected)
    assert texts[0] != texts[1]


def test_what_else_a_request_may_ask_for_works_with_an_image(here: World) -> None:
    create = client(here).chat.completions.create
    asked: dict[str, Any] = {"model": "ir3de", "messages": chat(TEXT, part_of(FIRST)), "max_tokens": 12}
    hot = {"temperature": 1.5}
    texts = {create(**asked, **hot, seed=seed).choices[0].message.content for seed in (1, 1, 2)}
    assert len(texts) == 2
    several = create(**asked, **hot, seed=1, n=2)
    assert {choice.message.content for choice in several.choices} == texts
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (LENGTH + tiny.IMAGE_TOKENS, 24)
    plain = create(**asked, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    told = plain.logprobs.content
    assert [entry.token for entry in told] == plain.message.content.split()
    stop = plain.message.content.split()[3]
    cut = create(**asked, temperature=0, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (plain.message.content.split(stop)[0], "stop")
    fresh = create(**asked, temperature=0, frequency_penalty=2, logit_bias={tiny.TOKENS.index("jury"): 9.0})
    assert fresh.choices[0].message.content != plain.message.content
    answered = here.ask(**asked, tools=[{"type": "function", "function": {"name": "f"}}], ir3de={"experts": ["math"]})
    assert (answered.status, answered.code) == (400, "unsupported_value")
    assert "tools: not with math" in answered.json["error"]["message"]


def test_json_of_a_schema_is_made_of_an_image(tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="the package llguidance is not installed")
    spec = {"model": tiny.seeing_expert(tmp_path, seed=6, words=tiny.letters())}
    schema = {"enum": ["a cat", "a dog"]}
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema}}
    with world({"math": spec}, Settings(limits=LIMITS), names=()) as made:
        create = client(made).chat.completions.create
        messages: Any = chat("x", part_of(FIRST))
        answer = create(model="math", messages=messages, response_format=form, max_tokens=40)  # type: ignore[call-overload]
    assert json.loads(answer.choices[0].message.content) in schema["enum"]


def test_requests_at_once_each_get_the_answer_to_their_own_image(here: World, pipe: IR3DERoutingPipeline) -> None:
    images = [picture(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda image: here.ask(messages=chat(TEXT, part_of(image)), **GREEDY), images)
        texts = [answered.json["choices"][0]["message"]["content"] for answered in answers]
    assert texts == [said(pipe, image) for image in images]
    assert len(set(texts)) > 1


def test_an_image_is_processed_once_for_a_request(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = here.gateway.serving.experts["math"].pool.source("math").processor
    apply, calls = processor.apply_chat_template, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["tokenize"])
        return apply(*args, **kwargs)

    monkeypatch.setattr(processor, "apply_chat_template", counted)
    assert here.ask(messages=chat(TEXT, part_of(FIRST)), n=2, **{**GREEDY, "temperature": 1}).status == 200
    assert calls == [True]


def test_a_conversation_goes_on_after_an_image(here: World, pipe: IR3DERoutingPipeline) -> None:
    talk = [
        {"role": "system", "content": "show python"},
        *chat(TEXT, part_of(FIRST)),
        {"role": "assistant", "content": "how"},
        {"role": "user", "content": "why"},
    ]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    expected = pipe(talk, experts=["math"], **options)["generated_text"]
    assert here.ask(messages=talk, **GREEDY).json["choices"][0]["message"]["content"] == expected
    begun = [*chat(TEXT, part_of(FIRST)), {"role": "assistant", "content": "the square"}]
    expected = pipe(begun, experts=["math"], **options)["generated_text"]
    answer = here.ask(messages=begun, **GREEDY).json
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] == 10 + tiny.IMAGE_TOKENS, "what was begun, and no new turn"


# Who is asked.


def test_the_list_of_models_says_who_sees_and_images_go_there(here: World) -> None:
    listed = {model["id"]: model.get("capabilities") for model in here.send("GET", "/v1/models").json["data"]}
    assert [listed[name]["images"] for name in tiny.DOMAINS] == [False, False, True]
    assert here.ask(max_tokens=1).expert == "law"
    assert here.ask(messages=chat(TEXT), max_tokens=1).expert == "code"
    assert here.ask(messages=chat(TEXT, part_of(FIRST)), max_tokens=1).expert == "math"
    refused = here.ask(messages=chat(TEXT, part_of(FIRST)), model="code")
    assert (refused.status, refused.code) == (400, "unsupported_value")
    assert "images: not with code). These could: math." in refused.json["error"]["message"]


def test_what_is_not_known_yet_is_refused_by_the_expert_itself(specs: dict[str, dict[str, Any]]) -> None:
    server = {"endpoint": "http://127.0.0.1:9", "task": "text", "images": True}
    unseeing = {"model": specs["math"]["model"], "images": False}
    with world({**specs, "law": unseeing, "math": server}, names=()) as made:
        for model in ("code", "math"):
            refused = made.ask(messages=chat(TEXT, part_of(FIRST)), model=model)
            assert (refused.status, refused.code) == (400, "unsupported_value")
            assert f"'{model}' reads no images" in refused.json["error"]["message"]
        assert made.ask(messages=chat(TEXT, part_of(FIRST)), model="law").status == 400, "its spec says so"
        assert made.ask(model="law", max_tokens=1).status == 200


def test_an_image_in_a_tools_result_goes_to_a_server_and_is_refused_here(specs: dict[str, dict[str, Any]]) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(file_of(FIRST))}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "image", "source": source}]}
    use = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    talk = [*CODE, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    items = [
        {"role": "user", "content": TEXT},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_image", "image_url": "data:"}]},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answered = {"role": "tool", "tool_call_id": "c1", "content": [part_of(FIRST)]}
    called = [*CODE, {"role": "assistant", "content": None, "tool_calls": [call]}, answered]
    with world(
        {"math": specs["math"], "law": {"images": True}, "code": {"images": False}}, names=("law", "code")
    ) as made:
        for model, status in (("law", 200), ("code", 400), ("math", 400)):
            asked = made.ask("messages", messages=talk, model=model, max_tokens=4)
            assert asked.status == status
            assert made.ask("responses", input=items, messages=None, model=model).status == status
            assert made.ask(messages=called, model=model).status == status
        assert "is an image where only text goes" in asked.json["error"]["message"]


@pytest.mark.parametrize("much", ["an address", "too many", "too large"])
def test_images_that_are_too_much_here_go_to_a_server(specs: dict[str, dict[str, Any]], much: str) -> None:
    parts = {"an address": [ADDRESS], "too many": [part_of(FIRST)] * 4, "too large": [LARGE]}[much]
    with world({"code": specs["math"]}, Settings(limits=LIMITS), names=("law", "math")) as made:
        assert made.ask(messages=chat(TEXT, part_of(FIRST)), max_tokens=1).expert == "code"
        answered = made.ask(messages=chat(TEXT, *parts))
        assert (answered.status, answered.expert in ("law", "math")) == (200, True)


# What is refused.

PNG = file_of(FIRST)
ADDRESS = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
NO_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64_of(b"an image")}}
HALF = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64_of(PNG[: len(PNG) // 2])}}
BOMB = part_of(Image.new("1", (20_000, 20_000)))
LARGE = part_of(Image.new("1", (8_000, 8_000)))
REFUSED: dict[str, tuple[Any, str]] = {
    "an address": (ADDRESS, "none is fetched here: send the image itself"),
    "no image": (NO_IMAGE, "is none that can be read"),
    "half an image": (HALF, "is broken"),
    "a bomb": (BOMB, "more pixels than are decoded"),
    "a large one": (LARGE, "64,000,240 pixels in all; at most 50,000,000 go"),
    "a file of another's": ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "none is fetched here"),
    "one without data": ({"type": "image_url"}, "is missing"),
}


@pytest.mark.parametrize(("part", "why"), REFUSED.values(), ids=REFUSED)
def test_a_bad_image_is_refused_by_its_place_and_takes_no_turn(
    specs: dict[str, dict[str, Any]], part: dict[str, Any], why: str
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("it was let in")

    with world(specs, Settings(limits=LIMITS), names=(), generate=never) as made:
        answered = made.ask(messages=[*CODE, *chat(TEXT, part_of(FIRST), part)], model="math")
        error = answered.json["error"]
        assert (answered.status, error["code"], error["param"]) == (400, "invalid_image", "messages[1].content[2]")
        assert error["message"].startswith("The image at messages[1].content[2] ")
        assert why in error["message"]
        message = {
            "role": "user",
            "content": [{"type": "input_image", "image_url": part.get("image_url", {}).get("url")}],
        }
        answered = made.ask("responses", input=[message], messages=None, model="math")
        assert (answered.status, answered.json["error"]["param"]) == (400, "input[0].content[0]")
        assert made.gateway.attempts._workshop._inside == 0


def test_more_images_than_go_are_refused_before_any_is_looked_at(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.ask(messages=chat(TEXT, *[part_of(FIRST)] * 3), max_tokens=1).status == 200
    monkeypatch.setattr(Picture, "_read", pytest.fail)
    for messages in (chat(TEXT, *[part_of(FIRST)] * 4), [*chat(TEXT, part_of(FIRST))] * 4):
        refused = here.ask(messages=messages, max_tokens=1)
        assert (refused.status, refused.code) == (400, "invalid_image")
        assert "is one too many: at most 3 go" in refused.json["error"]["message"]


def test_images_count_for_the_window(here: World) -> None:
    words = "a " * 500
    assert here.ask(messages=chat(words), model="math", max_tokens=6).status == 200
    for api, fields in (
        ("chat/completions", {"messages": chat(words, part_of(FIRST), part_of(SECOND)), "max_tokens": 6}),
        ("chat/completions", {"messages": chat(words, part_of(FIRST), part_of(SECOND)), "stream": True}),
    ):
        refused = here.ask(api, model="math", **fields)
        assert (refused.status, refused.code) == (400, "context_length_exceeded")


def test_a_slow_image_holds_nobody_else_up(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is decoded apart from the loop."""
    kind = type(Image.open(BytesIO(PNG)))
    decode, begun, others_answered = kind.load, threading.Event(), threading.Event()

    def slow(self: Any) -> Any:
        begun.set()
        assert others_answered.wait(10), "the loop waits for it"
        return decode(self)

    monkeypatch.setattr(kind, "load", slow)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(here.ask, messages=chat(TEXT, part_of(FIRST)), max_tokens=1)
        assert begun.wait(10)
        assert here.send("GET", "/health").status == 200
        others_answered.set()
        assert waiting.result().status == 200


def test_what_a_processor_refuses_is_told_to_the_client(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    source = here.gateway.serving.experts["math"].pool.source("math")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("absolute aspect ratio must be smaller than 200, in /secret/folder")

    monkeypatch.setattr(type(source.processor.image_processor), "__call__", refuse)
    refused = here.ask(messages=chat(TEXT, part_of(FIRST)))
    assert (refused.status, refused.code) == (400, "invalid_image")
    assert b"secret" not in refused.body
    assert here.ask(messages=chat(TEXT), model="math", max_tokens=1).status == 200
