"""The router's model card: a generated part between two marks, and whatever people wrote around it."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard

from .atomic_save_ir3de import PICTURES
from .configuration_ir3de import IR3DEConfig
from .outcomes_ir3de import Ledger, expected
from .outlook_ir3de import Outlook, plot_frontier, save_picture
from .policy_ir3de import Panel
from .samples_ir3de import Sample
from .specs_ir3de import ExpertSpec, has_source, is_remote, served
from .statistics_ir3de import DomainStatistics

CARD_NAME, (PLOT_NAME, FRONTIER_NAME) = "README.md", PICTURES
BEGIN, END = "<!-- ir3de: generated from here on, edits are overwritten -->", "<!-- ir3de: generated up to here -->"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_MOST_SHOWN = 200  # characters of a name that a config gives
_NAME = re.compile(r"[\w .-]{1,64}")  # of a domain, that needs no escaping
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_CHANGE = re.compile(r"^\| \d{4}-\d\d-\d\d \| .* \| `([0-9a-f]{12})` \|$", re.MULTILINE)
_JUDGED = re.compile(r"^\| \d{4}-\d\d-\d\d \| `([0-9a-f]{12})` \| .* \| [+-][\d,]+ \| ([\d,]+) \|$", re.MULTILINE)
_MOST_CHANGES = 200  # that a history lists
_MODEL_NAME = "IR3DE router"
_HELD_OUT = "held-out part of the training data"
_EXAMPLE_MOST = 100  # characters of the prompt that is shown
STATE_KEY = "router_state"  # in a result's dataset_args: the state of the router that it was measured on

_LOAD = """\
## Load it

```python
from transformers import AutoModel, pipeline

router = pipeline("ir3de-routing", model="THIS_REPOSITORY", trust_remote_code=True)
prompt = THIS_PROMPT
router(prompt, generate=False)  # {"expert": ..., "score": ..., "ranking": [...]}
THIS_ANSWER

# The model alone, without experts: one score for each domain.
model = AutoModel.from_pretrained("THIS_REPOSITORY", trust_remote_code=True)
batch = model.tokenizer([prompt], add_special_tokens=False, return_tensors="pt")
logits = model(batch["input_ids"], batch["attention_mask"]).logits
model.config.id2label[int(logits.argmax())]
```

The router runs code from this repository: read it, and pin a `revision`.
"""

_ADD = """\
## Add an expert

No retraining, and the text behind the other experts is not needed. `ir3de collect` turns text into one file of sums;
the text itself stays where it is:

```
ir3de collect --router THIS_REPOSITORY --name law --data law.jsonl
ir3de publish law.safetensors --router THIS_REPOSITORY --model org/law-llm --create-pr
```

The owner merges with `ir3de merge THIS_REPOSITORY --pr N`, which shows what changes. On a copy of your own:
`ir3de add FOLDER law --statistics law.safetensors` and `ir3de remove FOLDER law`. An expert that is added and removed
again leaves the router bit for bit as it was.
"""

_STATISTICS = """\
## What the statistics are, and reveal

`statistics/NAME.safetensors` holds the sums A = X^T X of a domain's tokens and prompts, in float64; W is solved from
them. They hold no text, but they are not private by themselves: where h(h+1)/2 is at least the size of the vocabulary,
the token counts of the domain can be solved back out of A.
"""


def update_card(
    path: Path,
    config: IR3DEConfig,
    statistics: Mapping[str, DomainStatistics],
    change: tuple[str, str] | None = None,
    outcomes: Ledger | None = None,
    samples: Sequence[Sample] = (),
    encoder: str | None = None,
) -> None:
    """Writes the generated part of a card, its metadata and its plot; other text, metadata and results stay.

    Results that name the state of the router that they were measured on, as those of `ir3de evaluate --card` do, leave
    the card with that state.

    Args:
        path (`Path`): of the card; made if missing.
        config ([`IR3DEConfig`]): of the router.
        statistics (`Mapping[str, DomainStatistics]`): of each domain.
        change (`tuple[str, str]`, *optional*): the repository that the card is for, and what is done to it in a line.
            The history gains that line if the experts or their statistics are others than the history knows; that of
            outcomes, if these are.
        outcomes ([`Ledger`], *optional*): of the experts.
        samples (`Sequence[Sample]`): prompts that travel with the router, one of which is shown.
        encoder (`str`, *optional*): of its second opinion, if it has one.
    """
    card: Any = read_card(path) if path.is_file() else ModelCard("---\n{}\n---\n# An IR3DE router\n")
    for key, value in _metadata(config).items():
        setattr(card.data, key, value)
    now = state(config, statistics)
    others = [result for result in card.data.eval_results or [] if result.dataset_name != _HELD_OUT]
    card.data.eval_results = [
        *(result for result in others if _holds(result, now)),
        *model_index(config),
    ] or None
    if card.data.eval_results:  # a model-index needs a name
        card.data.model_name = card.data.model_name or _MODEL_NAME
    elif card.data.model_name == _MODEL_NAME:
        card.data.model_name = None
    before, mark, rest = card.text.partition(BEGIN)
    generated, _, after = rest.partition(END)
    title = _plain_title(change[1]) if change else None
    history = _history(generated, now, title) + _history_of_outcomes(generated, outcomes or Ledger(), title)
    confusion = (config.evaluation or {}).get("confusion")
    plotted = plot_confusion(path.with_name(PLOT_NAME), confusion) if confusion else False
    outlook = outlook_of(config, outcomes or Ledger())
    drawn = plot_frontier(path.with_name(FRONTIER_NAME), outlook) if outlook else False
    if not drawn and path.with_name(FRONTIER_NAME).exists():
        path.with_name(FRONTIER_NAME).unlink()
    about = _about(config, statistics, plotted, outcomes or Ledger(), drawn)
    body = "\n".join([about, _unsure(config, encoder), _LOAD, _ADD, _STATISTICS, *history])
    body = body.replace("THIS_REPOSITORY", change[0]) if change else body
    body = body.replace("THIS_ANSWER", _answer(config.specs)).replace("THIS_PROMPT", _example(samples))
    part = f"{BEGIN}\n\n{body}\n{END}"
    card.text = before + part + after if mark else f"{card.text.rstrip()}\n\n{part}\n"
    card.save(path)


def read_card(path: Path) -> Any:
    """The card in a file.

    Args:
        path (`Path`): of the file.

    Raises:
        ValueError: its metadata are not YAML, or no mapping; the message says where.
    """
    try:
        return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as that, or delete it.") from error
    except (yaml.YAMLError, ValueError) as error:
        where = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            where = f"line {error.problem_mark.line + 2}: {error.problem}"  # the first line is `---`
        raise ValueError(
            f"{path}: what stands between the two lines `---` at its head is no YAML mapping ({where}). Mend it there,"
            " or delete the file to have a new one written."
        ) from error


def as_code(text: object) -> str:
    """What a config says, shown as it is in a card: one line, in which nothing has a meaning in Markdown or HTML.

    Args:
        text (`object`): such as a model's id, which may be a stranger's words.
    """
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(text))
    if not shown.strip():
        return "`?`"
    if len(shown) > _MOST_SHOWN:
        shown = shown[:_MOST_SHOWN] + "..."
    if not set(shown) & set("`|<>"):
        return f"`{shown}`"
    # These end a span of code, a cell or a comment there; as numbers of characters they are text alone.
    return f"<code>{''.join(f'&#{ord(each)};' if each in string.punctuation else each for each in shown)}</code>"


def as_name(name: str) -> str:
    """The name of an expert or domain, as a cell of a card: as code where anything in it could mean something."""
    return name if _NAME.fullmatch(name) else as_code(name)


def as_names(names: Iterable[str]) -> dict[str, str]:
    """The names of one table as its cells, by name: all as code where one of them has to be."""
    names = list(names)
    plain = all(_NAME.fullmatch(name) for name in names)
    return {name: name if plain else as_code(name) for name in names}


def model_index(config: IR3DEConfig) -> list[EvalResult]:
    """What was measured when the router was fitted, as results of a model-index; nothing once edits changed it."""
    if not config.evaluation or config.measured_on:
        return []
    metrics = {
        ("accuracy", "macro routing accuracy (%)"): round(100 * config.evaluation["macro_accuracy"], 2),
        ("ece", "expected calibration error"): round(config.evaluation["calibration_error"], 4),
    }
    dataset: dict[str, Any] = {"dataset_type": ", ".join(config.datasets or ["held-out"]), "dataset_name": _HELD_OUT}
    return [
        EvalResult(task_type="text-generation", **dataset, metric_type=kind, metric_name=name, metric_value=value)
        for (kind, name), value in metrics.items()
    ]


def _holds(result: EvalResult, now: str) -> bool:
    """Whether a result is not known to be of a router in another state."""
    return not isinstance(result.dataset_args, dict) or result.dataset_args.get(STATE_KEY, now) == now


def state(config: IR3DEConfig, statistics: Mapping[str, DomainStatistics]) -> str:
    """Names the experts with their statistics, whatever the edits that led to them: 12 hexadecimal digits."""
    ids = {name: sorted(domain.contributions) for name, domain in statistics.items()}
    return hashlib.sha256(json.dumps([config.specs, ids], sort_keys=True).encode()).hexdigest()[:12]


def _history(old: str, now: str, change: str | None) -> list[str]:
    """The section on edits: the old generated part's lines, and one more where a change led to another state."""
    lines = [match[0] for match in _CHANGE.finditer(old)]
    last = _CHANGE.fullmatch(lines[-1]) if lines else None
    if change is not None and (last is None or last[1] != now):
        lines.append(f"| {_today()} | {change} | `{now}` |")
    if not lines:
        return []
    about = "A state names the experts and their statistics: the same state is the same router."
    rows = [line.strip("| ").split(" | ") for line in lines[-_MOST_CHANGES:]]
    return ["## History of edits", "", about, "", markdown_table(["date", "change", "state"], rows), ""]


def _history_of_outcomes(old: str, outcomes: Ledger, change: str | None) -> list[str]:
    """The section on outcomes: the old generated part's lines, and one more where a change led to others."""
    lines = [match[0] for match in _JUDGED.finditer(old)]
    last = _JUDGED.fullmatch(lines[-1]) if lines else None
    now = hashlib.sha256(json.dumps(outcomes.digest, sort_keys=True).encode()).hexdigest()[:12]
    if change is not None and (last[1] != now if last else bool(outcomes)):
        before = int(last[2].replace(",", "")) if last else 0
        lines.append(f"| {_today()} | `{now}` | {change} | {outcomes.number - before:+,} | {outcomes.number:,} |")
    if not lines:
        return []
    about = "Outcomes that are taken back leave nothing but their lines here: the same state is the same outcomes."
    rows = [line.strip("| ").split(" | ") for line in lines[-_MOST_CHANGES:]]
    table = markdown_table(["date", "state", "change", "outcomes", "in all"], rows)
    return ["## History of outcomes", "", about, "", table, ""]


def _plain_title(change: str) -> str:
    """What was done, as a cell of a table."""
    return re.sub(r"[\s|<>`]+", " ", change).strip()[:100]


def _today() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def _metadata(config: IR3DEConfig) -> dict[str, Any]:
    sources = [source for spec in config.specs for source in (spec.get("model"), spec.get("adapter"))]
    ids = sorted({source for source in [config.embedding_model, *sources] if _on_hub(source)})
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ir3de", "router", "llm-routing", "custom_code"],
        "base_model": ids or None,
        "datasets": config.datasets,
    }
    return {key: value for key, value in metadata.items() if value or key == "base_model"}


def _on_hub(source: str | None) -> TypeGuard[str]:
    """Whether a source of weights looks like a Hub id, and no folder of that name is here."""
    return source is not None and bool(_HUB_ID.fullmatch(source)) and not Path(source).is_dir()


def _about(
    config: IR3DEConfig, statistics: Mapping[str, DomainStatistics], plotted: bool, outcomes: Ledger, drawn: bool
) -> str:
    kind = "domain experts" if config.domains is None else "experts"
    intro = (
        f"Routes a prompt to one of {len(config.specs)} {kind} with a linear router over token embeddings,"
        f" fitted in closed form ([IR3DE](https://arxiv.org/abs/2606.06098)): {_method(config)}. Embeddings:"
        f" {_link(config.embedding_model or 'of an unnamed model')} ({config.vocab_size:,} x {config.hidden_size}).\n"
    )
    parts = [
        intro,
        _experts(config, statistics),
        outcomes_section(config, outcomes, drawn),
        _evaluation(config, plotted),
    ]
    return "\n".join(part for part in parts if part)


def _unsure(config: IR3DEConfig, encoder: str | None) -> str:
    """What the router does with prompts that it is unsure of."""
    minimums = [
        f"{what} below {as_code(f'{field}={value:g}')}"
        for field, value, what in (
            ("min_score", config.min_score, "whose best score lies"),
            ("min_familiarity", config.min_familiarity, "whose familiarity lies"),
        )
        if value
    ]
    fallback = "nobody" if config.fallback_expert is None else f"the fallback {as_name(config.fallback_expert)}"
    if minimums:
        said = f"A prompt {', or '.join(minimums)}, goes to {fallback}. A call may say otherwise."
    else:
        said = (
            "Every prompt goes to the expert of the best score, however low: this router has no `min_score` and no"
            f" `min_familiarity`. A call may set them; what lies below then goes to {fallback}."
        )
    lines = ["## Where it is unsure", "", said]
    if encoder is not None:
        lines += [
            "",
            f"It has a second opinion, on the sentence encoder {_link(encoder)}: `pipeline(..., second_opinion=True)`"
            ' asks it where the router is unsure (`pip install "ir3de[second]"`).',
        ]
    return "\n".join([*lines, ""])


def _answer(specs: Sequence[ExpertSpec]) -> str:
    """What asks the experts, as Python source; where none has a model, that they only route."""
    if any(has_source(spec) for spec in specs):
        return 'router(prompt, max_new_tokens=64)  # adds "generated_text", by the chosen expert'
    return "# No expert has a model to answer with: this router only routes."


def _example(samples: Sequence[Sample]) -> str:
    """A prompt to try, as Python source: the first short one of the samples."""
    for sample in samples:
        # What could end the block of code, or the part of the card that is written anew, is not shown.
        plain = sample.text.isprintable() and not set(sample.text) & set("`<>")
        if plain and len(sample.text) <= _EXAMPLE_MOST:
            return json.dumps(sample.text, ensure_ascii=False)
    return json.dumps("a prompt of yours")


def _link(source: str) -> str:
    """A source of weights as a link; of a folder of this machine only the name."""
    if _on_hub(source):
        return f"[`{source}`](https://huggingface.co/{source})"
    return as_code(Path(source).name if Path(source).is_absolute() else source)


def _method(config: IR3DEConfig) -> str:
    """The choice that the config makes, in words."""
    features = f"{config.num_features} random Fourier" if config.feature_map == "rff" else f"`{config.feature_map}`"
    if config.variant == "prompt":
        lexical = f", naive Bayes weighing {config.lexical_weight:.3g}" if config.lexical_weight else ""
        solve = ", linear discriminant analysis" if config.discriminant else ""
        return f"variant `prompt`, {features} features{solve}, token noise {config.token_noise:g}{lexical}"
    votes = f" with k = {config.num_votes}" if config.variant == "top-k" else ""
    balance = "balanced" if config.balance else "unbalanced"
    return f"variant `{config.variant}`{votes}, {features} features, lambda {config.regularization:g}, {balance} sums"


def _experts(config: IR3DEConfig, statistics: Mapping[str, DomainStatistics]) -> str:
    seen = {
        name: [f"{domain.rows('prompts'):,}", f"{domain.rows('tokens'):,}", str(len(domain.contributions))]
        for name, domain in statistics.items()
    }
    head = ["prompts seen", "tokens seen", "contributions"]
    experts, domains = as_names(config.expert_names), as_names(config.domain_names)
    if config.domains is None:
        rows = [[experts[spec["name"]], *_source(spec), *seen[spec["name"]]] for spec in config.specs]
        lines = ["## Experts", "", markdown_table(["expert", "answers", "revision", *head], rows, numbers=3)]
    else:
        rows = [[domains[name], *seen[name]] for name in config.domain_names]
        lines = ["## Domains", "", markdown_table(["domain", *head], rows, numbers=3), ""]
        rows = [
            [
                experts[spec["name"]],
                *_source(spec),
                ", ".join(domains[name] for name in served(spec) if name in domains),
            ]
            for spec in config.specs
        ]
        lines += ["## Experts", "", markdown_table(["expert", "answers", "revision", "serves"], rows)]
    if any(_on_hub(expert.get("model")) and not _pinned(expert.get("revision")) for expert in config.specs):
        lines += ["", "What is not pinned to a commit may answer differently tomorrow."]
    return "\n".join(lines) + "\n"


def outlook_of(config: IR3DEConfig, outcomes: Ledger) -> Outlook | None:
    """What outcomes let expect of a router; none without any."""
    panel = Panel.of(config.specs, config.domain_names, outcomes, config.half_life)
    return Outlook.of(panel, outcomes, config.half_life)


def outcomes_section(config: IR3DEConfig, outcomes: Ledger, drawn: bool = False) -> str:
    """What experts did in each domain, as a section of a card; empty without outcomes.

    Args:
        config ([`IR3DEConfig`]): with the domains and the specs.
        outcomes ([`Ledger`]): of the experts.
        drawn (`bool`): whether the frontier is in a picture beside the card.
    """
    table = outcomes_table(config, outcomes)
    if not table:
        return ""
    frontier = f"\n![What weighing costs is expected to change]({FRONTIER_NAME})\n" if drawn else ""
    fading = ""
    if config.half_life is not None:
        days = list(outcomes.by_day())
        newest = f" The newest are of {days[-1]}." if days else " None of them has a day, so all count whole."
        fading = f" Those that are {config.half_life:g} days older than the newest count half.{newest}"
    return (
        "## Outcomes\n\nWhat each expert is expected to score in each domain, 0 to 1, ± 1.96 standard errors; from how"
        f" many outcomes; and what it is expected to cost, where that was measured.{fading}\n\n{table}\n{frontier}"
    )


def outcomes_table(config: IR3DEConfig, outcomes: Ledger) -> str:
    """A row a domain, a column an expert, in Markdown; empty without outcomes."""
    experts, domains = as_names(config.expert_names), as_names(config.domain_names)
    rows = [[name, *cells] for name, cells in zip(domains.values(), outcomes_cells(config, outcomes), strict=False)]
    return markdown_table(["domain", *experts.values()], rows, len(experts))  # no rows without outcomes


def outcomes_cells(config: IR3DEConfig, outcomes: Ledger) -> list[list[str]]:
    """What is known of each pair in words, a row a domain with a cell an expert; no rows without outcomes."""
    names, domains = config.expert_names, config.domain_names
    sums = outcomes.sums(domains, names, config.half_life)
    if not sums.any():
        return []
    serves = np.array([[domain in served(spec) for spec in config.specs] for domain in domains])
    pairs = expected(sums, serves)

    def cell(domain: int, expert: int) -> str:
        """What is known of a pair."""
        score, error, n = (table[domain, expert] for table in (pairs.score, pairs.error, pairs.n))
        if np.isnan(error):
            return f"{score:.2f} (none)"
        cost = pairs.cost[domain, expert]
        priced = "" if np.isnan(cost) else f", {cost:.3g}"
        return f"{score:.2f} ± {1.96 * error:.2f} ({n:,.0f}{priced})"

    return [[cell(row, column) for column in range(len(names))] for row in range(len(domains))]


def _source(expert: ExpertSpec) -> tuple[str, str]:
    """What answers for an expert, and the revisions that it is pinned to."""
    model = _link(expert["model"]) if "model" in expert else ""
    if is_remote(expert):
        where = f"<{expert['endpoint']}>" if "endpoint" in expert else f"provider {as_code(expert['provider'])}"
        return f"{model} at {where}: prompts leave your machine".strip(), "the server's"
    revisions = [_revision(expert["model"], expert.get("revision"))] if model else []
    if "adapter" in expert:
        revisions.append(_revision(expert["adapter"], expert.get("adapter_revision")))
        model = f"{model or 'its base'} with adapter {_link(expert['adapter'])}"
    trust = " (asks to run code of its own)" if expert.get("trust_remote_code") else ""
    return (model or "nothing: routes only") + trust, ", ".join(dict.fromkeys(revisions))


def _revision(source: str, revision: str | None) -> str:
    if not _on_hub(source):
        return "a folder"
    if _pinned(revision):
        return as_code(revision)
    return f"{as_code(revision)}, **a branch or tag: not pinned**" if revision else "**not pinned**"


def _pinned(revision: str | None) -> bool:
    """Whether a revision is a commit, which never changes."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def _evaluation(config: IR3DEConfig, plotted: bool) -> str:
    evaluation = config.evaluation
    if not evaluation:
        return ""
    edited = " **The set of experts has been edited since: these figures describe the router before.**"
    names = as_names(evaluation["domains"])
    rows = [
        [names[name], f"{100 * domain['recall']:.1f} %", f"{domain['prompts']:,}"]
        for name, domain in evaluation["domains"].items()
    ]
    lines = [
        "## Measured",
        "",
        f"On {evaluation['prompts']:,} held-out prompts of the training sources; the router here was then fitted on all"
        f" rows. Macro accuracy: **{100 * evaluation['macro_accuracy']:.1f} %** (standard error"
        f" {100 * evaluation['standard_error']:.1f}); expected calibration error of the scores:"
        f" {evaluation['calibration_error']:.3f}. The choice was made on the same prompts."
        f"{edited if config.measured_on else ''}",
        "",
        markdown_table(["domain", "recall", "held-out prompts"], rows, numbers=2),
    ]
    lines += _scripts(evaluation) + _elsewhere(evaluation) + _validation(evaluation) + _familiarity(config)
    if plotted:
        lines += ["", f"![Where prompts of each domain were sent, in percent]({PLOT_NAME})"]
    return "\n".join(lines) + "\n"


def _scripts(evaluation: Any) -> list[str]:
    """In which scripts the training prompts are written, as far as they make up a hundredth of them."""
    told = [(name, share) for name, share in evaluation.get("scripts", {}).items() if share >= 0.01]
    if not told:
        return []
    shares = ", ".join(f"{as_name(name)} {100 * share:.0f} %" for name, share in told)
    return [
        "",
        f"Scripts of the training prompts: {shares}. Which languages they are in can be told under `language` in the"
        " metadata of this card, which stays as its owner writes it.",
    ]


def _elsewhere(evaluation: Any) -> list[str]:
    """What was measured on sources of the training data that were left out in turn."""
    measured = evaluation.get("elsewhere")
    if not measured:
        return []
    which = (
        "" if measured["domains"] == measured["of_domains"] else f" of the {measured['domains']} with several sources"
    )
    return [
        "",
        f"On prompts of other sources expect less: with each source of the training data left out in turn, the macro"
        f" accuracy{which} was **{100 * measured['macro_accuracy']:.1f} %** (standard error"
        f" {100 * measured['standard_error']:.1f}), and on held-out prompts of the same sources"
        f" {100 * measured['same_sources']:.1f} %.",
    ]


def _validation(evaluation: Any) -> list[str]:
    """What was measured on prompts that were given for that, and that nothing was chosen on."""
    measured = evaluation.get("validation")
    if not measured:
        return []
    return [
        "",
        f"On {measured['prompts']:,} other prompts, on which nothing was chosen: macro accuracy"
        f" **{100 * measured['macro_accuracy']:.1f} %** (standard error {100 * measured['standard_error']:.1f}),"
        f" expected calibration error {measured['calibration_error']:.3f}.",
    ]


def _familiarity(config: Any) -> list[str]:
    """What the router does with prompts that are unlike what it was fitted on."""
    measured = (config.evaluation or {}).get("familiarity")
    if not config.familiarity or not measured:
        return []
    about = (
        "Records tell the `familiarity` of a prompt: the share of held-out prompts that were less like the training"
        f" data. With `min_familiarity={measured['minimum']:g}` {100 * measured['lost']:.1f} % of the held-out prompts"
        " go to the fallback, or to nobody"
    )
    if "outside" in measured:
        about += (
            f", and {100 * measured['noticed']:.1f} % of {measured['outside']:,} prompts of none of the domains do"
            f" (AUROC {100 * measured['auroc']:.1f} %)"
        )
        if "auroc_without" in measured:
            about += (
                f"; familiarity learned from these, each measured by what the others taught: without that AUROC was"
                f" {100 * measured['auroc_without']:.1f} %"
            )
    here = f"`min_familiarity={config.min_familiarity:g}`" if config.min_familiarity else "no minimum"
    return ["", f"{about}. This router has {here} of its own."]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table in Markdown.

    Args:
        head (`Sequence[str]`): the columns' names.
        rows (`Iterable[Sequence[str]]`): the cells of each row.
        numbers (`int`): how many of the last columns are set to the right.

    Returns:
        `str`: the table's lines; empty without rows.
    """
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    rule = "|---" * (len(head) - numbers) + "|---:" * numbers + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *lines])


def plot_confusion(path: Path, confusion: Mapping[str, Mapping[str, int]]) -> bool:
    """Draws where prompts of each domain were sent, in percent.

    Args:
        path (`Path`): of the PNG.
        confusion (`Mapping`): by domain, and then by expert, a number of prompts.

    Returns:
        `bool`: whether it was drawn, for which matplotlib must be installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    domains, experts = list(confusion), list(next(iter(confusion.values())))
    shares = [[100 * routes[to] / max(1, sum(routes.values())) for to in experts] for routes in confusion.values()]
    canvas = Figure(layout="constrained", figsize=(2.2 + 0.45 * len(experts) + 0.6, 2.2 + 0.45 * len(domains)))
    axes = canvas.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(experts)), experts, rotation=45, ha="right")
    axes.set_yticks(range(len(domains)), domains)
    axes.set_xlabel("expert chosen")
    axes.set_ylabel("domain of the prompt")
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            color, cell = "white" if share > 50 else "black", f"{share:.0f}" if share >= 1 else "<1"
            axes.text(j, i, cell if share else "", ha="center", va="center", fontsize=8, color=color)
    canvas.colorbar(image, ax=axes, label="% of the domain's prompts", shrink=0.8)
    save_picture(canvas, path)
    return True
