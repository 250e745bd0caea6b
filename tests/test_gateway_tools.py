"""Tools and JSON of experts on this machine: what is read of an order, what is parsed of an answer, and its shapes."""

import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ir3de.gateway.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from ir3de.gateway.errors import GatewayError
from ir3de.gateway.generation import Piece, _Reader, can_call_tools
from ir3de.gateway.limits import Limits
from ir3de.gateway.orders import Order, read_order
from ir3de.gateway.requests import read_ask
from ir3de.gateway.settings import Settings
from ir3de.gateway.shapes import shape_of
from ir3de.scripts.bench.fuzz import Fuzz

from .gateway_world import LAW, world

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.at }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "π"}}\n</tool_call>'


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, with the template of a model that calls tools."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|endoftext|>"]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.chat_template = TEMPLATE
    return fast


TOKENIZER = byte_tokenizer()
SOURCE: Any = SimpleNamespace(tokenizer=TOKENIZER, config=SimpleNamespace(model_type="qwen2"))


def order(api: Api, **fields: Any) -> Order:
    """The order of a request."""
    body = {"model": "law", "messages": LAW, **fields}
    kept = {key: value for key, value in body.items() if value is not None}
    return read_order(read_ask(api, json.dumps(kept).encode(), {}, Limits(), ["law"], ""), Limits())


def read(text: str, asked: Order) -> list[Piece]:
    """The pieces of an answer that a model gives token by token."""
    pieces: list[Piece] = []
    reader = _Reader(SOURCE, asked, 0, pieces.append, None)
    chat = TOKENIZER.apply_chat_template(LAW, tokenize=False, add_generation_prompt=True)
    reader.put(torch.tensor([TOKENIZER(chat)["input_ids"]]))
    for token in TOKENIZER(text)["input_ids"]:
        reader.put(torch.tensor([token]))
    reader.end()
    return [*pieces, reader.ending(1000)]


def test_calls_are_found_in_an_answer_and_what_is_around_them_is_text() -> None:
    assert can_call_tools(SOURCE)
    pieces = read(f"<think>hm, hm</think>Let me look. {CALL}<|im_end|>", order(CHAT, tools=[{"function": TOOL}]))
    assert "".join(piece.text for piece in pieces if piece.kind == "reasoning") == "hm, hm"
    assert "".join(piece.text for piece in pieces if piece.kind == "text").strip() == "Let me look."
    [call] = [piece for piece in pieces if piece.kind == "call"]
    assert (call.name, json.loads(call.text)) == ("look", {"at": "π"})
    assert pieces[-1].finish == "tool_calls"
    assert pieces[-1].completion_tokens > 60


def test_a_call_that_is_cut_is_no_call() -> None:
    pieces = read(CALL[:40], order(CHAT, tools=[{"function": TOOL}]))
    assert [piece.kind for piece in pieces if piece.kind == "call"] == []
    assert pieces[-1].finish == "stop"


def shaped(api: Api, pieces: list[Piece], **fields: Any) -> dict[str, Any]:
    return shape_of(api, "law", fields).whole(pieces)


def streamed(api: Api, pieces: list[Piece], **fields: Any) -> list[dict[str, Any]]:
    shape = shape_of(api, "law", fields)
    events = [*shape.begin(), *(event for piece in pieces for event in shape.event(piece)), *shape.end()]
    for event in events:
        lines = shape.text(event).decode()
        assert lines.endswith("\n\n")
        assert json.loads(lines.split("data: ", 1)[1]) == event
    return events


def test_calls_in_the_shape_of_each_api() -> None:
    pieces = read(f"Let me look. {CALL}<|im_end|>", order(CHAT, tools=[{"function": TOOL}]))
    choice = shaped(CHAT, pieces)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Let me look."
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"at": "π"}
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(CHAT, pieces)]
    [call] = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert (call["index"], call["function"]["name"]) == (0, "look")

    message = shaped(MESSAGES, pieces)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    assert message["content"][1]["input"] == {"at": "π"}
    assert message["stop_reason"] == "tool_use"
    events = streamed(MESSAGES, pieces)
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["text", "tool_use"]
    assert sum(event["type"] == "content_block_stop" for event in events) == 2

    response = shaped(RESPONSES, pieces)
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["status"] == "completed"
    events = streamed(RESPONSES, pieces)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]


def test_a_loop_of_tools_is_read_alike_in_each_shape() -> None:
    asks = "the court and a judge"
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "π"}'}}
    chat = order(
        CHAT,
        messages=[
            *LAW,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3.14"},
        ],
        tools=[{"type": "function", "function": TOOL}],
    )
    use = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "π"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3.14"}]}
    messages = order(
        MESSAGES,
        messages=[*LAW, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}],
        tools=[{"name": "look", "description": "", "input_schema": TOOL["parameters"]}],
        max_tokens=9,
    )
    responses = order(
        RESPONSES,
        messages=None,
        input=[
            {"role": "user", "content": asks},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "π"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "3.14"},
        ],
        tools=[{"type": "function", **TOOL}],
    )
    assert chat.prompt == messages.prompt == responses.prompt
    assert chat.tools == messages.tools == responses.tools == [{"type": "function", "function": TOOL}]
    text = TOKENIZER.apply_chat_template(cast(Any, chat.prompt), tools=cast(Any, chat.tools), tokenize=False)
    assert "π" in text
    assert "3.14" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": True},
        {"tools": [{"function": TOOL}], "tool_choice": "required"},
        {"messages": [{"role": "assistant", "tool_calls": True}, {"role": "user", "content": "a"}]},
        {"tools": [{"function": TOOL}], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        {"messages": [*LAW, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [*LAW, {"role": "assistant", "tool_calls": ["look"]}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    ],
)
def test_tools_that_cannot_be_called_here_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as refused:
        order(CHAT, **fields)
    assert refused.value.status == 400


@pytest.mark.parametrize("given", [True, 0.1, 10**30, {"a": 1}])
def test_an_input_that_is_neither_text_nor_a_list_is_refused(given: Any) -> None:
    with pytest.raises(GatewayError, match="input"):
        order(RESPONSES, messages=None, input=given)


def test_whatever_a_request_holds_it_is_an_order_or_refused() -> None:
    fuzz = Fuzz(seed=3)
    apis = {api.path: api for api in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)}
    made = 0
    for _ in range(3000):
        api, data, headers = fuzz.request()
        with suppress(GatewayError):
            read_order(read_ask(apis[api], data, headers, Limits(), ("ir3de", "math"), ""), Limits())
            made += 1
    assert made > 500


def test_a_temperature_of_next_to_nothing_is_none() -> None:
    assert order(CHAT, temperature=5e-324).options == {"do_sample": False}


def test_no_tool_is_offered_where_none_may_be_called() -> None:
    assert order(CHAT, tools=[{"function": TOOL}], tool_choice="none").tools == []


@pytest.fixture(scope="module")
def bytes_expert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of bytes with random weights; returns its folder."""
    folder = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER) + 5,  # more rows than tokens, as many models have
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def test_json_of_a_schema(bytes_expert: str) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": ["guilty", "innocent"]}, "years": {"type": "integer", "maximum": 99}},
        "required": ["verdict", "years"],
        "additionalProperties": False,
    }
    with world({"law": {"model": bytes_expert}}, Settings(), names=()) as made:
        wanted = {"type": "json_schema", "json_schema": {"name": "v", "schema": schema}}
        for seed in range(3):
            answered = made.ask(response_format=wanted, max_tokens=200, temperature=1, seed=seed)
            choice = answered.json["choices"][0]
            verdict = json.loads(choice["message"]["content"])
            assert verdict["verdict"] in ("guilty", "innocent")
            assert isinstance(verdict["years"], int)
            assert choice["finish_reason"] == "stop"
        text = {"format": {"type": "json_schema", "name": "v", "schema": schema}}
        answered = made.ask(
            "responses", messages=None, input="the court", text=text, max_output_tokens=200, model="law"
        )
        assert json.loads(answered.json["output"][0]["content"][0]["text"])["verdict"] in ("guilty", "innocent")
        bad = {"type": "json_schema", "json_schema": {"name": "v", "schema": {"type": "nonsense"}}}
        refused = made.ask(response_format=bad)
        assert (refused.status, "schema" in refused.json["error"]["message"]) == (400, True)
