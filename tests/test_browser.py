"""The app in a browser: every tab is used, nothing leaves the machine, and no script fails."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ir3de.space import measured
from ir3de.space.site import Site

from . import tiny
from .live_app import Endless, judged_site, make_site, running, wide_site

sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium: apt-get install chromium")

Page = Any
TABS = ("Route", "Chat", "Experts", "Measured", "Connect")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(expert_specs: dict[str, dict[str, Any]]) -> Site:
    """The tiny world's site."""
    return make_site(expert_specs)


@pytest.fixture(scope="module")
def url(site: Site) -> Iterator[str]:
    """The address of the running app."""
    with pytest.MonkeyPatch.context() as patch, running(site) as address:
        patch.setattr(measured, "_encoder", lambda: None)  # which takes long to load
        yield address


@pytest.fixture(scope="module")
def wide(expert_specs: dict[str, dict[str, Any]]) -> Site:
    """A site of twelve experts with long names."""
    return wide_site(expert_specs["law"]["model"])


@pytest.fixture(scope="module")
def wide_url(wide: Site) -> Iterator[str]:
    """The address of its app."""
    with running(wide) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Any]:
    """Opens pages, of which no script may fail and no request may leave this machine."""
    wrong: list[str] = []
    contexts = []

    def open_(viewport: dict[str, int] = DESKTOP, address: str = url) -> Page:
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("request", lambda request: wrong.append(request.url) if leaves(request.url, address) else None)
        page.goto(address)
        page.wait_for_selector("#ranking .ir-bars")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def leaves(request: str, address: str) -> bool:
    return not request.startswith((address, address.replace("http", "ws"), "data:", "blob:"))


def go(page: Page, tab: str) -> None:
    """Opens a tab."""
    page.get_by_role("tab", name=tab, exact=True).click()


def prompt(page: Page, text: str) -> None:
    page.locator("#prompt textarea").fill(text)


def head(page: Page, text: str) -> None:
    """Waits until the route's headline says something."""
    page.locator("#ranking .ir-head", has_text=text).wait_for()


def test_the_route_follows_what_is_typed(open_page: Any) -> None:
    page = open_page()
    prompt(page, "")
    page.locator("#prompt textarea").press_sequentially("the court and a judge")
    head(page, "law answers")
    shown = (
        "tokens => `${[...document.querySelectorAll('#tokens .ir-token')].map(each => each.innerText)}` === `${tokens}`"
    )
    page.wait_for_function(shown, arg=["the", " court", " and", " a", " judge"])  # once all is typed
    widths = page.locator("#ranking .ir-fill").evaluate_all("bars => bars.map(bar => bar.style.width)")
    court = page.locator("#tokens .ir-token", has_text="court")
    assert court.get_attribute("title").startswith("law, weight")
    assert "--w" in court.get_attribute("style")
    prompt(page, "debug my python loop")
    head(page, "code answers")
    assert page.locator("#ranking .ir-fill").evaluate_all("bars => bars.map(bar => bar.style.width)") != widths


def test_the_controls_act_at_once(open_page: Any) -> None:
    page = open_page()
    prompt(page, "court of python and a judge")
    head(page, "law answers")
    assert page.locator("#votes input[type=number]").is_disabled()
    page.locator("#variant").get_by_text("top-k", exact=True).click()
    page.locator("#votes input[type=number]:enabled").fill("2")
    page.locator("#votes input[type=number]").press("Tab")
    page.wait_for_function("document.querySelectorAll('#tokens .ir-out').length === 4")
    page.locator("#cost-weight input[type=number]").fill("1")
    page.locator("#cost-weight input[type=number]").press("Tab")
    head(page, "code answers")
    page.locator("#min-score input[type=number]").fill("1")
    page.locator("#min-score input[type=number]").press("Tab")
    head(page, "Nobody answers")


def test_an_answer_streams_and_two_stand_side_by_side(open_page: Any) -> None:
    page = open_page()
    prompt(page, "the court and a judge")
    page.locator("#prompt textarea").press("Enter")
    page.locator("#first-answer .ir-answer[aria-busy=false]", has_text="law").wait_for()
    page.locator("#compare").click()
    page.locator("#second-answer .ir-answer[aria-busy=false]").wait_for()
    boxes = [page.locator(f"#{which}-answer").bounding_box() for which in ("first", "second")]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_stop_closes_the_stream(open_page: Any, expert_specs: dict[str, dict[str, Any]]) -> None:
    stream = Endless()
    with running(make_site(expert_specs, stream=stream)) as address:
        page = open_page(address=address)
        page.locator("#answer").click()
        page.locator("#first-answer", has_text="word word").wait_for()
        assert stream.open == 1
        page.locator("#stop").click()
        stream.wait_closed()
        go(page, "Chat")
        page.locator("#message textarea").fill("court")
        page.locator("#send").click()
        page.locator("#chat", has_text="word word").wait_for()
        page.locator("#stop-chat").click()
        stream.wait_closed()
        page.locator("#chat .ir-answer[aria-busy=false]", has_text="word word").wait_for()
        page.locator("#retry").click()
        page.locator("#chat .ir-answer[aria-busy=true]").wait_for()
        page.close()  # who leaves stops it too
        stream.wait_closed()


def set_stickiness(page: Any, value: str) -> None:
    """Enters a value until the slider shows it: a page that is still being built may forget what was entered."""
    number, slider = (page.locator(f"#stickiness input[type={kind}]") for kind in ("number", "range"))
    for _ in range(50):
        number.fill(value)
        number.press("Tab")
        page.wait_for_timeout(100)
        if slider.input_value() == value:
            return
    pytest.fail(f"the slider shows {slider.input_value()}, not {value}")


def test_a_chat_of_two_turns_labels_its_answers(open_page: Any) -> None:
    page = open_page()
    go(page, "Chat")
    set_stickiness(page, "0.05")
    for turn, (text, expert) in enumerate([("debug my python loop", "code"), ("the court and a judge", "law")]):
        page.locator("#message textarea").fill(text)
        page.locator("#message textarea").press("Enter")
        page.locator("#chat .ir-answer[aria-busy=false]").nth(turn).wait_for()
        assert expert in page.locator("#chat .ir-answer header").nth(turn).inner_text()
    set_stickiness(page, "1")
    page.locator("#retry").click()
    for _ in range(2):  # while the answer comes, and still there once it has
        sync_api.expect(page.locator("#chat")).to_contain_text("Stays with code", timeout=20_000)
        sync_api.expect(page.locator("#stop-chat")).to_be_disabled()
    assert page.locator("#chat .ir-answer[aria-busy=false]").count() == 2
    page.locator("#clear").click()
    page.locator("#chat", has_text="Say something").wait_for()


def long_answer(prompt: Any, **_: Any) -> Iterator[dict[str, Any]]:
    """Streams an answer of many lines."""
    ranked = {"expert": "code", "score": 0.9}
    record = {**ranked, "ranking": [ranked], "id": "long", "recognised": {"code": 100}}
    yield {"event": "route", **record}
    yield {"event": "text", "text": "word " * 300}
    yield {"event": "record", **record, "generated_text": "word " * 300}


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_long_answers_keep_within_their_boxes_and_the_last_is_in_view(
    size: Any, open_page: Any, expert_specs: dict[str, dict[str, Any]]
) -> None:
    with running(make_site(expert_specs, stream=long_answer)) as address:
        page = open_page(size, address=address)
        go(page, "Chat")
        for turn in range(2):
            page.locator("#message textarea").fill("debug my python loop")
            page.locator("#message textarea").press("Enter")
            page.locator("#chat .ir-answer[aria-busy=false]").nth(turn).wait_for()
        for turn in range(2):
            box = page.locator("#chat .ir-answer").nth(turn).bounding_box()
            text = page.locator("#chat .ir-answer .ir-text").nth(turn).bounding_box()
            assert text["y"] + text["height"] <= box["y"] + box["height"]
        log = page.locator("#chat .ir-chat").bounding_box()
        assert text["y"] + text["height"] <= log["y"] + log["height"] + 1, "the end of the last answer is seen"


def test_markup_shows_as_text(open_page: Any) -> None:
    page = open_page()
    text = "<img src=x onerror=alert(1)> <script>alert(2)</script> court"
    prompt(page, text)
    page.wait_for_function("text => document.querySelector('#tokens .ir-tokens')?.innerText === text", arg=text)
    go(page, "Chat")
    page.locator("#message textarea").fill(text)
    page.locator("#send").click()
    page.locator("#chat .ir-answer[aria-busy=false]").wait_for()
    assert page.locator("#chat .ir-user .ir-text").inner_text() == text
    assert page.locator("#chat img, #tokens img").count() == 0


def test_experts_are_added_removed_and_undone(open_page: Any, tmp_path: Path) -> None:
    page, other = open_page(), open_page()
    go(page, "Experts")
    table = page.locator("#experts tbody tr")
    sync_api.expect(table).to_have_count(3)
    colours = page.locator("#experts .ir-badge").evaluate_all(COLOURS)
    page.locator("#new-name textarea, #new-name input").fill("art")
    page.locator("#new-texts textarea").fill("\n".join(tiny.sentences("law", 9, seed=5)))
    page.locator("#add-texts").click()
    sync_api.expect(table).to_have_count(4)
    sync_api.expect(page.locator("#edit-result .ir-tile")).to_have_count(2)
    assert dict(page.locator("#experts .ir-badge").evaluate_all(COLOURS)).items() >= dict(colours).items()
    page.locator("#old-name input").click()
    page.get_by_role("option", name="law").click()
    page.locator("#remove").click()
    sync_api.expect(page.locator("#experts")).not_to_contain_text("law")
    go(page, "Route")
    prompt(page, "the court and a judge")
    head(page, "art is chosen, but only routes")
    go(page, "Experts")
    for count in (4, 3):
        page.locator("#undo").click()
        sync_api.expect(table).to_have_count(count)
    sync_api.expect(page.locator("#undo")).to_be_disabled()
    tiny.statistics(tiny.sentences("law", 6, seed=8)).save(tmp_path / "music.safetensors")
    page.get_by_role("tab", name="From a file").click()
    page.locator("#new-name textarea, #new-name input").fill("")
    page.locator("#new-file input[type=file]").set_input_files(tmp_path / "music.safetensors")
    page.locator("#new-file", has_text="music").wait_for()
    page.locator("#add-file").click()
    sync_api.expect(page.locator("#experts")).to_contain_text("music")
    page.locator("#pack").click()
    page.locator("#download a[download]").first.wait_for()
    prompt(other, "the court and a judge")
    head(other, "law answers")
    assert "music" not in other.locator("#ranking").inner_text()


def test_a_bad_edit_is_explained(open_page: Any) -> None:
    page = open_page()
    go(page, "Experts")
    page.locator("#new-name textarea, #new-name input").fill("law\u200b")
    page.locator("#new-texts textarea").fill("court")
    page.locator("#add-texts").click()
    page.locator("#edit-result [role=alert]", has_text="cannot name an expert").wait_for()


def test_figures_are_shown_and_measured(open_page: Any) -> None:
    page = open_page()
    go(page, "Measured")
    page.locator("#figures .ir-confusion").wait_for()
    assert page.locator("#figures svg circle").count() == len(measured.VOTES)
    page.locator("#measure").click()
    page.locator("#latency", has_text="tokenizing and routing").wait_for()


def test_keys_alone_reach_an_answer(open_page: Any) -> None:
    page = open_page()
    page.locator("#prompt textarea").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "answer"
    page.keyboard.press("Enter")
    page.locator("#first-answer .ir-answer[aria-busy=false]").wait_for()


def test_a_phone_shows_all_of_a_wide_router(open_page: Any, wide_url: str) -> None:
    page = open_page(PHONE, wide_url)
    for tab in TABS:
        assert page.get_by_role("tab", name=tab, exact=True).is_visible(), "no tab hides in a menu"
    prompt(page, "python return script " * 9 + "python" * 20)
    head(page, "delivery-delays-and-lost-parcels answers")
    page.locator("#answer").click()
    answer = page.locator("#first-answer .ir-answer[aria-busy=false]")
    answer.wait_for()
    assert answer.bounding_box()["width"] > 0.9 * PHONE["width"]
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
    go(page, "Experts")
    scroll = page.locator("#experts .ir-scroll")
    assert scroll.evaluate("box => box.scrollWidth > box.clientWidth"), "the table is wider than the page"
    assert "radial-gradient" in scroll.evaluate("box => getComputedStyle(box).backgroundImage"), "which a shadow tells"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desk", "phone"])
def test_long_names_are_read_whole(open_page: Any, wide_url: str, wide: Site, size: dict[str, int]) -> None:
    page = open_page(size, wide_url)
    prompt(page, "algebra angle circle cosine cube derivative judge")
    page.wait_for_function("() => document.querySelectorAll('#tokens .ir-legend .ir-badge').length > 2")
    right = max(page.locator("#tokens .ir-legend .ir-badge").evaluate_all(RIGHT))
    assert right <= size["width"], "the legend"
    go(page, "Experts")
    page.locator("#experts tbody tr").first.wait_for()
    kind = page.locator("#experts tbody td:nth-child(2)").first.bounding_box()
    assert kind["x"] + kind["width"] <= size["width"], "beside the names something else is seen"
    go(page, "Measured")
    heads = page.locator("#figures .ir-upright thead th:not(:first-child) span")
    heads.first.wait_for()
    caption = page.locator("#figures .ir-confusion caption").first.bounding_box()
    for each in heads.all()[: len(wide.router.model.config.domain_names)]:
        span, cell = each.bounding_box(), each.locator("xpath=..").bounding_box()
        assert span["y"] >= cell["y"] >= caption["y"] + caption["height"] - 1, "a head stands below the caption"
        assert span["height"] <= cell["height"]
        assert each.evaluate("span => span.scrollHeight <= span.clientHeight + 1"), "none of it is cut"


def test_the_app_says_how_experts_are_asked_by_name(open_page: Any, wide_url: str) -> None:
    page = open_page(PHONE, wide_url)
    go(page, "Connect")
    code = page.locator("pre:visible", has_text='or one expert by its name, such as "billing-and-refund-requests"')
    code.wait_for()
    assert "account-and-login-problems" not in code.inner_text(), "which only routes"


def test_what_a_wide_router_shows_on_a_desk(open_page: Any, wide_url: str, wide: Site) -> None:
    page = open_page(address=wide_url)
    examples = page.locator("#examples button")
    starts = tuple(text.removesuffix("...") for text in examples.all_inner_texts())  # Gradio cuts at 60 characters
    assert all(any(row.text.startswith(start) for row in wide.samples) for start in starts)
    assert examples.count() == 12
    examples.nth(3).click()
    head(page, "delivery-delays-and-lost-parcels answers")
    page.locator("#examples button").nth(4).click()
    head(page, "guarantee is chosen, but only routes")
    page.locator("#answer").click()
    page.locator("#first-answer", has_text="guarantee only routes").wait_for()
    assert page.locator("#cost-weight input[type=number]").is_enabled(), "the six that answer have a cost"
    page.locator("#cost-weight input[type=number]").fill("1")
    head(page, "billing-and-refund-requests answers")


def test_the_weight_of_costs_acts_at_once(open_page: Any, expert_specs: dict[str, dict[str, Any]]) -> None:
    with running(judged_site(expert_specs)) as address:
        page = open_page(PHONE, address)
        for tab in (*TABS, "Outcomes"):
            assert page.get_by_role("tab", name=tab, exact=True).is_visible(), "no tab hides in a menu"
        page.locator("#ranking", has_text="scores there").wait_for()
        go(page, "Outcomes")
        sync_api.expect(page.locator("#heat-map td")).to_have_count(9)
        page.locator("#frontier", has_text="cost_weight=0 ").wait_for()
        sync_api.expect(page.locator("#over-time svg")).to_have_count(2)
        ring = page.locator("#frontier .ir-here")
        before = ring.get_attribute("cx")
        page.locator("#step input[type=number]").fill("100")
        page.locator("#step input[type=number]").press("Tab")
        sync_api.expect(ring).not_to_have_attribute("cx", before)
        answering = page.locator("#frontier tbody td:nth-child(2)")
        assert answering.all_inner_texts() == ["code"] * 3, "the cheapest"
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_buttons_are_active_when_they_act(open_page: Any) -> None:
    page = open_page()
    assert page.locator("#stop").is_disabled()
    go(page, "Chat")
    for button in ("stop-chat", "retry", "clear", "good-chat", "bad-chat"):
        assert page.locator(f"#{button}").is_disabled()
    page.locator("#send").click()
    page.locator("#chat-notice", has_text="Type a message first").wait_for()
    page.locator("#message textarea").fill("debug my python loop")
    page.locator("#send").click()
    page.locator("#retry:enabled").wait_for()
    sync_api.expect(page.locator("#stop-chat")).to_be_disabled()
    for kind in ("user", "answer"):
        assert page.locator(f"#chat .ir-{kind}").bounding_box()["width"] < 0.7 * DESKTOP["width"]
    page.locator("#clear").click()
    sync_api.expect(page.locator("#retry")).to_be_disabled()
    go(page, "Experts")
    for button in ("remove", "undo", "push"):
        assert page.locator(f"#{button}").is_disabled()


def test_thumbs_are_pressed_once(open_page: Any) -> None:
    page = open_page()
    go(page, "Chat")
    page.locator("#message textarea").fill("debug my python loop")
    page.locator("#send").click()
    page.locator("#good-chat:enabled").click()
    page.locator("#judged-chat", has_text="has learned that code was good here").wait_for()
    for button in ("good-chat", "bad-chat"):
        sync_api.expect(page.locator(f"#{button}")).to_be_disabled()
    go(page, "Route")
    page.locator("#answer").click()
    page.locator("#bad-route:enabled").click()
    page.locator("#judged-route", has_text="was bad here").wait_for()
    go(page, "Experts")
    sync_api.expect(page.locator("#undo")).to_be_enabled()


def test_the_route_view_is_quick(open_page: Any) -> None:
    page = open_page()
    times = page.evaluate(MEASURE, ["debug my python loop", "the court and a judge"] * 6)
    print("route view, ms from submit to change:", [round(time) for time in times])
    assert sorted(times)[len(times) // 2] < 150


RIGHT = "badges => badges.map(badge => badge.getBoundingClientRect().right)"
COLOURS = "badges => badges.map(badge => [badge.innerText, badge.style.getPropertyValue('--c')])"

# From Enter, after new text, to the change of the view.
MEASURE = """async texts => {
  const box = document.querySelector('#prompt textarea'), view = document.querySelector('#ranking');
  const times = [];
  for (const text of texts) {
    const changed = new Promise(done => {
      const watch = new MutationObserver(() => { watch.disconnect(); done(performance.now()); });
      watch.observe(view, {childList: true, subtree: true, characterData: true});
    });
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, text);
    const started = performance.now();
    box.dispatchEvent(new Event('input', {bubbles: true}));
    box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));
    box.dispatchEvent(new KeyboardEvent('keypress', {key: 'Enter', bubbles: true}));
    times.push(await changed - started);
    await new Promise(done => setTimeout(done, 700));
  }
  return times;
}"""
