"""Experts on this machine behind the gateway, through OpenAI's own client and through Anthropic's shape."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from ir3de import IR3DERoutingPipeline
from ir3de.gateway.apis import CHAT
from ir3de.gateway.forward import Forwarder
from ir3de.gateway.generation import Piece, Stops
from ir3de.gateway.limits import Limits
from ir3de.gateway.local import _refused
from ir3de.gateway.orders import read_order
from ir3de.gateway.requests import read_ask
from ir3de.gateway.settings import Settings
from ir3de.gateway.shapes import MessageShape
from ir3de.scripts.bench.stand_in import Received

from . import tiny
from .gateway_world import LAW, World, world

LIMITS = Limits(
    body=20_000, messages=8, characters=4_000, max_tokens=400, default_tokens=8, at_once=2, waiting=2, seconds=60
)


def client(made: World) -> openai.OpenAI:
    return openai.OpenAI(base_url=made.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def here(expert_specs: dict[str, dict[str, Any]]) -> Iterator[World]:
    """A gateway whose experts are all on this machine."""
    with world(expert_specs, Settings(limits=LIMITS), names=()) as made:
        yield made


def test_an_answer_names_its_expert_and_the_route(here: World, pipe: IR3DERoutingPipeline) -> None:
    asked: dict[str, Any] = {"model": "ir3de", "messages": LAW, "max_tokens": 6, "temperature": 0}
    answer = client(here).chat.completions.create(**asked, extra_body={"ir3de": {}})
    assert answer.model == "law"
    assert answer.choices[0].message.content == pipe(LAW, max_new_tokens=6, do_sample=False)["generated_text"]
    record = pipe(LAW, generate=False)
    assert answer.ir3de == {key: record[key] for key in ("expert", "score", "ranking")}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 6, 11)
    assert answer.choices[0].finish_reason == "length"
    for path in ("/v1/chat/completions", "/v1/messages"):
        unasked = here.send("POST", path, asked)
        assert unasked.expert == "law"
        assert "ir3de" not in unasked.json, "which nobody asked for"


def test_a_stream_gives_the_same_answer(here: World) -> None:
    asked: dict[str, Any] = {"model": "ir3de", "messages": LAW, "max_tokens": 6, "temperature": 0}
    asked["extra_body"] = {"ir3de": {}}
    whole = client(here).chat.completions.create(**asked)
    options = {"include_usage": True}
    chunks = list(client(here).chat.completions.create(**asked, stream=True, stream_options=options))
    assert {chunk.model for chunk in chunks} == {"law"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].ir3de == whole.ir3de
    *pieces, end, usage = chunks
    assert "".join(piece.choices[0].delta.content for piece in pieces) == whole.choices[0].message.content
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert usage.usage == whole.usage


def test_an_end_of_the_experts_own_is_told_from_a_cut(
    expert_specs: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router's tokenizer counts neither the tokens of the answer nor why it ended: the expert does."""
    with world(expert_specs, Settings(limits=LIMITS), names=()) as made:
        expert = made.gateway.serving.experts["law"]
        source = expert.pool.source("law")
        monkeypatch.setattr(type(source.tokenizer), "all_special_ids", list(range(len(source.tokenizer))))
        assert made.ask(max_tokens=6).json["choices"][0]["finish_reason"] == "stop", "its last token ends an answer"


def test_a_conversation_keeps_its_roles(here: World, pipe: IR3DERoutingPipeline) -> None:
    chat: Any = [
        {"role": "system", "content": "show python"},
        {"role": "user", "content": [{"type": "text", "text": "debug my loop"}]},
        {"role": "assistant", "content": "how"},
        {"role": "user", "content": "why"},
    ]
    asked: dict[str, Any] = {"model": "code", "messages": chat, "max_tokens": 5, "temperature": 0}
    answer = client(here).chat.completions.create(**asked)
    expected = pipe(chat, experts=["code"], max_new_tokens=5, do_sample=False)["generated_text"]
    assert answer.choices[0].message.content == expected


def test_a_stop_string_ends_an_answer_before_it(here: World) -> None:
    create = client(here).chat.completions.create
    asked: dict[str, Any] = {"model": "law", "messages": LAW, "max_tokens": 12, "temperature": 0}
    text = create(**asked).choices[0].message.content
    stop = text.split()[3]
    expected = text[: text.index(stop)]
    answer = create(**asked, stop=["never", stop])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 12
    chunks = list(create(**asked, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_stop_strings_across_pieces() -> None:
    stops = Stops(["abc", "xy"])
    assert [stops.passed(piece) for piece in ("1a", "b", "d", "x")] == ["", "1", "a", "b"]
    assert stops.rest() == "dx"
    assert Stops([]).passed("all") == "all"
    found = Stops(["bc"])
    assert [found.passed(piece) for piece in ("ab", "c", "d")] == ["a", "", ""]
    assert (found.found, found.rest()) == ("bc", "")


def test_a_seed_repeats_a_sampled_answer_and_several_differ(here: World) -> None:
    create = client(here).chat.completions.create
    asked: dict[str, Any] = {"model": "law", "messages": LAW, "temperature": 1.5, "max_tokens": 12}
    texts = {create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, 2)}
    assert len(texts) == 2
    answer = create(**asked, seed=1, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} >= texts
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 36)
    chunks = list(create(**asked, seed=1, n=3, stream=True))
    joined = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in range(3)]
    assert joined == [choice.message.content for choice in answer.choices]


def test_log_probabilities_are_of_the_tokens_that_came(here: World) -> None:
    asked: dict[str, Any] = {"model": "law", "messages": LAW, "temperature": 0, "max_tokens": 5}
    answer = client(here).chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs.content
    assert len(told) == 5
    for entry in told:
        assert entry.token == entry.top_logprobs[0].token, "the most probable one, since it was not sampled"
        assert entry.logprob == entry.top_logprobs[0].logprob > entry.top_logprobs[1].logprob
    assert answer.choices[0].message.content.split() == [entry.token for entry in told]
    chunks = list(client(here).chat.completions.create(**asked, logprobs=True, stream=True))
    streamed = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in told]


def test_log_probabilities_in_the_form_of_each_api(here: World) -> None:
    asking = client(here)
    common: dict[str, Any] = {"model": "law", "temperature": 0}
    text = {"prompt": "the court and a judge", "max_tokens": 5, "logprobs": 2}
    choice = asking.completions.create(**common, **text).choices[0]
    told = choice.logprobs
    assert [len(column) for column in (told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset)] == [
        5
    ] * 4
    assert choice.text.split() == told.tokens
    for place, token, value, others in zip(
        told.text_offset, told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert choice.text[place:].split()[0] == token
        assert (max(others, key=others.get), others[token], len(others)) == (token, value, 2)
    alone = asking.completions.create(**common, **{**text, "logprobs": 0}).choices[0].logprobs
    assert alone.top_logprobs == [{token: value} for token, value in zip(told.tokens, told.token_logprobs, strict=True)]
    chunks = list(asking.completions.create(**common, **text, stream=True))
    streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for each in streamed for token in each.tokens] == told.tokens
    assert [place for each in streamed for place in each.text_offset] == told.text_offset

    given = {"input": "the court and a judge", "max_output_tokens": 5}
    for more in ({"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}):
        answer = asking.responses.create(**common, **given, **more)
        entries = answer.output[0].content[0].logprobs
        assert [entry.token for entry in entries] == answer.output_text.split()
        assert [entry.logprob for entry in entries] == told.token_logprobs, "law has no template"
        assert {len(entry.top_logprobs) for entry in entries} == {more.get("top_logprobs", 0)}
        events = list(asking.responses.create(**common, **given, **more, stream=True))
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert [entry.token for event in deltas for entry in event.logprobs] == [entry.token for entry in entries]
        assert events[-1].response.output[0].content[0].logprobs == entries
    assert asking.responses.create(**common, **given).output[0].content[0].logprobs == []


def test_log_probabilities_end_with_the_text(here: World) -> None:
    asked: dict[str, Any] = {"model": "law", "messages": LAW, "max_tokens": 12, "temperature": 0, "logprobs": True}
    text = client(here).chat.completions.create(**asked).choices[0].message.content
    for stop in (text.split()[3], text.split()[3][1:]):
        choice = client(here).chat.completions.create(**asked, stop=stop).choices[0]
        assert choice.message.content == text[: text.index(stop)]
        tokens = [entry.token for entry in choice.logprobs.content]
        assert tokens == text.split()[:3], "those that are wholly in it"


def test_penalties_and_a_bias_change_an_answer(here: World) -> None:
    create = client(here).chat.completions.create
    asked: dict[str, Any] = {"model": "law", "messages": LAW, "temperature": 0, "max_tokens": 24}
    plain = create(**asked).choices[0].message.content.split()
    fresh = create(**asked, frequency_penalty=2, presence_penalty=2).choices[0].message.content.split()
    assert len(set(fresh)) / len(fresh) > len(set(plain)) / len(plain)
    token = here.gateway.serving.experts["law"].pool.source("law").tokenizer.convert_tokens_to_ids("jury")
    assert set(create(**asked, logit_bias={token: 100}).choices[0].message.content.split()) == {"jury"}


def test_plain_text_is_continued(here: World, pipe: IR3DERoutingPipeline) -> None:
    answer = client(here).completions.create(model="law", prompt="the court and", max_tokens=5, temperature=0)
    assert (
        answer.choices[0].text
        == pipe("the court and", experts=["law"], max_new_tokens=5, do_sample=False)["generated_text"]
    )
    chunks = list(
        client(here).completions.create(model="law", prompt="the court and", max_tokens=5, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_plain_text_is_continued_without_template_and_system_prompt(
    here: World, expert_specs: dict[str, dict[str, Any]]
) -> None:
    said = "the court and a judge"
    source = here.gateway.serving.experts["code"].pool.source("code")
    with here.gateway.serving.experts["code"].pool.load("code").using({"name": "code"}) as model:
        ids = source.tokenizer(said, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    asked: dict[str, Any] = {"model": "code", "prompt": said, "max_tokens": 5, "temperature": 0}
    answer = client(here).completions.create(**asked)
    assert answer.choices[0].text == source.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.usage.prompt_tokens == 5
    chat = here.ask(model="code", max_tokens=5, temperature=0).json["choices"][0]["message"]["content"]
    assert answer.choices[0].text != chat


def test_responses_are_answered_too(here: World) -> None:
    create = client(here).responses.create
    asked: dict[str, Any] = {"model": "ir3de", "input": "the court and a judge", "max_output_tokens": 6}
    answer = create(**asked, temperature=0)
    assert answer.model == "law"
    assert answer.status == "incomplete"
    chat = client(here).chat.completions.create(model="law", messages=LAW, max_tokens=6, temperature=0)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.output_tokens == 6
    with client(here).responses.stream(**asked, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"
    items = [{"role": "user", "content": [{"type": "input_text", "text": "the court and a judge"}]}]
    assert create(**{**asked, "input": items}, temperature=0).output_text == answer.output_text
    assert here.ask("responses", input="x", messages=None, previous_response_id="resp_1").status == 400


def test_messages_are_answered_too(here: World) -> None:
    chat = client(here).chat.completions.create(model="law", messages=LAW, max_tokens=6, temperature=0)
    asked = {"max_tokens": 6, "temperature": 0, "system": [{"type": "text", "text": ""}]}
    answer = here.ask("messages", **asked).json
    assert answer["content"] == [{"type": "text", "text": chat.choices[0].message.content}]
    assert (answer["stop_reason"], answer["usage"]) == ("max_tokens", {"input_tokens": 5, "output_tokens": 6})
    streamed = here.ask("messages", **asked, stream=True).body.decode()
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events][:2] == ["message_start", "content_block_start"]
    assert [event["type"] for event in events][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == chat.choices[0].message.content


def test_a_stop_sequence_is_named_in_messages(here: World) -> None:
    asked: dict[str, Any] = {"model": "law", "max_tokens": 12, "temperature": 0}
    text = here.ask("messages", **asked).json["content"][0]["text"]
    stop = text.split()[3]
    answer = here.ask("messages", **asked, stop_sequences=["never", stop]).json
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert answer["content"][0]["text"] == text[: text.index(stop)]
    streamed = here.ask("messages", **asked, stop_sequences=[stop], stream=True).body.decode()
    assert f'"delta":{{"stop_reason":"stop_sequence","stop_sequence":"{stop}"}}' in streamed
    cut = here.ask("messages", **asked, stop_sequences=["never"]).json
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("max_tokens", None)


def test_reasoning_comes_in_responses(expert_specs: dict[str, dict[str, Any]]) -> None:
    def generate(*_: Any) -> Iterator[Piece]:
        yield from (Piece("reasoning", "hm, "), Piece("reasoning", "hm"), Piece("text", "guilty"))
        yield Piece("end", finish="stop", prompt_tokens=1, completion_tokens=3)

    with world(expert_specs, Settings(limits=LIMITS), names=(), generate=generate) as made:
        asked: dict[str, Any] = {"model": "law", "input": "the court"}
        answer = client(made).responses.create(**asked)
        assert [item.type for item in answer.output] == ["reasoning", "message"]
        assert [part.text for part in answer.output[0].content] == ["hm, hm"]
        assert answer.output_text == "guilty"
        with client(made).responses.stream(**asked) as stream:
            events = list(stream)
            assert stream.get_final_response().output[0].content == answer.output[0].content
        said = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        assert said == ["hm, ", "hm"]
        assert [event.sequence_number for event in events] == list(range(len(events)))


# Who waits, and who leaves.


class Slow:
    """Stands in for the generation: a word every 20 ms, and it knows when it is closed."""

    def __init__(self) -> None:
        self.open = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, _: Any, __: str, order: Any, max_tokens: int, *___: Any) -> Iterator[Piece]:
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            for _ in range(max_tokens):
                time.sleep(0.02)
                yield Piece("text", f"{order.prompt[-1]['content']} ")
            yield Piece("end", finish="stop", prompt_tokens=1, completion_tokens=max_tokens)
        finally:
            with self._lock:
                self.open -= 1


@pytest.fixture
def slow(expert_specs: dict[str, dict[str, Any]]) -> Iterator[tuple[World, Slow]]:
    """A gateway whose answers take their time."""
    generate = Slow()
    with world(expert_specs, Settings(limits=LIMITS), names=(), generate=generate) as made:
        yield made, generate


def test_a_cancelled_stream_stops_the_generation(slow: tuple[World, Slow]) -> None:
    made, generate = slow
    with client(made).chat.completions.create(model="ir3de", messages=LAW, max_tokens=400, stream=True) as chunks:
        assert [next(chunks).model for _ in range(3)] == ["law"] * 3
        assert generate.open == 1
    made.wait(lambda: generate.open == 0, "a generation goes on")


def test_a_client_that_leaves_stops_the_generation(slow: tuple[World, Slow]) -> None:
    made, generate = slow
    with pytest.raises(openai.APITimeoutError):
        client(made).with_options(timeout=0.3).chat.completions.create(model="ir3de", messages=LAW, max_tokens=400)
    made.wait(lambda: generate.open == 0, "a generation goes on")


def test_answers_belong_to_their_requests_and_too_many_are_refused(slow: tuple[World, Slow]) -> None:
    made, generate = slow
    asking, told = client(made), list[str]()

    def ask(word: str) -> str:
        try:
            messages: Any = [{"role": "user", "content": word}]
            answer = asking.chat.completions.create(model="ir3de", messages=messages, max_tokens=20)
            return str(answer.choices[0].message.content)
        except openai.RateLimitError as error:
            told.append(error.message)
            return f"{error.code}, try again in {error.response.headers['retry-after']} s"

    words = [f"word{index}" for index in range(10)]
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(ask, words))
    assert answers.count("busy, try again in 1 s") == 6, "two are answered at once, two wait"
    assert all("4 requests are being answered or waiting already" in message for message in told)
    assert generate.most == 2
    for word, answer in zip(words, answers, strict=True):
        assert answer.startswith("busy") or answer == f"{word} " * 20
    made.wait(lambda: generate.open == 0, "a generation goes on")
    assert ask("again") == "again " * 20, "there is room again"


def test_who_waits_and_leaves_is_forgotten(slow: tuple[World, Slow]) -> None:
    made, generate = slow
    create = client(made).chat.completions.create
    held = [create(model="ir3de", messages=LAW, max_tokens=400, stream=True) for _ in range(2)]
    for _ in range(3):  # more than may wait, one after another
        with pytest.raises(openai.APITimeoutError):
            client(made).with_options(timeout=0.2).chat.completions.create(model="ir3de", messages=LAW)
        time.sleep(0.05)
    for chunks in held:
        chunks.close()
    made.wait(lambda: generate.open == 0, "a generation goes on")
    assert create(model="ir3de", messages=LAW, max_tokens=1).model == "law"


# What is refused.


HOSTILE: dict[str, Any] = {
    "a long prompt": {"messages": [{"role": "user", "content": "court " * 1000}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]}]},
    "an image beside text": {"messages": [*LAW, {"role": "user", "content": [{"type": "image_url"}]}]},
    "an unknown role": {"messages": [*LAW, {"role": "root", "content": "court"}]},
    "a tool's result without a call": {"messages": [*LAW, {"role": "tool", "tool_call_id": "1", "content": "x"}]},
    "huge max_tokens": {"max_tokens": 10**9},
    "no tokens": {"max_tokens": 0},
    "half a token": {"max_completion_tokens": 0.5},
    "hot": {"temperature": 9},
    "many answers": {"n": 100},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "a stream that is no flag": {"stream": "yes"},
    "a stop that is none": {"stop": [""]},
    "a negative seed": {"seed": -1},
    "sound": {"modalities": ["audio"]},
    "a bias of words": {"logit_bias": {"court": 1}},
    "a bias of a token that there is not": {"logit_bias": {"999999": 1}},
    "a bias of a number without end": {"logit_bias": {"9" * 5000: 1}},
    "a bias that is infinite to a model": {"logit_bias": {"1": 1e300}},
    "half a character": {"messages": [{"role": "user", "content": "the court \ud83d"}]},
}


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=HOSTILE)
def test_what_an_expert_here_cannot_do_is_refused_at_once(
    here: World, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for _ in range(6):  # more than failures that have an expert left alone
            answered = here.ask(**request_)
            assert answered.status == 400
    assert answered.json["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in caplog.text
    assert here.ask(max_tokens=1).status == 200


def test_what_holds_half_a_character_is_named(here: World) -> None:
    half: dict[str, Any] = {"messages": [{"role": "user", "content": "the court \ud83d"}]}
    told = here.ask(**half).json["error"]
    assert told["param"] == "messages"
    assert told["message"].startswith("The conversation (`messages`) has half a character")
    asked = read_ask(CHAT, json.dumps({"model": "law", "messages": LAW}).encode(), {}, LIMITS, ["law"], "")
    tools = [{"function": {"name": "f", "description": "\ud83d"}}]
    refused = _refused(read_order(asked, LIMITS)._replace(tools=tools), TypeError())
    assert refused.param == "tools"
    assert refused.message.startswith("`tools` has half a character")


@pytest.fixture(scope="module")
def strict(expert_specs: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway whose expert for law has a template that takes no jury, and window and tokenizer of its own."""
    folder = tmp_path_factory.mktemp("strict")
    tiny.expert(folder, seed=3, chat=True)
    tokenizer = tiny.tokenizer(chat=True)
    refuses = "{% if 'jury' in message['content'] %}{{ raise_exception('No jury here') }}{% endif %}"
    tokenizer.chat_template = tiny.TEMPLATE.replace("%}<eos>", f"%}}{refuses}<eos>", 1)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    with world({**expert_specs, "law": {"model": str(folder)}}, Settings(limits=LIMITS), names=()) as made:
        yield made


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("the court and a jury", "unsupported_value", "No jury here"),
        ("court " * 70, "context_length_exceeded", "its window holds 64: shorten it"),
    ],
)
def test_what_one_expert_refuses_another_may_take(strict: World, said: str, code: str, words: str) -> None:
    chat = [{"role": "user", "content": said}]
    for _ in range(6):
        alone = strict.ask(model="law", messages=chat)
        assert (alone.status, alone.code) == (400, code)
        assert words in alone.json["error"]["message"]
        answered = strict.ask(messages=chat, max_tokens=1)
        assert (answered.status, answered.expert != "law") == (200, True)
    assert strict.ask(max_tokens=1).expert == "law"


def test_a_template_that_takes_nothing_is_the_experts_fault(
    expert_specs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    tiny.expert(tmp_path, seed=3, chat=True)
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    tokenizer.save_pretrained(tmp_path)
    with world({**expert_specs, "law": {"model": str(tmp_path)}}, Settings(limits=LIMITS), names=()) as made:
        assert made.ask(model="law").status == 502
        answered = made.ask(max_tokens=1, ir3de={})
        assert answered.json["ir3de"]["failures"] == [{"expert": "law", "error": "it could not generate"}]


def test_json_of_a_tokenizer_that_cannot_be_held_to_it_is_refused(here: World) -> None:
    pytest.importorskip("llguidance")
    for _ in range(6):
        refused = here.ask(response_format={"type": "json_object"})
        assert (refused.status, refused.code) == (400, "unsupported_value")
        assert "tokenizer" in refused.json["error"]["message"]
    assert here.ask(max_tokens=1).expert == "law"


def test_the_last_of_several_seeds_begins_anew(here: World) -> None:
    answer = here.ask(seed=2**32 - 1, n=2, temperature=1.5, max_tokens=8).json
    first = here.ask(seed=0, temperature=1.5, max_tokens=8).json
    assert answer["choices"][1]["message"] == first["choices"][0]["message"]


def test_a_fault_of_the_gateways_own_at_another_address_is_told_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> None:
        raise KeyError

    with world(settings=Settings(default_expert="law")) as made:
        assert made.send("GET", "/v1/files").status == 200
        monkeypatch.setattr(Forwarder, "open", fails)
        answered = made.send("GET", "/v1/files", x_request_id="r1")
        assert (answered.status, answered.code) == (500, "internal_error")
        assert answered.headers["x-request-id"] == "r1"
        metrics = made.send("GET", "/metrics").body.decode()
        assert 'api="other",expert="",outcome="error"' in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_what_can_just_be_read_and_not_be_written_again_is_refused(here: World, stream: bool) -> None:
    """A response holds the request's `metadata`, a level deeper than it came."""
    asked = {"model": "law", "input": "court", "max_output_tokens": 1, "stream": stream}
    statuses = []
    for depth in range(900, 1010, 3):
        nested = '{"a":' * depth + "1" + "}" * depth
        body = f'{json.dumps(asked)[:-1]}, "metadata": {nested}}}'.encode()
        statuses.append(here.send("POST", "/v1/responses", body).status)
    assert set(statuses) == {200, 400}
    assert statuses == sorted(statuses)


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_gateways_own_is_told_in_the_form_of_its_api(
    here: World, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = "".join(("sec", "ret"))

    def fails(*_: Any) -> None:
        raise KeyError(said)

    def lines() -> list[str]:
        return [each.message for each in caplog.records if each.name == "ir3de.requests"]

    monkeypatch.setattr(MessageShape, "end" if stream else "whole", fails)
    with caplog.at_level(logging.INFO):
        answered = here.ask("messages", max_tokens=2, stream=stream, headers={"x-request-id": "r1"})
        here.wait(lambda: any('"r1"' in line for line in lines()), "the line of the request, which follows it")
    told = answered.json if not stream else json.loads(answered.body.decode().rsplit("data: ", 1)[1])
    assert (told["type"], told["error"]["type"]) == ("error", "api_error")
    assert "r1" in told["error"]["message"]
    assert answered.headers["x-request-id"] == "r1"
    assert answered.status == (200 if stream else 500)
    [line] = [json.loads(each) for each in lines() if '"r1"' in each]
    assert line["outcome"] == "error"
    assert "test_gateway_local" in caplog.text, "where it was"
    assert said not in caplog.text + answered.body.decode()


def test_a_prompt_beyond_the_window_is_refused_as_openai_does(here: World) -> None:
    for fields in ({"messages": [{"role": "user", "content": "court " * 600}]}, {"max_tokens": 399}):
        messages = fields.get("messages", [{"role": "user", "content": "court " * 300}])
        answered = here.ask(**{**fields, "messages": messages})
        assert (answered.status, answered.code) == (400, "context_length_exceeded")


def test_what_an_expert_fails_with_stays_here(
    expert_specs: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    specs = {"code": expert_specs["code"], "law": {"model": "/secret/folder"}, "math": {"model": "/secret/other"}}
    with world(specs, Settings(limits=LIMITS), names=()) as made, caplog.at_level(logging.DEBUG):
        failed = made.ask(model="law")
        answer = made.ask(max_tokens=4, ir3de={})
        unread = made.ask(stream=True, model="math")
        assert failed.status == unread.status == 502
        assert failed.json["error"]["type"] == "server_error"
        assert answer.json["model"] == "code", "the next that can"
        assert answer.json["ir3de"]["failures"][0] == {"expert": "law", "error": "it could not generate"}
        for text in (failed.body.decode(), answer.body.decode(), caplog.text):
            assert "secret" not in text


def test_an_expert_that_fails_in_the_middle_ends_the_stream_with_an_error(
    expert_specs: dict[str, dict[str, Any]],
) -> None:
    def generate(*_: Any) -> Iterator[Piece]:
        yield Piece("text", "half")
        raise ValueError("secret")

    with world(expert_specs, Settings(limits=LIMITS), names=(), generate=generate) as made:
        chunks = client(made).chat.completions.create(model="ir3de", messages=LAW, stream=True)
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "half"]
        with pytest.raises(openai.APIError, match="in the middle"):
            next(chunks)
        assert made.ask().status == 502


def test_a_server_of_plain_text_is_an_expert_too() -> None:
    details: dict[str, Any] = {"finish_reason": "length", "generated_tokens": 3, "input_length": 5, "seed": None}

    async def continues(request: web.Request, received: Received) -> web.StreamResponse:
        asked = received.json
        assert asked["inputs"] == "the court and a judge"
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        most = asked["parameters"]["max_new_tokens"]
        for index, word in enumerate(("guilty", " as", " charged", "</s>")[:most]):
            token = {"id": index, "text": word, "logprob": -1.0, "special": word == "</s>"}
            told = details if index == most - 1 == 2 else None
            await response.write(f"data:{json.dumps({'index': index, 'token': token, 'details': told})}\n\n".encode())
        return response

    with world({"law": {"task": "text"}}, responds={"law": continues}) as made:
        answer = made.ask(max_tokens=3).json
        assert answer["choices"][0]["message"]["content"] == "guilty as charged"
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        silent = made.ask(max_tokens=4).json
        assert silent["choices"][0]["finish_reason"] is None, "the server did not say"
        chunks = list(client(made).chat.completions.create(model="law", messages=LAW, stream=True, stop=[" char"]))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "guilty as"
        assert chunks[-1].choices[0].finish_reason == "stop"
        tools = [{"type": "function", "function": {"name": "look"}}]
        assert made.ask(tools=tools).expert in ("code", "math")
