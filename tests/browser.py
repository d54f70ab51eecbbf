"""A headless Chromium for tests of what pages show, fetch and report as errors."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
PHONE, DESKTOP = (360, 740), (1280, 900)  # pixels


@contextlib.contextmanager
def running_browser() -> Iterator:
    """Yields a Chromium process; skips the test if Chromium is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), "--disable-sync"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser, path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light", linked: Path | None = None
) -> Iterator:
    """Opens a page in a new window; asserts that it reports no errors and fetches only itself and the file `linked`."""
    fetched, complaints = [], []
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.on("request", lambda request: fetched.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    yield page
    assert {url for url in fetched if not url.startswith("data:")} == {file.as_uri() for file in (path, linked) if file}
    assert complaints == []
    context.close()
