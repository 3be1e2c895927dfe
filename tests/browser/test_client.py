"""Tests of the JavaScript client in a real browser: as pages of other origins use it, and where the connection fails."""

import functools
import http.server
import pathlib
import re
import threading

import pytest

from relay import ROOT, until


def snippet() -> tuple[str, str]:
    """Returns the first program of the client's document, and the setting that stands before it."""
    document = (ROOT / "src/ui/README.md").read_text()
    html = re.search(r"^```html\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    settings = re.findall(r"^```toml\n(.*?)^```$", document[: html.start()], re.MULTILINE | re.DOTALL)
    return html[1], settings[-1]


@pytest.fixture
def serve():
    """Serves a folder on a port of its own, as a dev server does."""
    servers = []

    def serve(folder: pathlib.Path) -> str:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        handler.log_message = lambda *_: None
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://localhost:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page_of(browser):
    """Opens a page of another origin, and returns what it prints on the console."""
    contexts = []

    def page_of(url: str) -> list[str]:
        contexts.append(browser.new_context())
        page, printed = contexts[-1].new_page(), []
        page.on("console", lambda message: printed.append(message.text))
        page.on("pageerror", lambda error: printed.append(str(error)))
        page.goto(url)
        page.printed = printed
        return page

    yield page_of
    for context in contexts:
        context.close()


def prints(page, line: str):
    """Waits for a line on the console. The page has to be asked, so that Playwright handles events meanwhile."""
    until(lambda: page.evaluate("1") and line in page.printed, f"{line} in {page.printed}")


@pytest.mark.parametrize("kind", ["a dev server", "a file"])
def test_the_first_snippet_works_as_pasted_with_the_setting_beside_it(start_relay, serve, page_of, tmp_path, kind):
    html, setting = snippet()
    origin = serve(tmp_path)
    config = tmp_path / "relay.toml"
    # Only the ports of the dev server and of the relay differ from the document.
    config.write_text(re.sub(r"http://localhost:\d+", origin, setting))
    relay = start_relay("--config", str(config))
    (tmp_path / "page.html").write_text(html.replace("127.0.0.1:8080", f"127.0.0.1:{relay.port}"))
    if kind == "a file":
        origin = f"file://{tmp_path}"
    page = page_of(f"{origin}/page.html")
    prints(page, "I am 1")
    prints(page, "offline")


def test_the_log_says_the_line_that_lets_a_dev_server_in(start_relay, serve, page_of, tmp_path):
    html, _ = snippet()
    relay = start_relay()
    (tmp_path / "page.html").write_text(html.replace("127.0.0.1:8080", f"127.0.0.1:{relay.port}"))
    origin = serve(tmp_path)
    page = page_of(f"{origin}/page.html")
    # The page says the same to its programmer, without the line.
    until(lambda: page.evaluate("1") and any("server.allowed_origins" in line for line in page.printed), "the reason")
    line = re.search(r"allowed_by=(server\.allowed_origins = \[.*?\])", relay.log())[1]
    assert line == f'server.allowed_origins = ["{origin}"]'
    config = tmp_path / "relay.toml"
    config.write_text(line + "\n")
    relay.stop()
    relay.options = ("--config", str(config))
    relay.restart()
    page.printed.clear()
    page.reload()
    prints(page, "I am 1")


CLIENT = """async (options) => {
  const { connect } = await import("/switchboard.js");
  window.phases = [];
  window.me = connect(location.origin.replace("http", "ws") + "/", {
    ...options,
    token: options.tokens && (() => options.tokens.shift() ?? "none"),
    onState: ({ phase, reason }) => phases.push(reason ? `${phase}: ${reason}` : phase),
    random: () => 0,
  });
  return me.opened().catch((error) => error.message);
}"""


def test_a_client_notices_a_network_that_is_gone_and_comes_back(relay, page_of):
    page = page_of(f"{relay.origin}/icon.svg")
    assert page.evaluate(CLIENT, {"answerMs": 300, "connectMs": 300}) == 1
    relay.freeze()
    page.evaluate("dispatchEvent(new Event('online'))")
    until(lambda: page.evaluate("phases.includes('waiting: no answer')"), "the loss")
    relay.thaw()
    assert page.evaluate("me.opened()") == 1
    assert page.evaluate("me.send(1, 'here again')") == "delivered"


def test_a_page_that_is_shown_again_asks_for_life(relay, page_of):
    page = page_of(f"{relay.origin}/icon.svg")
    page.evaluate("window.frames_ = []")
    page.evaluate(CLIENT.replace("...options,", "onFrame: ({ text }) => frames_.push(text),"), {})
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    until(lambda: page.evaluate("""frames_.includes('{"type":"pong"}')"""), "a pong")
    assert page.evaluate("phases") == ["open"]


def test_a_client_takes_a_fresh_token_and_stops_when_that_is_refused(start_relay, page_of, secret_file):
    relay = start_relay(AUTH__MODE="jwt", AUTH__SECRET_FILE=secret_file, AUTH__LEEWAY="1s")
    page = page_of(f"{relay.origin}/icon.svg")
    tokens = [relay.issue_token("2s"), relay.issue_token("6s")]
    assert page.evaluate(CLIENT, {"tokens": tokens}) == 1
    until(lambda: page.evaluate("me.state.phase") == "closed", "the end")
    phases = [phase.partition(":")[0] for phase in page.evaluate("phases")]
    assert phases == ["open", "waiting", "connecting", "open", "waiting", "connecting", "closed"]
    assert page.evaluate("me.state.status") == 401
    assert page.evaluate("me.opened().catch((error) => error.message)") == "closed: unauthorized"
