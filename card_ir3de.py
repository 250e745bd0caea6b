"""The router's model card: a generated part between two marks, and whatever people wrote around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

CARD_NAME = "README.md"
BEGIN, END = "<!-- ir3de: generated from here on, edits are overwritten -->", "<!-- ir3de: generated up to here -->"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_LOAD = """\
## Load it

```python
from transformers import AutoModel, pipeline

router = pipeline("ir3de-routing", model="THIS_REPOSITORY", trust_remote_code=True)
router("Solve 3x + 5 = 20", generate=False)  # {"expert": ..., "score": ..., "ranking": [...]}
router("Solve 3x + 5 = 20", max_new_tokens=64)  # adds "generated_text", by the chosen expert

model = AutoModel.from_pretrained("THIS_REPOSITORY", trust_remote_code=True)
```
"""

_STATISTICS = """\
## What the statistics are, and reveal

`statistics/NAME.safetensors` holds the sums A = X^T X of a domain's tokens and prompts, in float64; W is solved from
them. They hold no text, but they are not private by themselves: where h(h+1)/2 is at least the size of the vocabulary,
the token counts of the domain can be solved back out of A.
"""


def update_card(path: Path, config: Any, rows: Mapping[str, int]) -> None:
    """Writes the generated part of a card and its metadata; other text and metadata stay.

    Args:
        path (`Path`): of the card; made if missing.
        config ([`IR3DEConfig`]): of the router.
        rows (`Mapping[str, int]`): tokens behind each domain's statistics.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else "---\n{}\n---\n# An IR3DE router\n"
    card = ModelCard(old, ignore_metadata_errors=True)
    for key, value in _metadata(config).items():
        setattr(card.data, key, value)
    part = f"{BEGIN}\n\n{_body(config, rows)}\n{END}"
    before, mark, rest = card.text.partition(BEGIN)
    card.text = before + part + rest.partition(END)[2] if mark else f"{card.text.rstrip()}\n\n{part}\n"
    card.save(path)


def _metadata(config: Any) -> dict[str, Any]:
    linked = [config.embedding_model, *(expert.get("model") for expert in config.experts)]
    ids = sorted({model for model in linked if model and _HUB_ID.fullmatch(model)})
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ir3de", "router", "llm-routing", "custom_code"],
    }
    return {**metadata, "base_model": ids} if ids else metadata


def _body(config: Any, rows: Mapping[str, int]) -> str:
    intro = (
        f"Routes a prompt to one of {len(config.experts)} domain experts with a linear router over token embeddings,"
        f" fitted in closed form ([IR3DE](https://arxiv.org/abs/2606.06098)): {_method(config)}. Embeddings:"
        f" `{config.embedding_model or 'of an unnamed model'}` ({config.vocab_size:,} x {config.hidden_size}).\n"
    )
    return "\n".join([intro, _experts(config, rows), _evaluation(config), _LOAD, _STATISTICS])


def _method(config: Any) -> str:
    """The choice that the config makes, in words."""
    features = f"{config.num_features} random Fourier" if config.feature_map == "rff" else f"`{config.feature_map}`"
    if config.variant == "prompt":
        return f"variant `prompt`, {features} features, token noise {config.token_noise:g}"
    votes = f" with k = {config.num_votes}" if config.variant == "top-k" else ""
    balance = "balanced" if config.balance else "unbalanced"
    return f"variant `{config.variant}`{votes}, {features} features, lambda {config.regularization:g}, {balance} sums"


def _experts(config: Any, rows: Mapping[str, int]) -> str:
    lines = ["## Experts", "", "| expert | answers | revision | tokens seen |", "|---|---|---|---:|"]
    for expert in config.experts:
        source, revision = _source(expert)
        lines.append(f"| {expert['name']} | {source} | {revision} | {rows[expert['name']]:,} |")
    return "\n".join(lines) + "\n"


def _source(expert: Mapping[str, Any]) -> tuple[str, str]:
    """What answers for an expert, and the revisions that it is pinned to."""
    model = f"`{expert['model']}`" if "model" in expert else ""
    if "endpoint" in expert or "provider" in expert:
        where = f"<{expert['endpoint']}>" if "endpoint" in expert else f"provider `{expert['provider']}`"
        return f"{model} at {where}: prompts leave your machine".strip(), "the server's"
    pinned = [expert.get("revision", "not pinned")] if model else []
    if "adapter" in expert:
        pinned.append(expert.get("adapter_revision", "not pinned"))
        model = f"{model or 'its base'} with adapter `{expert['adapter']}`"
    trust = " (asks to run code of its own)" if expert.get("trust_remote_code") else ""
    return (model or "nothing: routes only") + trust, ", ".join(pinned)


def _evaluation(config: Any) -> str:
    evaluation = config.evaluation
    if not evaluation:
        return ""
    edited = " **The set of experts has been edited since: these figures describe the router before.**"
    lines = [
        "## Measured",
        "",
        f"On {evaluation['prompts']:,} held-out prompts of the training sources; the router here was then fitted on all"
        f" rows. Macro accuracy: **{100 * evaluation['macro_accuracy']:.1f} %** (standard error"
        f" {100 * evaluation['standard_error']:.1f}); expected calibration error of the scores:"
        f" {evaluation['calibration_error']:.3f}. The choice was made on the same prompts."
        f"{edited if config.measured_on else ''}",
        "",
        "| domain | recall | held-out prompts |",
        "|---|---:|---:|",
    ]
    for name, domain in evaluation["domains"].items():
        lines.append(f"| {name} | {100 * domain['recall']:.1f} % | {domain['prompts']:,} |")
    return "\n".join(lines) + "\n"
