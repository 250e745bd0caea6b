"""What the app shows, as HTML: everything that comes from a visitor or a model is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.policy_ir3de import Record, TokenRecord
from ir3de.scripts.reports.words import harmless
from ir3de.space.palette import Palette
from ir3de.specs_ir3de import ExpertSpec, is_remote

_ONLY_ROUTES = "only routes"
_ACROSS = 6  # columns whose heads are written across
_PAIRS = 4  # domains that are told of a choice
_UNFAMILIAR = 0.03  # as `ir3de fit` suggests
_SHOWN = 12  # experts of a ranking; the others are folded away


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f}&nbsp;%"


def message(text: str, kind: str = "hint") -> str:
    """A line of text to the visitor; `kind` is `"hint"` or `"error"`."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="ir-{kind}"{role}>{escape(text)}</p>'


def route(record: Record, palette: Palette, routing_only: Collection[str] = (), note: str = "") -> str:
    """The chosen expert and the ranking as bars; who only routes is labelled."""
    chosen = record["expert"]
    if chosen is None:
        head = "<strong>Nobody</strong> answers: the score or the familiarity is below the minimum"
    else:
        why = " as the fallback: the score or the familiarity is below the minimum" if record.get("fallback") else ""
        does = "is chosen, but only routes: no model answers for it" if chosen in routing_only else "answers"
        head = f"{palette.badge(chosen)} {does}{why}"
    head += ", with the second opinion" if "second_opinion" in record else ""
    rows = [
        _bar(entry["expert"], entry["score"], palette, entry["expert"] == chosen, entry["expert"] in routing_only)
        for entry in record["ranking"]
    ]
    label = "Experts with their scores, best first"
    bars = f'<ol class="ir-bars" aria-label="{label}">{"".join(rows[:_SHOWN])}</ol>'
    if more := rows[_SHOWN:]:
        others = f'<ol class="ir-bars" start="{_SHOWN + 1}">{"".join(more)}</ol>'
        bars += f"<details><summary>{len(more)} more experts</summary>{others}</details>"
    if "familiarity" in record:
        bars += f'<p class="ir-hint">{_familiar(record["familiarity"])}</p>'
    hint = f'<p class="ir-hint">{escape(note)}</p>' if note else ""
    return f'<div class="ir-route"><p class="ir-head" role="status">{head}</p>{bars}{hint}</div>'


def _familiar(familiarity: float) -> str:
    """How much a prompt is like what the router was fitted on, in words."""
    if familiarity < _UNFAMILIAR:
        return "Unlike nearly all that this router was fitted on: do not trust the scores."
    return f"{percent(familiarity)} of the prompts that this router was fitted for are less familiar to it."


def _bar(name: str, share: float, palette: Palette, chosen: bool, only_routes: bool) -> str:
    """An expert in a ranking."""
    mark = ' class="ir-chosen" aria-current="true"' if chosen else ""
    label = f' <small class="ir-label">{_ONLY_ROUTES}</small>' if only_routes else ""
    fill = f'<span class="ir-track"><span class="ir-fill" style="width:{100 * share:.2f}%"></span></span>'
    named = f'<span class="ir-who"><span class="ir-name">{escape(name)}</span>{label}</span>'
    return f'<li{mark} style="{palette.style(name)}">{named}{fill}<span class="ir-share">{percent(share)}</span></li>'


def pairs(record: Record, palette: Palette) -> str:
    """What was recognised, and what the chosen expert's score is made of; nothing where a domain is an expert."""
    if not record.get("pairs"):
        return ""
    chosen = record["ranking"][0]["expert"] if record.get("fallback") else record["expert"]
    recognised = {entry["domain"]: entry["score"] for entry in record["domains"]}
    rows = [
        (
            palette.badge(pair["domain"]),
            percent(recognised[pair["domain"]]),
            f"{pair['score']:.2f}",
            f"{pair['share']:.2f}",
            f"{pair['outcomes']:,.0f}",
        )
        for pair in record["pairs"][:_PAIRS]
    ]
    head = ("domain", "recognised", "scores there", "adds", "judged answers")
    return table(head, rows, f"Why {chosen}: what it is expected to score where the prompt may belong")


def tokens(record: Record, palette: Palette) -> str:
    """The prompt's tokens, each marked with the domain that it speaks for: stronger where it counts more."""
    heaviest = max((token["weight"] for token in record["tokens"]), default=0.0) or 1.0
    marks, rows = [], []
    for token in record["tokens"]:
        vote, counted, weight = token["vote"], token["counted"], token["weight"] / heaviest
        says = f"{vote}, weight {weight:.2f}" if counted else f"left out (would speak for {vote})"
        shade = f";--w:{8 + 52 * weight:.0f}%" if counted else ""
        kind = "ir-token" if counted else "ir-token ir-out"
        text = escape(harmless(token["token"]))
        marks.append(f'<span class="{kind}" style="{palette.style(vote)}{shade}" title="{escape(says)}">{text}</span>')
        rows.append(
            (f"<code>{text}</code>", escape(vote), f"{weight:.2f}" if counted else "left out", *_familiarity(token))
        )
    legend = " ".join(palette.badge(name) for name in sorted({token["vote"] for token in record["tokens"]}))
    out = sum(not token["counted"] for token in record["tokens"])
    told = all("known" in token for token in record["tokens"])
    head = ("token", "speaks for", "weight", *(["adds to familiarity"] if told else []))
    left = f" {out} of {len(rows)} tokens are left out and dimmed." if out else ""
    return (
        f'<div class="ir-why"><p class="ir-hint">Each piece of the prompt in the colour and line of the domain that it'
        f" speaks for, stronger where it counts more.{left}</p>"
        f'<p class="ir-tokens">{"".join(marks)}</p><p class="ir-legend">{legend}</p>'
        f"{_unknown(record['tokens'])}<details><summary>The same as a table</summary>"
        f"{table(head, rows, 'Tokens of the prompt')}</details></div>"
    )


def _familiarity(token: TokenRecord) -> tuple[str, ...]:
    """What a token adds to the prompt's familiarity, as a cell; none where the router does not tell it."""
    if "known" not in token:
        return ()
    return (f"{token['familiarity']:+.2f}{'' if token['known'] else ', never seen'}",)


def _unknown(tokens: Sequence[TokenRecord]) -> str:
    """How many of a prompt's tokens the router was never fitted on, and which, as a hint."""
    unknown = list(dict.fromkeys(token["token"].strip() for token in tokens if not token.get("known", True)))
    if not unknown:
        return ""
    named = ", ".join(f"<code>{escape(harmless(each))}</code>" for each in unknown[:_PAIRS])
    more = f" and {len(unknown) - _PAIRS} more" if len(unknown) > _PAIRS else ""
    return f'<p class="ir-hint">Never seen by this router before: {named}{more}.</p>'


def text(answer: str) -> str:
    """An answer's text: fenced parts as code, the rest as it is."""
    parts = harmless(answer).split("```")
    shown = []
    for index, part in enumerate(parts):
        if index % 2:
            language, _, code = part.partition("\n")
            shown.append(f'<pre class="ir-code">{escape(code if " " not in language else part)}</pre>')
        elif part.strip():
            shown.append(f'<div class="ir-text">{escape(part.strip())}</div>')
    return "".join(shown)


def answer(name: str, palette: Palette, score: float, said: str, state: str = "", note: str = "") -> str:
    """An expert's answer; `state` is `"writing"` while it comes."""
    cursor = '<span class="ir-cursor" aria-hidden="true"></span>' if state == "writing" else ""
    hint = f'<p class="ir-hint">{escape(note)}</p>' if note else ""
    busy = "true" if cursor else "false"
    return (
        f'<section class="ir-answer" style="{palette.style(name)}" aria-label="Answer of {escape(name)}"'
        f' aria-busy="{busy}"><header>{palette.badge(name)} <span class="ir-share">{percent(score)}</span></header>'
        f"{hint}{text(said)}{cursor}</section>"
    )


def conversation(turns: Iterable[Mapping[str, Any]], palette: Palette) -> str:
    """A chat: the visitor's messages, and answers labelled by their experts."""
    shown = []
    for turn in turns:
        if turn["role"] == "user":
            shown.append(f'<div class="ir-user"><span class="ir-sr">You: </span>{text(turn["content"])}</div>')
        else:
            fields = (turn[key] for key in ("score", "content", "state", "note"))
            shown.append(answer(turn["expert"], palette, *fields))
    empty = '<p class="ir-hint">Say something: each answer is labelled with the expert that gave it.</p>'
    turns_shown = f'<div class="ir-turns">{"".join(shown) or empty}</div>'
    return f'<div class="ir-chat" role="log" aria-label="Conversation" tabindex="0">{turns_shown}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table of cells that are HTML already; numbers are set to the right by class."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="ir-scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="ir-table ir-sticky"><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def experts(model: IR3DEModel, loaded: Iterable[Mapping[str, Any]], palette: Palette) -> str:
    """The table of a router's experts."""
    resident = {name for each in loaded for name in each["experts"]}
    rows = []
    for spec in model.config.specs:
        kind, source, revision = _source(spec)
        seen = model.statistics.get(spec["name"])
        memory = "yes" if spec["name"] in resident else {"remote": "elsewhere", _ONLY_ROUTES: "–"}.get(kind, "no")
        cost = f"{spec['cost']:g}" if "cost" in spec else "–"
        cells = (kind, source, revision, cost, f"{seen.rows('tokens'):,}" if seen else "–", memory)
        rows.append([palette.badge(spec["name"]), *map(escape, cells)])
    head = ("expert", "kind", "model", "revision", "cost", "tokens seen", "in memory")
    return table(head, rows, f"The {len(rows)} experts")


def _source(spec: ExpertSpec) -> tuple[str, str, str]:
    """Kind, model and revision of an expert; of what lies in a folder of this machine the last part alone."""
    model = _short(spec.get("gguf_file") or spec.get("model", "its base"))
    if is_remote(spec):
        return "remote", model, "the server's"
    if "adapter" in spec:
        return "adapter", f"{_short(spec['adapter'])} on {model}", spec.get("adapter_revision", "not pinned")
    if "model" not in spec:
        return _ONLY_ROUTES, "–", "–"
    return ("GGUF" if "gguf_file" in spec else "model"), model, spec.get("revision", "not pinned")


def _short(place: str) -> str:
    return Path(place).name if Path(place).is_absolute() else place


def confusion(figures: Mapping[str, Any], names: Sequence[str], palette: Palette, caption: str) -> str:
    """A confusion matrix, darker where more prompts went; the diagonal is right."""
    rows = []
    for domain, routes in figures["confusion"].items():
        total = sum(routes.values()) or 1
        cells = [f'<th scope="row">{palette.badge(domain)}</th>']
        for name in names:
            number = routes.get(name, 0)
            kind = "right" if name == domain else "wrong"
            cells.append(f'<td class="ir-{kind}" style="--w:{85 * number / total:.0f}%">{number or "·"}</td>')
        cells.append(f"<td>{percent(figures['domains'][domain]['recall'])}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    upright = " ir-upright" if len(names) > _ACROSS else ""
    return (
        f'<div class="ir-scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="ir-table ir-confusion ir-sticky{upright}"><caption>{escape(caption)}</caption>'
        f'<thead><tr><th scope="col">domain / taken for</th>{top}<th scope="col">right</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def curve(points: Sequence[tuple[int, float]], caption: str) -> str:
    """Accuracy over k as a line, k spaced by its logarithm's steps, and the same numbers as text."""
    width, height, left, top = 560, 200, 44, 14
    step = (width - left - 34) / max(len(points) - 1, 1)
    low = min(0.9, *(value for _, value in points))
    low = int(low * 10) / 10
    places = [
        (left + 10 + i * step, top + (height - 46) * (1 - (value - low) / (1 - low)), k, value)
        for i, (k, value) in enumerate(points)
    ]
    grid = "".join(
        f'<line x1="{left}" x2="{width - 6}" y1="{y:.1f}" y2="{y:.1f}" class="ir-grid"/>'
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
        for share in (low, (1 + low) / 2, 1)
        for y in [top + (height - 46) * (1 - (share - low) / (1 - low))]
    )
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>k = {k}: {100 * value:.1f} %</title></circle>'
        f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{k}</text>'
        for x, y, k, value in places
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in places)
    said = ", ".join(f"k = {k}: {100 * value:.1f} %" for k, value in points)
    return (
        f'<figure class="ir-figure"><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(said)}">{grid}<polyline points="{line}"/>{dots}</svg></figure>'
    )
