"""Chat templates that refuse what others take: noticed when an expert's tokenizer is read, and worked around."""

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ir3de.local_sources_ir3de import LocalSource
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import with_system_folded, with_turns_merged

from . import tiny

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
IN_TURNS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
DROPS = "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}"
SYSTEM = {"role": "system", "content": "court"}
TWICE = [{"role": "user", "content": "judge"}, {"role": "user", "content": "law"}]


def expert(folder: Path, before: str) -> str:
    """A tiny chat model whose template does something first."""
    model = tiny.expert(folder, seed=3, chat=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = before + tiny.TEMPLATE
    tokenizer.save_pretrained(model)
    return model


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", [SYSTEM, *TWICE]),
        (NO_SYSTEM, [{"role": "user", "content": "court\n\njudge"}, TWICE[1]]),
        (DROPS, [{"role": "user", "content": "court\n\njudge"}, TWICE[1]]),
        (NO_SYSTEM + IN_TURNS, [{"role": "user", "content": "court\n\njudge\n\nlaw"}]),
    ],
)
def test_an_expert_is_asked_as_its_template_takes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, expected: Any
) -> None:
    model = expert(tmp_path, before)
    with caplog.at_level(logging.WARNING):
        source = LocalSource({"model": model}, None, {"trust_remote_code": False, "use_safetensors": True})
    assert len([line for line in caplog.messages if "chat template" in line]) == bool(before), "said once, at loading"
    spec: Any = {"name": "law", "model": model, "system_prompt": SYSTEM["content"]}
    assert source.render(spec, list(TWICE)) == expected
    assert source.reject(spec, [list(TWICE)], {}) == [None]


def test_it_answers_itself_instead_of_failing_over(tmp_path: Path) -> None:
    model = expert(tmp_path, NO_SYSTEM + IN_TURNS)
    specs = {name: {"model": model, "system_prompt": "court"} for name in tiny.DOMAINS}
    router = IR3DERoutingPipeline(tiny.router(specs), device="cpu")
    record = router([*TWICE], max_new_tokens=2, do_sample=False)
    assert "failures" not in record
    assert isinstance(record["generated_text"], str)


def test_folding_and_merging_lose_nothing() -> None:
    assert with_system_folded(TWICE) == TWICE
    assert with_system_folded([SYSTEM]) == [{"role": "user", "content": "court"}]
    tool = {"role": "tool", "content": "4"}
    called = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert with_turns_merged([TWICE[0], called, tool, tool]) == [TWICE[0], called, tool, tool]
    assert with_turns_merged(TWICE) == [{"role": "user", "content": "judge\n\nlaw"}]
