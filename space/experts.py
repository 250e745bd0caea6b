"""The Experts tab: the table of experts and, where the owner allows it, edits of a visitor's own copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import gradio as gr

from ir3de.modeling_ir3de import IR3DEModel
from ir3de.names_ir3de import name_of_file
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.scripts.reports.words import number_of
from ir3de.space import views
from ir3de.space.sharing import packed, public_words, push, stranger
from ir3de.space.site import Options, Site, Visitor
from ir3de.specs_ir3de import ExpertSpec, check_hub_id

_PASTED = 200_000  # characters of example texts
_OFF = "The experts of this page are fixed. Its owner may let each visitor add and remove some in a copy of their own."
_ON = "What you edit is a copy of your own: other visitors and the endpoint keep the router as it is."
_EDITING: Options = {"concurrency_id": "edits", "api_visibility": "private"}

Edited = tuple[Visitor | None, str]  # the visitor, and what came of it as HTML


def build(site: Site, visitor: gr.State, tab: gr.Tab) -> None:
    """Builds the tab."""
    table = gr.HTML(elem_id="experts")

    def show(visitor: Visitor | None) -> str:
        """The table of the experts that the visitor sees."""
        router = site.router_of(visitor)
        return views.experts(router.model, router.loaded_experts, site.palette_of(visitor))

    events = [tab.select, visitor.change]
    gr.on(events, show, visitor, table, queue=False, show_progress="hidden", api_visibility="private")
    gr.HTML(views.message(_ON if site.allow_edit else _OFF))
    if site.allow_edit:
        result = gr.HTML(elem_id="edit-result")
        with gr.Row():
            with gr.Column(min_width=300):
                _add(site, visitor, result)
            with gr.Column(min_width=300):
                _remove(site, visitor, result)
                _share(site, visitor, result)


def _add(site: Site, visitor: gr.State, result: gr.HTML) -> None:
    """Adds an expert, from texts, from a statistics file, or with another router."""
    gr.Markdown("### Add an expert")
    fields = _fields()

    def add_texts(visitor: Visitor | None, texts: str, name: str, *fields: str) -> Edited:
        """Adds an expert whose domain is known from pasted lines."""
        lines = [line for line in texts[:_PASTED].splitlines() if line.strip()]
        return _edit(
            site, visitor, lambda router: router.add_expert(_spec(name, *fields), texts=lines), f"Added {name}"
        )

    def add_file(visitor: Visitor | None, path: str | None, name: str, *fields: str) -> Edited:
        """Adds an expert whose domain is known from a file of statistics."""
        if not path:
            return visitor, views.message("Choose a statistics file first.", "error")
        name = name or name_of_file(Path(path).stem)
        return _edit(
            site,
            visitor,  # whose own copy it is, so that the file may take prompts of others
            lambda router: router.add_expert(_spec(name, *fields), statistics=path, own=True),
            f"Added {name}",
        )

    def add_hub(visitor: Visitor | None, repo: str) -> Edited:
        """Adds all experts of a router on the Hub."""
        return _edit(site, visitor, lambda router: router.merge(stranger(repo)), f"Merged {repo}")

    with gr.Tabs():
        with gr.Tab("From texts"):
            texts = gr.Textbox(
                label="Prompts of its domain, one a line", lines=5, max_length=_PASTED, elem_id="new-texts"
            )
            from_texts = gr.Button("Add", variant="primary", elem_id="add-texts")
        with gr.Tab("From a file"):
            file = gr.File(
                label="Statistics by ir3de collect", file_types=[".safetensors"], height=120, elem_id="new-file"
            )
            from_file = gr.Button("Add", variant="primary", elem_id="add-file")
        with gr.Tab("From the Hub"):
            repo = gr.Textbox(
                label="Another router",
                info="Its experts join under their own names. It must be fitted on the same model's embeddings.",
                placeholder="org/router",
                elem_id="new-repo",
            )
            from_hub = gr.Button("Add", variant="primary", elem_id="add-hub")
    from_texts.click(add_texts, [visitor, texts, *fields], [visitor, result], **_EDITING)
    from_file.click(add_file, [visitor, file, *fields], [visitor, result], **_EDITING)
    from_hub.click(add_hub, [visitor, repo], [visitor, result], **_EDITING)


def _fields() -> list[gr.Textbox]:
    """Name, model, revision and cost of the new expert."""
    name = gr.Textbox(label="Name", max_length=64, elem_id="new-name")
    model = gr.Textbox(label="Model that answers", info="A Hub id; without one it only routes.", placeholder="org/llm")
    with gr.Row():
        revision = gr.Textbox(label="Revision", placeholder="a commit, tag or branch", min_width=120)
        cost = gr.Textbox(label="Cost", placeholder="a number, in any unit", min_width=120)
    return [name, model, revision, cost]


def _spec(name: str, model: str, revision: str, cost: str) -> ExpertSpec:
    """The spec that the fields say.

    Raises:
        ValueError: the model is no id of a repository, or the cost no number.
    """
    fields = {
        "name": name.strip(),
        "model": model.strip() and check_hub_id("The model", model.strip()),
        "revision": revision.strip(),
    }
    made = cast(ExpertSpec, {key: value for key, value in fields.items() if value})
    if cost.strip():
        try:
            made["cost"] = float(cost)
        except ValueError:
            raise ValueError(f"The cost must be a number, got {cost.strip()[:40]!r}.") from None
    return made


def _remove(site: Site, visitor: gr.State, result: gr.HTML) -> None:
    """Removes an expert, and undoes edits."""
    gr.Markdown("### Remove one, or undo")
    gone = gr.Dropdown(site.router.model.config.expert_names, value=None, label="Expert", elem_id="old-name")
    with gr.Row():
        remove = gr.Button("Remove", elem_id="remove", min_width=100, interactive=False)
        undo = gr.Button("Undo the last edit", elem_id="undo", min_width=140, interactive=False)

    def drop(visitor: Visitor | None, name: str | None) -> Edited:
        """Removes the chosen expert."""
        if name is None:
            return visitor, views.message("Choose an expert first.", "error")
        return _edit(site, visitor, lambda router: router.remove_expert(name), f"Removed {name}")

    def back(visitor: Visitor | None) -> Edited:
        """Takes the last edit back."""
        if visitor is None:
            return None, views.message("There is nothing to undo.")
        after = site.undone(visitor)
        return after, compared(site, visitor.router, site.router_of(after), "Undone")

    def follow(visitor: Visitor | None) -> tuple[Options, Options]:
        """The names to choose from, and whether there is something to undo."""
        names = site.router_of(visitor).model.config.expert_names
        return gr.update(choices=names, value=None), gr.update(interactive=visitor is not None)

    remove.click(drop, [visitor, gone], [visitor, result], **_EDITING)
    undo.click(back, visitor, [visitor, result], **_EDITING)
    at_once: Options = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    visitor.change(follow, visitor, [gone, undo], **at_once)
    gone.change(lambda name: gr.update(interactive=name is not None), gone, remove, **at_once)


def _share(site: Site, visitor: gr.State, result: gr.HTML) -> None:
    """Downloads the visitor's router, or pushes it to the Hub."""
    gr.Markdown("### Keep it")
    pack = gr.Button("Pack it to download", elem_id="pack")
    file = gr.File(label="The router", interactive=False, visible=False, elem_id="download")
    target = gr.Textbox(label="Push it to the Hub as", placeholder="you/router", elem_id="target")
    token = gr.Textbox(
        label="Your token with the right to write",
        info="Used for this push, never stored.",
        type="password",
        elem_id="token",
    )
    as_pr = gr.Checkbox(label="As a pull request")
    send = gr.Button("Push", elem_id="push", interactive=False)

    def pushed(visitor: Visitor | None, repo: str, token: str, as_pr: bool) -> tuple[str, str]:
        """Pushes the visitor's router, and empties the field of the token."""
        done, said = push(site.router_of(visitor).model, repo, token.strip(), as_pr)
        return views.message(said, "hint" if done else "error"), ""

    def pack_it(visitor: Visitor | None) -> Options:
        """Packs the visitor's router into a file to download."""
        return gr.update(value=packed(site.router_of(visitor).model), visible=True)

    def ready(repo: str, token: str) -> Options:
        """Makes the button active once both fields are filled."""
        return gr.update(interactive=bool(repo.strip() and token.strip()))

    at_once: Options = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.on([target.change, token.change], ready, [target, token], send, **at_once)
    pack.click(pack_it, visitor, file, **_EDITING)
    send.click(pushed, [visitor, target, token, as_pr], [result, token], **_EDITING)


def _edit(site: Site, visitor: Visitor | None, change: Callable[[IR3DEModel], object], what: str) -> Edited:
    """The visitor after an edit, or as before with the reason for a refusal."""
    try:
        after = site.edited(visitor, change)
    except (ValueError, OSError) as error:
        return visitor, views.message(public_words(error), "error")
    except Exception as error:  # which the visitor should not read
        return visitor, views.message(site.sorry(error), "error")
    return after, compared(site, site.router_of(visitor), after.router, what)


def compared(site: Site, before: IR3DERoutingPipeline, after: IR3DERoutingPipeline, what: str) -> str:
    """Accuracy on the samples before and after an edit, as HTML."""
    shown = []
    for when, router in (("before", before), ("after", after)):
        figures = site.figures(router)
        said = views.percent(figures["macro_accuracy"]) if figures else "–"
        of = "no samples"
        if figures:
            prompts = number_of(figures["prompts"], "sample prompt", "sample prompts")
            of = f"on {prompts} of {number_of(len(figures['domains']), 'domain', 'domains')}"
        shown.append(f'<div class="ir-tile"><b>{said}</b><span>accuracy {when}, {of}</span></div>')
    return f'<div role="status">{views.message(what + ".")}<div class="ir-tiles">{"".join(shown)}</div></div>'
