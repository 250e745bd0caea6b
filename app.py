"""The Space: see why a prompt goes where it goes, chat, edit, connect. `python app.py` starts it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import gradio as gr
import psutil  # type: ignore[import-untyped]
import torch
from gradio.events import api
from starlette.routing import Mount
from transformers.utils import logging

from ir3de.gateway.app import api as gateway_api
from ir3de.gateway.gateway import Gateway
from ir3de.gateway.generation import Piece, pieces
from ir3de.gateway.limits import Limits
from ir3de.gateway.loading import allowed_hosts
from ir3de.gateway.orders import Order
from ir3de.gateway.serving import prepare_in_background, served
from ir3de.gateway.settings import Settings
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.pipeline_ir3de import IR3DERoutingPipeline
from ir3de.prompts_ir3de import Prompt
from ir3de.scripts.data.rows import Row, read_file
from ir3de.scripts.fitting.embedded import build
from ir3de.space import chat, experts, measured, outcomes, route, views
from ir3de.space.site import Event, Options, Site

if TYPE_CHECKING:
    from ir3de.gateway.feedback import Keeping

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

LIMITS = Limits(body=1 << 20, messages=256, characters=100_000, max_tokens=1024, default_tokens=256, seconds=300)
STYLE = Path(__file__).resolve().parent / "space" / "style.css"
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
INTRO = """
<div class="ir-title"><h1>IR3DE: which expert should answer?</h1>
<p>Type a prompt, and see which expert it goes to, and why. The router is linear, over token embeddings, and fitted in
closed form.</p></div>
"""
SMALL = "These experts share one small model of 135 million parameters: watch where prompts go, not what it says."
CONNECT = """
### Any OpenAI client

```python
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
answer = client.chat.completions.create(
    model="ir3de",  # {or_one}
    messages=[{{"role": "user", "content": {prompt}}}],
    max_tokens=64,
    extra_body={{"ir3de": {{"min_score": 0.3, "stickiness": 0.2}}}},  # options of routing
)
answer.ir3de  # expert, score, ranking: who answered, and why
client.models.list()  # "ir3de", and each expert that answers
```

Streaming works as usual. A request has at most {limits.body:,} bytes, {limits.messages} messages and
{limits.max_tokens:,} new tokens; {limits.at_once} are answered at a time, {limits.waiting} wait, and further ones get
status 429.

### Gradio's client, and MCP

```python
from gradio_client import Client

Client("{url}").predict({prompt}, api_name="/route")
Client("{url}").predict({prompt}, api_name="/ask")
```

The same two are the tools of an MCP server at `{url}/gradio_api/mcp/`.
"""


def build_demo(site: Site) -> gr.Blocks:
    """Builds the interface; nothing is loaded or started.

    Args:
        site ([`Site`]): the router and its limits.
    """
    with gr.Blocks(title="IR3DE", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        _tools(site)  # first, since a tab's own functions would take their names
        visitor = gr.State(None, time_to_live=3600)
        gr.HTML(INTRO + (views.message(site.note) if site.note else ""))
        with gr.Tabs():
            with gr.Tab("Route", id="route"):
                route.build(site, visitor, demo)
            with gr.Tab("Chat", id="chat"):
                chat.build(site, visitor)
            with gr.Tab("Experts", id="experts") as tab:
                experts.build(site, visitor, tab)
            if site.router.model.outcomes:
                with gr.Tab("Outcomes", id="outcomes") as tab:
                    outcomes.build(site, visitor, tab)
            with gr.Tab("Measured", id="measured") as tab:
                measured.build(site, visitor, tab)
            with gr.Tab("Connect", id="connect"):
                how = gr.Markdown()

        def connect(request: gr.Request) -> str:
            """How to reach this server, under the name that the visitor knows it by."""
            url = f"{request.url.scheme}://{request.url.netloc}"
            prompt = json.dumps(next(iter(route.examples(site.samples)), "A prompt"), ensure_ascii=False)
            silent = site.routing_only(None)
            answering = [name for name in site.router.model.config.expert_names if name not in silent]
            one = f", such as {json.dumps(answering[0], ensure_ascii=False)}" if answering else ""
            return CONNECT.format(url=url, or_one=f"or one expert by its name{one}", limits=site.limits, prompt=prompt)

        demo.load(connect, None, how, queue=False, api_visibility="private")
    demo.queue(max_size=64, default_concurrency_limit=4)
    return cast(gr.Blocks, demo)


def _tools(site: Site) -> None:
    """The named endpoints of Gradio's API, which are MCP tools too."""

    def route(prompt: str, experts: list[str] | None = None) -> dict[str, Any]:
        """Says which expert should answer a prompt, without answering it.

        Args:
            prompt: the text to route.
            experts: names of those that may be chosen; all by default.
        """
        options: Options = {"experts": experts} if experts else {}
        record: dict[str, Any] = _checked(lambda: site.router(site.check(prompt), generate=False, **options))
        return record

    def ask(prompt: str, expert: str | None = None, max_tokens: int = 128) -> dict[str, Any]:
        """Routes a prompt and lets the chosen expert answer it.

        Args:
            prompt: the text to answer.
            expert: name of the one that shall answer; by default the router chooses.
            max_tokens: length of the answer at most.
        """
        options: Options = {"max_new_tokens": min(max_tokens, site.limits.max_tokens)}
        options |= {"experts": [expert]} if expert else {}
        *_, record = _checked(lambda: list(site.answer(None, site.check(prompt), **options)))
        return {"expert": record["expert"], "score": record["score"], "answer": record["generated_text"]}

    api(route, api_name="route", concurrency_id="routes")
    api(ask, api_name="ask", concurrency_id="answers", concurrency_limit=2)


def _checked(work: Callable[[], T]) -> T:
    """The result of `work`, with a refusal as an error that Gradio shows."""
    try:
        return work()
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error)) from None


def launch(site: Site, demo: gr.Blocks, **kwargs: Any) -> object:
    """Starts the interface with the endpoint beside it, on the same server."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO).set(
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
    serving = served(site.router)
    prepare_in_background(serving)
    gateway = Gateway(serving, Settings(limits=site.limits), site.generate, site.keeping)
    return demo.launch(
        app_kwargs={"routes": [Mount("/v1", gateway_api(gateway))]},
        theme=theme,
        css_paths=[STYLE],
        footer_links=["api"],
        run_history=False,
        max_file_size="64mb",
        state_session_capacity=500,
        mcp_server=importlib.util.find_spec("mcp") is not None,
        ssr_mode=False,
        **kwargs,
    )


def load(
    router: str | None = None,
    revision: str | None = None,
    samples: str | None = None,
    second_opinion: bool = False,
    store: str | None = None,
) -> Site:
    """Loads a router with its samples.

    Args:
        router (`str`, *optional*): folder or Hub id; by default the embedded router.
        revision (`str`, *optional*): of the router.
        samples (`str`, *optional*): JSON Lines of `text` and `domain`; by default those that travel with the router.
        second_opinion (`bool`): ask the router's second opinion on prompts that it is unsure of.
        store (`str`, *optional*): a file of SQLite, or the address of a database, where judged answers are kept.

    Raises:
        ValueError: an expert of a router on the Hub answers from an address that is not public. The environment
            variable `IR3DE_ALLOW_HOSTS` names hosts that may.
    """
    model = IR3DEModel.from_pretrained(router or build(), revision=revision)
    of_the_hub = router and not os.path.isdir(router)
    known = {"private_hosts": allowed_hosts(model.config.experts or [])} if of_the_hub else {}
    budget = os.environ.get("IR3DE_MAX_MEMORY") or _half_of_memory(model.device)
    pipe = IR3DERoutingPipeline(model, second_opinion=second_opinion, max_memory=budget, expert_kwargs=known)
    rows = list(read_file(samples)) if samples else [Row(*sample) for sample in model.samples]

    def stream(prompt: Prompt, **options: Any) -> Iterator[Event]:
        """The pipeline's stream as a generator function, which is what a lent GPU is asked for."""
        yield from pipe.stream(prompt, **options)

    def generate(name: str, order: Order, max_tokens: int, seconds: float) -> Iterator[Piece]:
        """The gateway's generation, likewise; the pool of experts cannot travel to another process."""
        yield from pieces(pipe.experts, name, order, max_tokens, seconds)

    lent = _on_lent_hardware(generate)
    allow_edit = os.environ.get("IR3DE_ALLOW_EDIT") == "1"
    return Site(
        pipe,
        _on_lent_hardware(stream),
        LIMITS,
        rows,
        allow_edit,
        "" if router else SMALL,
        lambda _, *order: lent(*order),
        _keeping(store) if store else None,
    )


def _keeping(place: str) -> Keeping:
    """Where judged answers are kept."""
    from ir3de.gateway.feedback import Keeping  # which needs the package of databases
    from ir3de.traffic.store import Store

    return Keeping(Store(place))


def _half_of_memory(device: torch.device) -> int:
    """Bytes that experts may take where the owner does not say: visitors may ask for any model of the Hub."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 2
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    own = limit.read_text().strip() if limit.is_file() else "max"
    total: int = psutil.virtual_memory().total
    return min(total, int(own) if own.isdigit() else total) // 2


def _on_lent_hardware(function: Function) -> Function:
    """On a Space with ZeroGPU, the function with a GPU for the time of each call."""
    if importlib.util.find_spec("spaces") is None:
        return function
    from spaces import GPU

    return cast(Function, GPU(function))


def main() -> None:
    """Starts the app; a Space sets the environment variables that stand for the options."""
    logging.set_verbosity_error()  # folders of this machine would be in the log
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=main.__doc__)
    options = {
        "router": "folder or Hub id of a router; default: the embedded one",
        "revision": "of a router on the Hub",
        "samples": "JSON Lines of labelled prompts that are shown as examples; default: the router's own",
        "store": "file of SQLite, or address of a database, where judged answers are kept",
    }
    for name, does in options.items():
        parser.add_argument(f"--{name}", default=os.environ.get(f"IR3DE_{name.upper()}"), help=does)
    asks = os.environ.get("IR3DE_SECOND_OPINION") == "1"
    parser.add_argument(
        "--second-opinion", action="store_true", default=asks, help="ask the router's second opinion where unsure"
    )
    args = parser.parse_args()
    site = load(**vars(args))
    demo = build_demo(site)
    launch(site, demo, prevent_thread_lock=True)
    if not args.router:  # once the page is up, so that it need not wait
        site.router.experts.preload(site.router.model.config.expert_names)
    demo.block_thread()


if __name__ == "__main__":
    main()
