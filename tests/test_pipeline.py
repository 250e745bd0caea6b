"""The pipeline: what goes in, what comes out, and that nothing of one call is left for the next."""

import copy
import json
import math
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from ir3de import IR3DEModel, IR3DERoutingPipeline
from ir3de.configuration_ir3de import VARIANTS
from ir3de.experts_ir3de import ExpertPool
from ir3de.pipeline_ir3de import EmptyPromptError
from ir3de.policy_ir3de import Policy
from ir3de.prompts_ir3de import token_ids_of
from ir3de.scripts.reports.route import describe

from . import tiny

CODE, LAW, MATH = "debug the python function", "the court and a judge", "find the square root of this prime"
PROMPTS = [CODE, LAW, MATH, "contract statute", "integer loop", CODE]
EXPERTS = ["code", "law", "math", "law", "code", "code"]
FRAME, PROMPTS_2D = pandas.DataFrame({"text": [CODE]}), np.array([[CODE]])
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def chat(text: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "statute law court"}, {"role": "user", "content": text}]


def experts(records: Any) -> list[str]:
    return [record["expert"] for record in records]


# Inputs.


def test_a_route_is_told_in_words_without_what_acts_in_a_terminal() -> None:
    prompt = "court \x1b[31mjudge\x9b2J\r\x07 ü\tjury\nstatute"
    told = describe(prompt, IR3DERoutingPipeline(tiny.router(), device="cpu")(prompt, generate=False, explain=True))
    assert told.startswith("court \\x1b[31mjudge\\x9b2J\\r\\x07 ü\tjury\nstatute\n  -> law")
    assert not set(told) & set("\x1b\x9b\r\x07")


def test_a_string_gives_a_record(pipe: IR3DERoutingPipeline) -> None:
    record = pipe(LAW, generate=False)
    assert record.keys() == {"expert", "score", "ranking"}
    assert record["expert"] == "law"
    assert record["ranking"][0] == {"expert": "law", "score": record["score"]}
    assert {entry["expert"] for entry in record["ranking"]} == set(tiny.DOMAINS)
    scores = [entry["score"] for entry in record["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert math.isclose(sum(scores), 1)
    assert json.loads(json.dumps(record)) == record


def test_lists_and_tuples_give_lists(pipe: IR3DERoutingPipeline) -> None:
    for inputs in (PROMPTS, tuple(PROMPTS)):
        records = pipe(inputs, generate=False)
        assert isinstance(records, list)
        assert experts(records) == EXPERTS
    assert pipe([], generate=False) == []
    assert pipe([]) == []
    assert pipe(PROMPTS, generate=False) == [pipe(prompt, generate=False) for prompt in PROMPTS]


def test_generators_and_data_sets_are_read_lazily(pipe: IR3DERoutingPipeline) -> None:
    rows = Dataset.from_dict({"text": PROMPTS})

    class OfTorch(torch.utils.data.Dataset[str]):
        """One that, like many, knows no end but its length."""

        def __len__(self) -> int:
            return len(PROMPTS)

        def __getitem__(self, index: int) -> str:
            return PROMPTS[index % len(PROMPTS)]

    for inputs in ((p for p in PROMPTS), KeyDataset(rows, "text"), rows["text"], iter(PROMPTS), OfTorch()):
        records = pipe(inputs, generate=False)
        assert isinstance(records, Iterator)
        assert experts(records) == EXPERTS
    assert list(pipe(iter([]), generate=False)) == []

    read: list[str] = []
    records = pipe((read.append(p) or p for p in PROMPTS), generate=False, batch_size=2)
    assert read == []
    next(records)
    assert read == PROMPTS[:2]


def test_any_iterable_is_read_in_its_own_order(pipe: IR3DERoutingPipeline) -> None:
    numbers = range(len(PROMPTS))[::-1]
    series = pandas.Series(PROMPTS, index=numbers)
    array = np.array(PROMPTS)
    columns = (
        series,
        series.astype("string"),
        array,
        array.astype(object),
        deque(PROMPTS),
        dict(enumerate(PROMPTS)).values(),
    )
    for inputs in columns:
        assert experts(pipe(inputs, generate=False)) == EXPERTS, type(inputs)
    frame = pandas.DataFrame({"text": PROMPTS, "expert": EXPERTS}, index=numbers)
    law = frame[frame.expert == "law"]  # without the first rows
    assert experts(pipe(law.text, generate=False)) == ["law", "law"]
    chats = pandas.Series([chat(CODE), LAW, chat(MATH)], index=["a", "a", "b"])
    assert experts(pipe(chats, generate=False)) == ["code", "law", "math"]
    assert list(pipe(law.text, **GREEDY)) == [pipe(prompt, **GREEDY) for prompt in (LAW, "contract statute")]


def test_a_chat_is_routed_on_its_last_user_message(pipe: IR3DERoutingPipeline) -> None:
    assert pipe(chat(CODE), generate=False)["expert"] == "code"
    turns = [*chat(CODE), {"role": "assistant", "content": LAW}, {"role": "user", "content": MATH}]
    assert pipe(turns, generate=False)["expert"] == "math"
    tool = [*turns, {"role": "assistant", "content": None}, {"role": "tool", "content": LAW}]
    assert pipe(tool, generate=False)["expert"] == "math"
    assert pipe([{"role": "system", "content": LAW}], generate=False)["expert"] == "law"


def test_texts_chats_and_parts_of_content_mix(pipe: IR3DERoutingPipeline) -> None:
    parts = [{"type": "text", "text": "square root"}, {"type": "image"}, {"type": "text", "text": "of a prime"}]
    mixed = [chat(CODE), LAW, chat(parts), chat("jury")]
    assert experts(pipe(mixed, generate=False)) == ["code", "law", "math", "law"]
    assert experts(pipe([chat(CODE), chat(LAW)], generate=False)) == ["code", "law"]
    assert experts(pipe(iter(mixed), generate=False)) == ["code", "law", "math", "law"]


def test_missing_values_and_halves_of_characters_lose_no_other_prompt(pipe: IR3DERoutingPipeline) -> None:
    records = pipe([CODE, None, float("nan"), f"{CODE} \ud83d"], generate=False)
    assert [record["expert"] for record in records] == ["code", None, None, "code"]
    assert [("reason" in record) for record in records] == [False, True, True, False]
    assert pipe(f"{CODE} \ud83d", generate=False, explain=True)["expert"] == "code"


@pytest.mark.parametrize("field", ["min_score", "second_below", "cost_weight", "latency_weight", "stickiness", "top_n"])
def test_an_option_of_another_kind_is_named(pipe: IR3DERoutingPipeline, field: str) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be a"):
        pipe(CODE, generate=False, **{field: "0.5"})


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        5,
        b"debug",
        {"role": "user", "content": CODE},
        [[CODE]],
        [CODE, 3],
        [{"role": "user"}],
        PROMPTS_2D,
        FRAME,
        bytearray(b"a"),
    ],
)
def test_what_is_neither_text_nor_chat_is_a_type_error(pipe: IR3DERoutingPipeline, inputs: Any) -> None:
    with pytest.raises(TypeError, match=r"[Ee]xpected text|`role` and a `content`"):
        list(pipe(inputs, generate=False))


@pytest.mark.parametrize("empty", ["", " \n", chat(""), chat([{"type": "image"}]), chat(None)])
def test_an_empty_prompt_is_refused_and_among_others_has_a_record_that_says_so(
    pipe: IR3DERoutingPipeline, empty: Any
) -> None:
    assert issubclass(EmptyPromptError, ValueError)
    with pytest.raises(EmptyPromptError, match="Prompt 0 is empty"):
        pipe(empty)
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        pipe([LAW, empty], on_error="raise")
    [alone] = pipe([empty], generate=False)
    assert alone == {"expert": None, "score": 0.0, "ranking": [], "reason": "It is empty: nothing to route on."}
    law, none, code = pipe([LAW, empty, CODE], **GREEDY)
    assert [law, code] == pipe([LAW, CODE], **GREEDY)
    assert none == {**alone, "generated_text": None}
    assert list(pipe(iter([LAW, empty, CODE]), **GREEDY)) == [law, none, code]
    told = pipe([empty, LAW, empty], generate=False, explain=True)
    assert [len(record["tokens"]) for record in told] == [0, 5, 0]


@pytest.mark.parametrize("blank", ["   ", "\n\t", "\u3000\u00a0"])
def test_white_space_alone_is_empty_whatever_the_tokenizer_makes_of_it(router: IR3DEModel, blank: str) -> None:
    spaces = copy.deepcopy(router.tokenizer)
    spaces.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")  # a space is a token
    pipe = IR3DERoutingPipeline(router, tokenizer=spaces, device="cpu")
    assert spaces(blank, add_special_tokens=False)["input_ids"]
    with pytest.raises(EmptyPromptError, match="Prompt 0 is empty"):
        pipe(blank)
    with pytest.raises(EmptyPromptError, match="Prompt 0 is empty"):
        pipe([{"role": "user", "content": LAW}, {"role": "user", "content": blank}], generate=False, stickiness=0.5)
    [none, law] = pipe([blank, f" {LAW}"], generate=False)
    assert (none["expert"], none["reason"]) == (None, "It is empty: nothing to route on.")
    assert law == pipe(f" {LAW}", generate=False)
    assert law["expert"] is not None


def test_an_empty_turn_before_the_last_is_no_turn(pipe: IR3DERoutingPipeline) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text} for text in texts]

    expected = pipe(turns(LAW, CODE), generate=False, stickiness=0.5)
    assert pipe(turns(LAW, "", CODE), generate=False, stickiness=0.5) == expected
    with pytest.raises(ValueError, match="Prompt 0 is empty"):
        pipe(turns(LAW, ""), generate=False, stickiness=0.5)


def test_unknown_words_and_a_million_characters_are_routed(pipe: IR3DERoutingPipeline) -> None:
    assert pipe("zyzzyva qwerty", generate=False)["expert"] in tiny.DOMAINS
    start = "court " * pipe.model.config.max_length
    assert pipe(start + "python " * (1_000_000 // 7), generate=False) == pipe(start, generate=False)
    assert pipe.tokenizer.backend_tokenizer.truncation is None


class Reversing(PreTrainedTokenizerFast):
    """A tokenizer with a way of its own to encode, as some models have."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._encode_plus([each[::-1] for each in text], *args, **kwargs)


TEXTS = ["the court", "", "a <eos> in between\n\n", "Ünïcödé 東京 🚀 \u0000", "court " * 30]


@pytest.mark.parametrize("split_special_tokens", [False, True])
@pytest.mark.parametrize("kind", [PreTrainedTokenizerFast, Reversing])
def test_token_ids_are_what_calling_the_tokenizer_gives(kind: Any, split_special_tokens: bool) -> None:
    plain = tiny.tokenizer()
    options = {"pad_token": "<pad>", "eos_token": "<eos>", "split_special_tokens": split_special_tokens}
    tokenizer = kind(tokenizer_object=plain.backend_tokenizer, **options)
    expected = [ids[:20] for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"]]
    tokenizer(TEXTS, padding=True, truncation=True, max_length=2, split_special_tokens=not split_special_tokens)
    assert token_ids_of(tokenizer, TEXTS, 20) == expected
    assert tokenizer.backend_tokenizer.padding is None, "nor is padding left for the next to find"


def test_token_ids_of_a_real_tokenizer(quickstart: IR3DERoutingPipeline) -> None:
    texts = [*TEXTS, "def f(x):\n\treturn x ** 2  # 'L'été'", "<|im_start|>user\nhello<|im_end|>"]
    assert token_ids_of(quickstart.tokenizer, texts, 10**6) == quickstart.tokenizer(texts)["input_ids"]


# Choices of a call.


def test_explained_tokens_give_back_the_prompt(pipe: IR3DERoutingPipeline) -> None:
    prompts = ["  debug the   python\nfunction", LAW]
    records = pipe(prompts, generate=False, explain=True, num_votes=2)
    assert ["".join(token["token"] for token in record["tokens"]) for record in records] == prompts
    assert [len(record["tokens"]) for record in records] == [4, 5]
    for record in records:
        entropies = sorted(token["entropy"] for token in record["tokens"])
        counted = [token for token in record["tokens"] if token["counted"]]
        assert sorted(token["entropy"] for token in counted) == entropies[:2]
        assert {token["vote"] for token in counted} == {record["expert"]}
        assert all((token["weight"] > 0) == token["counted"] for token in record["tokens"])
    assert "tokens" not in pipe(prompts, generate=False)[0]


def test_a_copy_is_edited_apart_and_shares_what_is_loaded(pipe: IR3DERoutingPipeline) -> None:
    before = pipe(PROMPTS, generate=False)
    apart = pipe.copy()
    assert apart(PROMPTS, generate=False) == before
    apart.model.remove_expert("law")
    assert apart.model.embed_tokens.weight is pipe.model.embed_tokens.weight
    assert apart(LAW, generate=False)["expert"] != "law"
    with pytest.raises(ValueError, match="no expert 'law'"):
        apart(LAW, generate=False, experts=["law"])
    assert pipe(PROMPTS, generate=False) == before
    pipe(LAW, max_new_tokens=1)
    assert {loaded["model"] for loaded in apart.loaded_experts} == {loaded["model"] for loaded in pipe.loaded_experts}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_and_k_of_a_call_stand_in_for_the_configs(pipe: IR3DERoutingPipeline, variant: str) -> None:
    prompt = "law court tell me of algebra"
    ids = torch.tensor([tiny.token_ids(prompt)])
    expected = pipe.model(ids, variant=variant, num_votes=1).logits.softmax(dim=1).max().item()
    assert pipe(prompt, generate=False, variant=variant, num_votes=1)["score"] == pytest.approx(expected)
    assert (pipe.model.config.variant, pipe.model.config.num_votes) == ("top-k", 10)


@pytest.mark.parametrize("choice", [{"variant": "some"}, {"num_votes": 0}])
def test_a_choice_out_of_range_is_refused(pipe: IR3DERoutingPipeline, choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(choice))}`"):
        pipe(LAW, generate=False, **choice)


@pytest.mark.parametrize(
    ("option", "meant"), [("max_new_token", "max_new_tokens"), ("explian", "explain"), ("generat", "generate")]
)
def test_an_unknown_option_is_a_type_error_with_a_suggestion(
    pipe: IR3DERoutingPipeline, option: str, meant: str
) -> None:
    for generate in ({}, {"generate": False}):
        with pytest.raises(TypeError, match=f"'{option}'.*Did you mean '{meant}'"):
            pipe(LAW, **generate, **{option: 1})


def test_a_tokenizer_may_be_given_or_named(pipe: IR3DERoutingPipeline, tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    for given in (tiny.tokenizer(), str(tmp_path), tmp_path):
        made = pipeline("ir3de-routing", model=pipe.model, tokenizer=given, generate=False)
        assert isinstance(made.tokenizer, PreTrainedTokenizerFast)
        assert made.tokenizer is not pipe.model.tokenizer
        assert made(LAW)["expert"] == "law"
    with pytest.raises(OSError, match="absent"):
        pipeline("ir3de-routing", model=pipe.model, tokenizer=str(tmp_path / "absent"))


def test_options_of_the_pipeline_hold_until_a_call_says_otherwise(pipe: IR3DERoutingPipeline) -> None:
    model = pipe.model
    made = pipeline("ir3de-routing", model=model, explain=True, generate=False)
    assert isinstance(made, IR3DERoutingPipeline)
    assert made.tokenizer is model.tokenizer
    assert "tokens" in made(LAW)
    assert "tokens" not in made(LAW, explain=False)
    assert "generated_text" not in made(LAW)
    made = IR3DERoutingPipeline(model, device="cpu", batch_size=2, **GREEDY)
    short = made(CODE, max_new_tokens=2)["generated_text"]
    assert made(CODE)["generated_text"] == pipe(CODE, **GREEDY)["generated_text"] != short


def test_nothing_of_a_call_is_left_for_the_next(pipe: IR3DERoutingPipeline) -> None:
    before = [pipe(PROMPTS, generate=False), pipe(PROMPTS, **GREEDY)]
    pipe(PROMPTS, generate=False, explain=True, variant="avg", num_votes=1, batch_size=2)
    pipe(PROMPTS, max_new_tokens=2, return_full_text=True, do_sample=True, num_return_sequences=2, temperature=0.1)
    list(pipe.stream(LAW, max_new_tokens=2))
    with pytest.raises(TypeError):
        pipe(LAW, nonsense=1)
    assert [pipe(PROMPTS, generate=False), pipe(PROMPTS, **GREEDY)] == before


# Generation.


def test_a_batch_is_answered_like_one_by_one_in_order(pipe: IR3DERoutingPipeline) -> None:
    one_by_one = [pipe(prompt, **GREEDY) for prompt in PROMPTS]
    assert len({record["generated_text"] for record in one_by_one}) == 5, "the same prompt alone has the same answer"
    for batch_size in (None, 1, 2, 64):
        assert pipe(PROMPTS, batch_size=batch_size, **GREEDY) == one_by_one
    assert list(pipe(iter(PROMPTS), batch_size=4, **GREEDY)) == one_by_one


def test_an_answer_is_that_of_the_experts_own_pipeline(
    pipe: IR3DERoutingPipeline, expert_specs: dict[str, dict[str, Any]]
) -> None:
    plain = pipeline("text-generation", model=expert_specs["law"]["model"], device="cpu")
    expected = plain(LAW, return_full_text=False, **GREEDY)[0]["generated_text"]
    assert pipe(LAW, **GREEDY)["generated_text"] == expected
    chatty = pipeline("text-generation", model=expert_specs["code"]["model"], device="cpu")
    messages = [{"role": "system", "content": "show python"}, {"role": "user", "content": CODE}]
    expected = chatty(messages, return_full_text=False, **GREEDY)[0]["generated_text"]
    assert pipe(CODE, **GREEDY)["generated_text"] == expected
    assert pipe(messages[1:], **GREEDY)["generated_text"] == expected
    assert pipe([{**messages[1], "content": [{"type": "text", "text": CODE}]}], **GREEDY)["generated_text"] == expected


def test_an_expert_without_a_template_reads_the_text_of_parts(pipe: IR3DERoutingPipeline) -> None:
    parts = [{"type": "text", "text": LAW}]
    expected = pipe([{"role": "user", "content": LAW}], **GREEDY)["generated_text"]
    assert pipe([{"role": "user", "content": parts}], **GREEDY)["generated_text"] == expected


def test_options_of_the_experts_spec_yield_to_those_of_the_call(pipe: IR3DERoutingPipeline) -> None:
    three, one = (len(pipe(MATH, do_sample=False, **o)["generated_text"].split()) for o in ({}, {"max_new_tokens": 1}))
    assert (three, one) == (3, 1)


def test_the_full_text_starts_with_the_prompt(pipe: IR3DERoutingPipeline) -> None:
    answer = pipe(LAW, **GREEDY)["generated_text"]
    assert pipe(LAW, return_full_text=True, **GREEDY)["generated_text"] == LAW + answer
    messages = [{"role": "user", "content": CODE}]
    answer = pipe(messages, **GREEDY)["generated_text"]
    full = pipe(messages, return_full_text=True, **GREEDY)["generated_text"]
    assert full == [*messages, {"role": "assistant", "content": answer}]
    assert len(messages) == 1


def test_several_sequences_come_as_a_list(pipe: IR3DERoutingPipeline) -> None:
    for record in pipe([CODE, LAW], max_new_tokens=3, do_sample=True, num_return_sequences=3):
        assert len(record["generated_text"]) == 3
        assert all(isinstance(text, str) for text in record["generated_text"])


def test_experts_of_the_same_model_share_it(pipe: IR3DERoutingPipeline) -> None:
    assert pipe.experts.load("code") is pipe.experts.load("math")
    assert pipe.experts.load("code") is not pipe.experts.load("law")


def test_an_expert_without_a_model_is_named_before_anything_is_generated(
    expert_specs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = {name: spec for name, spec in expert_specs.items() if name != "law"}
    made = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    monkeypatch.setattr(made.experts, "generate", pytest.fail)
    with pytest.raises(ValueError, match=r"'law' has no `model`.*generate=False"):
        made([CODE, MATH, LAW], on_error="raise")
    with pytest.raises(ValueError, match="'law' has no `model`"):
        made(LAW)
    with pytest.raises(ValueError, match="'law' has no `model`"):
        list(made.stream(LAW))
    assert made(LAW, generate=False)["expert"] == "law"


def test_a_prompt_for_which_nobody_can_be_asked_does_not_take_the_others_with_it(
    pipe: IR3DERoutingPipeline, expert_specs: dict[str, Any]
) -> None:
    specs = {name: spec for name, spec in expert_specs.items() if name != "law"}
    made = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    image = chat([{"type": "text", "text": CODE}, {"type": "image"}])
    prompts = [CODE, LAW, image, MATH]
    code, law, seen, math = made(prompts, **GREEDY)
    assert [code, math] == made([CODE, MATH], **GREEDY)
    assert all(record["generated_text"] for record in (code, math))
    assert [law["expert"], seen["expert"]] == ["law", "code"]
    assert law["generated_text"] is seen["generated_text"] is None
    assert "'law' has no `model`" in law["reason"]
    assert "content of type 'image'" in seen["reason"]
    assert {key: law[key] for key in ("score", "ranking")} == {
        key: pipe(LAW, generate=False)[key] for key in ("score", "ranking")
    }
    [alone] = made([LAW])
    assert alone["generated_text"] is None


# Failover.


@pytest.fixture
def failing(pipe: IR3DERoutingPipeline, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of those experts that fail."""
    names: set[str] = set()
    generate = ExpertPool.generate

    def fails(pool: ExpertPool, name: str, prompts: Any, *args: Any, **options: Any) -> list[Any]:
        if name in names:
            return [ConnectionError("down\x1b[2J")] * len(prompts)
        return generate(pool, name, prompts, *args, **options)

    def breaks(pool: ExpertPool, name: str, prompt: Any, **options: Any) -> Iterator[str]:
        [answer] = pool.generate(name, [prompt], 1, **options)
        if isinstance(answer, Exception):
            raise answer
        yield answer

    monkeypatch.setattr(ExpertPool, "generate", fails)
    monkeypatch.setattr(ExpertPool, "stream", breaks)
    return names


def tried(pipe: IR3DERoutingPipeline, prompt: str, **options: Any) -> tuple[str | None, list[str], bool]:
    """Who answers, after whom, and whether there is an answer; the same of a call, among others and of a stream."""
    record = pipe(prompt, **GREEDY, **options)
    assert pipe([prompt, prompt], **GREEDY, **options) == [record, record]
    *_, last = pipe.stream(prompt, **GREEDY, **options)
    assert last == {"event": "record", **record}
    failures = [failure["expert"] for failure in record.get("failures", [])]
    return record["expert"], failures, record["generated_text"] is not None


def test_nobody_below_the_minimum_stands_in_for_an_expert_that_failed(
    pipe: IR3DERoutingPipeline, failing: set[str]
) -> None:
    ranking = pipe(LAW, generate=False)["ranking"]
    first, second, third = (entry["expert"] for entry in ranking)
    between = (ranking[1]["score"] + ranking[2]["score"]) / 2
    failing.add(first)
    assert tried(pipe, LAW) == (second, [first], True)
    assert tried(pipe, LAW, min_score=between) == (second, [first], True)
    assert tried(pipe, LAW, min_score=ranking[0]["score"]) == (first, [first], False)
    failing.add(second)
    assert tried(pipe, LAW) == (third, [first, second], True)
    assert tried(pipe, LAW, min_score=between) == (first, [first, second], False)
    assert tried(pipe, LAW, min_score=between, fallback_expert=third) == (third, [first, second], True)


def test_below_the_minimum_the_fallback_answers_or_nobody(pipe: IR3DERoutingPipeline, failing: set[str]) -> None:
    options = {"min_score": 1.0, "fallback_expert": "math"}
    assert tried(pipe, LAW, **options) == ("math", [], True)
    failing.add("math")
    assert tried(pipe, LAW, **options) == ("math", ["math"], False)
    assert tried(pipe, LAW, min_score=1.0) == (None, [], False)


def test_who_may_answer_is_what_the_policy_says() -> None:
    ranking = [{"expert": "a", "score": 0.6}, {"expert": "b", "score": 0.3}, {"expert": "c", "score": 0.1}]
    record = {"expert": "a", "score": 0.6, "ranking": ranking}
    for policy, expected in (
        (Policy(), "abc"),
        (Policy(min_score=0.2), "ab"),
        (Policy(min_score=0.2, fallback_expert="c"), "abc"),
        (Policy(min_score=0.2, fallback_expert="d"), "abd"),
        (Policy(fallback_expert="a"), "abc"),
    ):
        assert "".join(each["expert"] for each in policy.candidates(record)) == expected
    alone = {"expert": "c", "score": 0.6, "ranking": ranking, "fallback": True}
    assert Policy(min_score=0.7, fallback_expert="c").candidates(alone) == [{"expert": "c", "score": 0.6}]
    assert Policy(min_score=0.7).candidates({**alone, "expert": None}) == []


def test_a_failure_is_logged_in_one_line_without_control_characters(
    pipe: IR3DERoutingPipeline, failing: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    failing.add("law")
    assert pipe(LAW, **GREEDY)["failures"] == [{"expert": "law", "error": "ConnectionError: down [2J"}]
    [line] = [record.getMessage() for record in caplog.records if record.name == "ir3de.pipeline_ir3de"]
    assert line == "Expert law did not answer: 'ConnectionError: down [2J'"


# Streaming.


@pytest.mark.parametrize("prompt", [CODE, LAW, chat(MATH)])
def test_a_stream_gives_route_pieces_and_record(pipe: IR3DERoutingPipeline, prompt: Any) -> None:
    first, *pieces, last = pipe.stream(prompt, **GREEDY)
    assert first == {"event": "route", **pipe(prompt, generate=False)}
    assert {piece["event"] for piece in pieces} == {"text"}
    assert len(pieces) > 1
    assert last == {"event": "record", **pipe(prompt, **GREEDY)}
    assert "".join(piece["text"] for piece in pieces) == last["generated_text"]


def test_closing_a_stream_stops_the_generation(pipe: IR3DERoutingPipeline) -> None:
    model, steps = pipe.experts.load("law").model, []
    hook = model.register_forward_hook(lambda *_: steps.append(1))
    threads = threading.active_count()
    events = pipe.stream(LAW, do_sample=False, max_new_tokens=400, min_new_tokens=400)
    assert [next(events)["event"], next(events)["event"]] == ["route", "text"]
    events.close()
    hook.remove()
    assert 0 < len(steps) < 400
    assert threading.active_count() == threads


def test_a_failure_while_streaming_is_raised_where_the_pieces_are_read(pipe: IR3DERoutingPipeline) -> None:
    with pytest.raises(ValueError, match="temperature"):
        list(pipe.stream(LAW, do_sample=True, temperature=-1.0))


def test_a_stream_refuses_an_empty_prompt_and_unknown_options(pipe: IR3DERoutingPipeline) -> None:
    with pytest.raises(ValueError, match="is empty"):
        next(pipe.stream(""))
    with pytest.raises(TypeError, match="'max_new_token'"):
        next(pipe.stream(LAW, max_new_token=3))
