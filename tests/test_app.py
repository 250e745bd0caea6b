"""The app without a browser: what its tabs show, its API, its MCP tools, and what visitors may do to each other."""

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import openai
import pytest
import torch
from gradio_client import Client

from ir3de import IR3DEModel
from ir3de.app import build_demo
from ir3de.scripts.data.rows import Row
from ir3de.scripts.fitting.embedded import as_published
from ir3de.space import chat, experts, measured, outcomes, route, sharing, thumbs, views
from ir3de.space.palette import Palette
from ir3de.space.site import RefusedError, Site
from ir3de.specs_ir3de import check_hub_id

from . import tiny
from .live_app import judged_site, make_site, running

CODE, LAW = "debug my python loop", "the court and a judge"
MARKUP = "<img src=x onerror=alert(1)> <script>alert(2)</script> court"


@pytest.fixture(scope="module")
def site(expert_specs: dict[str, dict[str, Any]]) -> Site:
    """The tiny world's site."""
    return make_site(expert_specs)


@pytest.fixture(scope="module")
def judged(expert_specs: dict[str, dict[str, Any]]) -> Site:
    """The same with outcomes."""
    return judged_site(expert_specs)


@pytest.fixture(scope="module")
def url(site: Site) -> Iterator[str]:
    """The address of the running app."""
    with running(site) as address:
        yield address


# Route.


def test_the_route_view_shows_the_ranking_and_what_each_token_supports(site: Site) -> None:
    ranking, tokens = route.shown(site, "court tell me of python", route.Controls("top-k", 1, 0, 0), None)
    record = site.router("court tell me of python", generate=False, explain=True, variant="top-k", num_votes=1)
    for entry in record["ranking"]:
        assert f"{100 * entry['score']:.1f}" in ranking
    assert ranking.index(record["expert"]) < ranking.index(record["ranking"][1]["expert"])
    assert tokens.count("ir-out") == 4
    assert "left out" in tokens


def test_each_control_acts(site: Site) -> None:
    def seen(*choice: Any) -> str:
        return route.shown(site, "court python", route.Controls(*choice), None)[0]

    plain = seen("prompt", 1, 0, 0)
    assert seen("avg", 1, 0, 0) != plain
    assert seen("top-k", 1, 0, 0) != seen("top-k", 2, 0, 0)
    assert "Nobody" in seen("prompt", 1, 1, 0)
    assert "code</span> answers" in seen("prompt", 1, 0, 1), "the cheapest"


@pytest.mark.parametrize("text", [MARKUP, "a & b < c > \"d\" 'e'"])
def test_markup_is_shown_as_text(site: Site, text: str) -> None:
    shown = "".join(route.shown(site, text, route.Controls("prompt", 1, 0, 0), None))
    shown += views.answer("law", site.palette, 1, text)
    shown += views.conversation([{"role": "user", "content": text}], site.palette)
    shown += views.message(text) + views.text(f"```html\n{text}```")
    for tag in ("<img", "<script", "b < c", '"d"'):
        assert tag not in shown
    assert "&lt;" in shown


def test_the_app_says_which_tokens_were_never_seen(site: Site) -> None:
    record = site.router("court tell me", generate=False, explain=True)
    assert "Never seen" not in views.tokens(record, site.palette)
    for token, known in zip(record["tokens"], (True, False, True), strict=True):
        token["known"], token["familiarity"] = known, -0.25
    shown = views.tokens(record, site.palette)
    assert "Never seen by this router before: <code>tell</code>." in shown
    assert "<td>-0.25, never seen</td>" in shown
    assert "adds to familiarity" in shown


def test_a_bad_prompt_is_explained(site: Site) -> None:
    for text, said in (("", "Type a prompt"), ("court\ud83d", "U+D83D"), ("court " * 1000, "at most 2,000")):
        assert said in route.shown(site, text, route.Controls("prompt", 1, 0, 0), None)[0]
    assert "at most" in list(route.answered(site, "court " * 1000, 8, route.Controls("prompt", 1, 0, 0), None))[-1]


def test_colours_of_a_terminal_are_answered_and_shown_as_text(site: Site) -> None:
    text = "court \x1b[31mjudge\x00\x9b2J <b>"
    ranking, tokens = route.shown(site, text, route.Controls("prompt", 1, 0, 0), None)
    assert "law" in ranking
    assert not set(tokens) & set("\x00\x1b\x9b")
    assert "\\x1b" in tokens
    assert "law" in list(route.answered(site, text, 8, route.Controls("prompt", 1, 0, 0), None))[-1]
    *_, (html, turns, _, notice) = chat.replied(site, text, [], 0, "last", 4, None)
    assert (turns[0]["content"], notice) == (text, "")
    assert "court \\x1b[31mjudge\\x00\\x9b2J &lt;b&gt;" in html


def test_the_answer_grows_and_names_its_expert(site: Site) -> None:
    panes = list(route.answered(site, LAW, 8, route.Controls("prompt", 1, 0, 0), None))
    assert len(panes) > 1
    assert 'aria-busy="true"' in panes[0]
    assert 'aria-busy="false"' in panes[-1]
    assert "Answer of law" in panes[-1]
    assert "nobody answers" in list(route.answered(site, LAW, 8, route.Controls("prompt", 1, 1, 0), None))[-1]


def test_two_experts_are_compared(site: Site) -> None:
    left, right = list(route.compared(site, LAW, 8, route.Controls("prompt", 1, 0, 0), None))[-1]
    first, second = (entry["expert"] for entry in site.router(LAW, generate=False, top_n=2)["ranking"])
    assert f"Answer of {first}" in left
    assert f"Answer of {second}" in right


def test_an_expert_that_fails_is_explained_to_the_owner_alone(caplog: pytest.LogCaptureFixture) -> None:
    broken = make_site({name: {"model": f"/secret/{name}"} for name in tiny.DOMAINS})
    for shown in (
        list(route.answered(broken, LAW, 8, route.Controls("prompt", 1, 0, 0), None))[-1],
        list(chat.replied(broken, LAW, [], 0, "last", 8, None))[-1][-1],
        views.experts(broken.router.model, [], broken.palette),
    ):
        assert "secret" not in shown
    assert "Expert law did not answer" in caplog.text
    assert "/secret/law" in caplog.text
    assert "No expert could answer" in list(chat.replied(broken, LAW, [], 0, "last", 8, None))[-1][-1]


def test_the_page_gets_all_of_an_answer_in_few_pieces(site: Site) -> None:
    events = list(site.answer(None, LAW, max_new_tokens=40, do_sample=False))
    texts = [event["text"] for event in events if event["event"] == "text"]
    assert "".join(texts) == events[-1]["generated_text"]
    assert len(texts) < 20


def test_an_error_of_the_app_is_for_the_log(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("`num_votes` of /home/owner/router is wrong")

    monkeypatch.setattr(site, "stream", fail)
    controls = route.Controls("prompt", 1, 0, 0)
    *_, chat_notice = list(chat.replied(site, LAW, [], 0, "last", 8, None))[-1]
    for shown in (list(route.answered(site, LAW, 8, controls, None))[-1], chat_notice):
        assert "num_votes" not in shown
        assert "in its log" in shown
    assert caplog.text.count("\nValueError: `num_votes` of /home/owner/router is wrong") == 2


def test_the_route_says_how_familiar_a_prompt_is() -> None:
    record: Any = {"expert": "law", "ranking": [{"expert": "law", "score": 0.9}]}
    palette = Palette().having(["law"])
    assert "familiar" not in views.route(record, palette)
    assert "31.0&nbsp;% of the prompts" in views.route({**record, "familiarity": 0.31}, palette)
    assert "Unlike nearly all" in views.route({**record, "familiarity": 0.01}, palette)


def test_an_expert_that_only_routes_is_labelled() -> None:
    silent = make_site({name: {} for name in tiny.DOMAINS})
    controls = route.Controls("prompt", 1, 0, 0)
    ranking, _ = route.shown(silent, LAW, controls, None)
    assert "law</span> is chosen, but only routes" in ranking
    assert ranking.count(">only routes<") == 3
    assert "law only routes" in list(route.answered(silent, LAW, 8, controls, None))[-1]
    assert all("only routes" in part for part in list(route.compared(silent, LAW, 8, controls, None))[-1])
    assert "law only routes" in list(chat.replied(silent, LAW, [], 0, "last", 8, None))[-1][-1]
    assert views.experts(silent.router.model, [], silent.palette).count("only routes") == 3


def test_examples_are_the_routers_own(site: Site) -> None:
    samples = [Row(f"{domain} {number}", domain) for domain in ("billing", "delivery") for number in range(9)]
    assert route.examples(samples)[:4] == ["billing 0", "delivery 0", "billing 1", "delivery 1"]
    assert route.examples([Row("x" * 500, "billing"), *samples])[0] == "billing 0"
    assert route.examples([Row("x" * 500, "billing")]) == ["x" * 500]
    assert route.examples([]) == []
    page = str(build_demo(site).config)
    assert site.samples[0].text in page
    assert "prime" not in page, "no example of another router"
    assert build_demo(make_site({name: {} for name in tiny.DOMAINS}, samples=[])) is not None


def test_what_is_said_of_costs_is_true() -> None:
    def said(*costs: bool) -> tuple[str, bool]:
        specs = [{"name": name, **({"cost": 1} if costs[place] else {})} for place, name in enumerate(tiny.DOMAINS)]
        return route._about_costs(tiny.router({spec["name"]: spec for spec in specs}))

    assert said(False, False, False) == ("This router's experts have no costs.", False)
    assert said(True, False, True) == ("Needs the cost of every expert that answers, and law has none.", False)
    assert said(True, False, False) == ("Needs the cost of every expert that answers, and 2 of 3 have none.", False)
    assert said(True, True, True)[1]
    some = make_site({name: {} for name in tiny.DOMAINS})
    added = some.edited(None, lambda model: model.add_expert("art", texts=tiny.sentences("law", 9, seed=4)))
    refused = route.shown(some, LAW, route.Controls("prompt", 1, 0, 0.5), added)[0]
    assert "Set the cost weight to 0. Needs the cost of every expert that answers, and art has none." in refused


def test_an_expert_keeps_its_colour() -> None:
    names = [f"expert-{number}" for number in range(40)]
    palette = Palette().having(names[:5])
    more = palette.having(names)
    assert all(more.style(name) == palette.style(name) for name in names[:5])
    assert len({more.style(name) for name in names}) == 40, "40 looks that differ"
    assert len({palette.looks[name].colour for name in names[:5]}) == 5
    assert Palette().having(["math"]).style("math") == Palette().having(["math"]).style("math")
    assert Palette().having(names[:12]).looks.keys() == {*names[:12]}


def test_adding_an_expert_recolours_nobody(site: Site) -> None:
    added = site.edited(None, lambda model: model.add_expert("art", texts=tiny.sentences("law", 9, seed=4)))
    assert all(added.palette.style(name) == site.palette.style(name) for name in tiny.DOMAINS)
    removed = site.edited(added, lambda model: model.remove_expert("code"))
    assert removed.palette.style("art") == added.palette.style("art")


# Chat.


def test_a_chat_keeps_to_its_expert_as_far_as_stickiness_goes(site: Site) -> None:
    *_, (_, turns, said, notice) = chat.replied(site, CODE, [], 1, "last", 8, None)
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[1]["expert"] == "code"
    assert (said, notice) == ("", "")
    *_, (html, sticky, _, _) = chat.replied(site, LAW, turns, 1, "last", 8, None)
    assert sticky[3]["expert"] == "code"
    assert "Stays with code: law leads by" in html
    *_, (html, loose, _, _) = chat.replied(site, LAW, turns, 0, "last", 8, None)
    assert loose[3]["expert"] == "law"
    assert "Stays" not in html


def test_a_message_that_is_refused_leaves_the_chat_as_it_was(site: Site) -> None:
    *_, (_, turns, _, _) = chat.replied(site, CODE, [], 0, "last", 4, None)
    *_, (_, after, said, notice) = chat.replied(site, "court\ud83d", turns, 0, "last", 4, None)
    assert after == turns
    assert said == "court\ud83d"
    assert "U+D83D" in notice


# Thumbs.


def judged_events(site: Site, text: str, visitor: Any = None) -> dict[str, Any]:
    """What the page knows of an answer once it is complete."""
    records: list[Any] = []
    list(route.answered(site, text, 8, route.Controls("prompt", 10, 0, 0), visitor, records.append))
    (record,) = records
    assert record is not None
    return record


def test_thumbs_teach_a_visitors_own_copy(site: Site) -> None:
    before = site.router(LAW, generate=False)
    record = judged_events(site, LAW)
    assert record["expert"] == "law"
    visitor, said = site.judged(None, record, 0.0)
    assert "law was bad" in said
    assert site.router(LAW, generate=False) == before
    assert visitor.router.model.outcomes.sums(["law"], ["law"])[0, 0, 0] > 0
    again, _ = site.judged(visitor, record, 1.0)
    sums = again.router.model.outcomes.sums(site.router.model.config.domain_names, ["law"])
    assert sums[:, 0, 0].sum() == sums[:, 0, 1].sum() == 1 << 20, "the second in the place of the first"
    back, _ = site.judged(site.undone(again), record, 0.0)
    assert back.router.model.outcomes.sums(["law"], ["law"])[0, 0, 1] == 0


def test_the_chat_can_be_judged_once_an_answer_is_complete(site: Site) -> None:
    *_, (_, turns, _, _) = chat.replied(site, CODE, [], 0, "last", 4, None)
    record = turns[-1]["record"]
    assert [record["expert"], *record["recognised"]] == ["code", *tiny.DOMAINS]
    assert thumbs.shown(record)[1]["interactive"]
    assert not thumbs.shown(None)[1]["interactive"]
    assert thumbs.record_of({**record, "generated_text": None}) is None


def test_thumbs_go_to_the_owners_store_where_there_is_one(
    expert_specs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from ir3de.gateway.feedback import Keeping
    from ir3de.traffic.remade import remade
    from ir3de.traffic.store import Store

    store = Store(str(tmp_path / "store.sqlite"))
    owned = make_site(expert_specs, keeping=Keeping(store), allow_edit=False)
    record = judged_events(owned, LAW)
    for score in (1.0, 0.0):
        assert owned.judged(None, record, score)[0] is None
    ledger = remade(store).ledger
    assert ledger.sums(list(tiny.DOMAINS), ["law"])[:, 0, :2].sum(axis=0).tolist() == [1 << 20, 0]
    store.close()
    closed = make_site(expert_specs, allow_edit=False)
    assert not closed.may_judge
    with pytest.raises(RefusedError):
        closed.judged(None, record, 1.0)


# Experts.


def test_edits_are_a_visitors_own_and_can_be_undone(site: Site) -> None:
    before = site.router(LAW, generate=False)
    removed = site.edited(None, lambda model: model.remove_expert("law"))
    assert site.router(LAW, generate=False) == before
    assert site.router_of(removed)(LAW, generate=False)["expert"] != "law"
    added = site.edited(removed, lambda model: model.add_expert("art", texts=tiny.sentences("law", 9, seed=4)))
    assert site.router_of(added)(LAW, generate=False)["expert"] == "art"
    assert site.undone(added).router is removed.router
    assert site.undone(removed) is None
    with pytest.raises(ValueError, match="no expert 'law'"):
        site.edited(added, lambda model: model.remove_expert("law"))
    assert added.router.model.config.expert_names == ["art", "code", "math"]


def test_an_edit_shows_accuracy_before_and_after(site: Site) -> None:
    after = site.edited(None, lambda model: model.remove_expert("law"))
    html = experts.compared(site, site.router, after.router, "Removed law")
    assert "18 sample prompts of 3 domains" in html
    one = make_site({name: {} for name in tiny.DOMAINS}, samples=[Row("court", "law")])
    assert "1 sample prompt of 1 domain<" in experts.compared(one, one.router, one.router, "Nothing")
    assert "12 sample prompts of 2 domains" in html


def test_the_table_tells_what_is_in_memory(site: Site) -> None:
    site.router.experts.unload()
    before = views.experts(site.router.model, site.router.loaded_experts, site.palette)
    site.router(LAW, max_new_tokens=1)
    after = views.experts(site.router.model, site.router.loaded_experts, site.palette)
    assert before.count(">yes<") == 0
    assert after.count(">yes<") == 1
    assert "tokens seen" in after


def test_a_packed_router_is_whole_and_names_no_folder_of_this_machine(
    expert_specs: dict[str, dict[str, Any]], site: Site, tmp_path: Path
) -> None:
    edited = site.edited(None, lambda model: model.remove_expert("math"))
    with zipfile.ZipFile(sharing.packed(edited.router.model)) as archive:
        archive.extractall(tmp_path)
    assert expert_specs["law"]["model"] not in (tmp_path / "router" / "config.json").read_text()
    loaded = IR3DEModel.from_pretrained(tmp_path / "router")
    assert torch.equal(loaded.prompt_router.weight, edited.router.model.prompt_router.weight)
    assert edited.router.model.config.experts[0]["model"], "the visitor's own is as it was"


def test_published_specs_keep_what_others_can_reach() -> None:
    assert as_published({"name": "a", "model": "org/a", "cost": 1}) == {"name": "a", "model": "org/a", "cost": 1}
    assert as_published({"name": "a", "model": "/home/me/a", "cost": 1}) == {"name": "a", "cost": 1}
    spec = {"name": "a", "model": "org/a", "adapter": "/home/me/b", "adapter_revision": "x"}
    assert as_published(spec) == {"name": "a", "model": "org/a"}


@pytest.mark.parametrize("name", ["../etc", "/etc/passwd", "tests", "a/b/c", "tests/tiny.py", "http://x/y", "", "a/.."])
def test_a_hub_id_is_no_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ValueError, match="id of a repository"):
        check_hub_id("The model", name)


def test_a_push_that_fails_does_not_tell_the_token(site: Site) -> None:
    for repo in ("you/router", "not an id"):
        done, said = sharing.push(site.router.model, repo, "hf_secret", False)
        assert not done
        assert "hf_secret" not in said
    assert sharing.push(site.router.model, "you/router", "", False) == (False, "Give a token that may write.")


# Measured.


def test_figures_are_those_of_the_samples(site: Site) -> None:
    html = measured.figures(site, None)
    accuracy = site.figures(site.router)["macro_accuracy"]
    assert f"{100 * accuracy:.1f} % are right" in html
    assert "k = 10:" in html
    assert "no figures of its own" in html


def test_latency_is_measured_now(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_encoder", lambda: None)
    html = measured.latency(site, None)
    assert "tokenizing and routing" in html
    assert "No sentence encoder" in html


# Outcomes.


def test_the_outlook_is_that_of_the_ledger(judged: Site) -> None:
    outlook = outcomes._outlook(judged.router.model)
    assert outlook is not None
    assert list(outlook.experts) == ["code", "law", "math"], "the cheapest first"
    assert outlook.n.tolist() == [[40.0] * 3] * 3
    assert outlook.score[1, 1] == outlook.score[1].max()
    turns = outlook.turns()
    assert turns == sorted(turns)
    before = outlook.choice(0)
    assert [outlook.experts[column] for column in before] == ["code", "law", "math"]
    for turn in turns:
        below, above = outlook.choice(turn * 0.999), outlook.choice(turn * 1.001)
        assert (below != above).sum() == 1, "one domain goes to another expert"
        assert outlook.point(turn * 1.001).cost < outlook.point(turn * 0.999).cost
    assert [outlook.experts[column] for column in outlook.choice(turns[-1] * 1.001)] == ["code"] * 3
    assert (outlook.choice(outlook.weights()[-1]) == 0).all()
    assert len(outlook.weights()) == outcomes.STEPS + 1


def test_the_slider_moves_the_ring_and_who_answers(judged: Site) -> None:
    free, thrifty = outcomes.frontier(judged, 0, None), outcomes.frontier(judged, outcomes.STEPS, None)
    assert "cost_weight=0 " in free
    assert "The best single expert, math, scores" in free
    assert free.count("ir-alone") == 3
    assert free.split("Who answers what")[2].count(">law<") == 2
    assert thrifty.split("Who answers what")[2].count(">law<") == 1, "the domain, but no longer the expert"
    assert "Set the cost weight" not in route.shown(judged, LAW, route.Controls("prompt", 1, 0, 0.1), None)[0]


def test_the_heat_map_shows_each_pair(judged: Site) -> None:
    shown = outcomes.heat_map(judged, None)
    assert shown.count("<td") == 9
    assert shown.count("ir-best") == 3
    assert shown.count("40 judged") == 9
    assert "costs 0.002" in shown
    outlook = outcomes._outlook(judged.router.model)
    assert f"<b>{outlook.score[1, 1]:.2f}</b>" in shown
    assert outcomes.heat_map(make_site({name: {} for name in tiny.DOMAINS}), None) == ""


def test_costs_that_nobody_knows_cannot_be_weighed() -> None:
    site = make_site({name: {} for name in tiny.DOMAINS})
    model = site.router.model
    model.config.set_experts([{"name": name} for name in tiny.DOMAINS])
    model.add_outcomes([{"text": "court", "domain": "law", "expert": "law", "score": 1.0}])
    assert "there are none of code, law, math" in outcomes.frontier(site, 40, None)
    assert "not judged" in outcomes.heat_map(site, None)
    assert outcomes.most_weight(model) == 1


def test_the_route_tells_which_pairs_decided(judged: Site) -> None:
    ranking, _ = route.shown(judged, LAW, route.Controls("prompt", 1, 0, 0), None)
    record = judged.router(LAW, generate=False, explain=True)
    assert f"Why {record['expert']}" in ranking
    first = record["pairs"][0]
    assert f"<td>{first['score']:.2f}</td><td>{first['share']:.2f}</td><td>40</td>" in ranking
    assert (
        "Why"
        not in route.shown(make_site({n: {} for n in tiny.DOMAINS}), LAW, route.Controls("prompt", 1, 0, 0), None)[0]
    )


def test_accuracy_with_outcomes_is_that_of_the_domains(judged: Site, site: Site) -> None:
    with_outcomes, without = judged.figures(judged.router), site.figures(site.router)
    assert with_outcomes == without, "whoever answers"
    router = judged.edited(None, lambda model: model.add_expert({"name": "any", "domains": ["law", "code"]})).router
    assert judged.figures(router) == without


def test_the_tab_is_there_only_where_there_are_outcomes(judged: Site, site: Site) -> None:
    def tabs(of: Site) -> set[str]:
        return {block.label for block in build_demo(of).blocks.values() if isinstance(block, gr.Tab)}

    assert "Outcomes" in tabs(judged)
    assert "Outcomes" not in tabs(site)


# The server.


def test_the_endpoint_is_on_the_same_server(site: Site, url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    messages: Any = [{"role": "user", "content": LAW}]
    chunks = list(client.chat.completions.create(model="ir3de", messages=messages, max_tokens=6, stream=True))
    assert {chunk.model for chunk in chunks} == {"law"}
    assert len(chunks) > 4
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="ir3de", messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert refused.value.status_code == 413


def test_gradios_api_has_two_named_endpoints(site: Site, url: str) -> None:
    client = Client(url, verbose=False)
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == ["/ask", "/route"]
    assert client.predict(LAW, api_name="/route")["expert"] == "law"
    assert client.predict(LAW, ["code", "math"], api_name="/route")["expert"] in ("code", "math")
    answer = client.predict(LAW, "math", 4, api_name="/ask")
    assert answer["expert"] == "math"
    assert isinstance(answer["answer"], str)
    for text in ("court " * 1000, ""):
        with pytest.raises(Exception, match=r"at most|empty"):
            client.predict(text, api_name="/route")


def test_the_same_two_are_mcp_tools(url: str) -> None:
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client as connect

    async def use() -> tuple[list[Any], Any]:
        async with (
            connect(f"{url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as it,
        ):
            await it.initialize()
            tools = (await it.list_tools()).tools
            return tools, await it.call_tool("route", {"prompt": LAW})

    tools, result = anyio.run(use)
    assert sorted(tool.name for tool in tools) == ["ask", "route"]
    assert all(tool.description for tool in tools)
    assert ast.literal_eval(result.content[0].text)["expert"] == "law"


def test_nothing_can_be_edited_where_editing_is_off(expert_specs: dict[str, dict[str, Any]]) -> None:
    def buttons(allow: bool) -> set[str]:
        demo = build_demo(make_site(expert_specs, allow_edit=allow))
        return {block.elem_id for block in demo.blocks.values() if isinstance(block, gr.Button)}

    editing = {"add-texts", "add-file", "add-hub", "remove", "undo", "pack", "push"}
    assert editing <= buttons(True)
    assert not editing & buttons(False)
