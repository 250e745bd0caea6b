"""`python scripts/bench/screenshots.py --output docs`: the app's tabs as pictures, wide and light, narrow and dark."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from ir3de.app import build_demo, launch, load

Colours = Literal["light", "dark"]
COLOURS: tuple[Colours, ...] = ("light", "dark")
WIDE: ViewportSize = {"width": 1400, "height": 850}
NARROW: ViewportSize = {"width": 390, "height": 928}
TABS = ("Chat", "Experts", "Outcomes", "Measured", "Connect")


def main() -> int:
    """Takes the pictures that the README shows, or with --all those of every tab."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", metavar="DIR_OR_ID", help="default: the embedded router")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of app.png and app-phone.png")
    parser.add_argument("--all", action="store_true", help="every tab in both sizes and both colours, to look at")
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    with _running(args.router) as url, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if not args.all:
            _picture(browser, url, WIDE, "light", output / "app.png")
            _picture(browser, url, NARROW, "dark", output / "app-phone.png")
        for size in (WIDE, NARROW) if args.all else ():
            for colours in COLOURS:
                _every_tab(browser, url, size, colours, output)
        browser.close()
    return 0


@contextmanager
def _running(router: str | None) -> Iterator[str]:
    """The address of the app."""
    site = load(router)
    demo = build_demo(site)
    launch(site, demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield str(demo.local_url)
    finally:
        demo.close(verbose=False)


def _open(browser: Browser, url: str, size: ViewportSize, colours: Colours) -> Page:
    """A page with the first example routed."""
    page = browser.new_context(viewport=size, color_scheme=colours).new_page()
    page.goto(f"{url}?__theme={colours}")
    page.wait_for_selector("#ranking .ir-bars")
    page.wait_for_timeout(1000)  # until fonts and tabs have settled
    return page


def _picture(browser: Browser, url: str, size: ViewportSize, colours: Colours, path: Path) -> None:
    """One picture of what is first seen."""
    page = _open(browser, url, size, colours)
    page.screenshot(path=path)
    page.context.close()


def _every_tab(browser: Browser, url: str, size: ViewportSize, colours: Colours, output: Path) -> None:
    """Pictures of the whole of every tab."""
    page = _open(browser, url, size, colours)
    name = f"{size['width']}-{colours}"
    page.screenshot(path=output / f"{name}-Route.png", full_page=True)
    for tab in TABS:
        if not page.get_by_role("tab", name=tab, exact=True).is_visible():
            page.locator("button.overflow-menu, .overflow-menu > button").first.click()  # the tabs that have no room
        page.get_by_role("tab", name=tab, exact=True).first.click()
        page.wait_for_timeout(1500)
        page.screenshot(path=output / f"{name}-{tab}.png", full_page=True)
    page.context.close()


if __name__ == "__main__":
    sys.exit(main())
