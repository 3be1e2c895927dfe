"""Fixtures: a headless Chromium, relays, and tabs that fail their test on a console error or an external
request."""

import pathlib
import shutil

import pytest
from playwright.sync_api import sync_playwright

from relay import Relay


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium is not installed; the Debian package is chromium"
    with sync_playwright() as playwright:
        # Chromium cannot create its sandbox in a container.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def secret_file(tmp_path) -> str:
    path = tmp_path / "secret"
    path.write_text("a secret of at least 32 bytes, yes\n")
    return str(path)


@pytest.fixture
def start_relay():
    """Starts relays, and stops them when the test ends."""
    relays = []

    def start(*options: str, **settings: str) -> Relay:
        relays.append(Relay(*options, **settings))
        return relays[-1]

    yield start
    for relay in relays:
        relay.thaw()
        relay.stop()


@pytest.fixture
def relay(start_relay) -> Relay:
    return start_relay()


@pytest.fixture
def open_tab(browser):
    """Opens tabs, each with storage of its own. `tab.complaints` collects errors and warnings of the console,
    `tab.asked` the URLs of all requests; both are checked when the test ends."""
    contexts, tabs = [], []

    def open_tab(relay: Relay, path: str = "/", phase: str = "open", **options):
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        tab = context.new_page()
        tab.complaints, tab.asked, tab.origin = [], [], relay.origin
        tab.on("console", lambda message: message.type in ("error", "warning") and tab.complaints.append(message.text))
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("websocket", lambda socket: tab.asked.append(socket.url.replace("ws:", "http:")))
        tab.goto(relay.origin + path)
        tab.wait_for_selector(f"#state[data-phase={phase}]")
        tabs.append(tab)
        return tab

    yield open_tab
    complaints = [text for tab in tabs for text in tab.complaints]
    external = [url for tab in tabs for url in tab.asked if not url.startswith(tab.origin + "/")]
    for context in contexts:
        context.close()
    assert complaints == []
    assert external == []


@pytest.fixture(scope="session")
def axe() -> str:
    """Returns the source of axe-core, which checks accessibility."""
    path = pathlib.Path(__file__).parents[1] / "node/node_modules/axe-core/axe.min.js"
    assert path.exists(), "axe-core is missing; run `npm install` in tests/node"
    return path.read_text()
