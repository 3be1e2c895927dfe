"""Tests of the page in a real browser: users exchange messages, see each outcome, and reconnect."""

import os
import pathlib
import re
import signal
import socket

import pytest

from relay import until

PHONE = {"width": 390, "height": 780}
DESKTOP = {"width": 1000, "height": 640}


def own_id(tab) -> str:
    return tab.text_content("#self")


def write(tab, to: str, text: str):
    """Writes a message with the form, and returns the element of its outcome."""
    tab.fill("#to", to)
    tab.fill("#text", text)
    tab.press("#text", "Enter")
    return tab.locator(".message.out").last.locator(".outcome")


def expect_outcome(line, outcome: str, words: str):
    until(lambda: line.get_attribute("data-outcome") == outcome, outcome)
    assert line.text_content() == words


def received(tab, count: int):
    """Waits for `count` received messages, and returns the texts of all."""
    bodies = tab.locator(".message.in .body")
    until(lambda: bodies.count() >= count, f"{count} messages")
    return bodies.all_text_contents()


def test_two_tabs_talk(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    assert {own_id(a), own_id(b)} == {"1", "2"}
    assert a.text_content("#phase") == "connected"
    expect_outcome(write(a, "2", "Go Braves!"), "delivered", "delivered")
    assert received(b, 1) == ["Go Braves!"]
    assert b.text_content(".message.in .who").startswith("from 1")
    # The page fills in the first sender as the recipient of the answer.
    assert b.input_value("#to") == "1"
    b.fill("#text", "two\nlines")
    b.click("button[type=submit]")
    assert received(a, 1) == ["two\nlines"]


def test_an_outcome_changes_when_it_is_known(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    relay.freeze()
    line = write(a, own_id(b), "in a moment")
    assert line.text_content() == "sent"
    assert line.get_attribute("data-outcome") is None
    relay.thaw()
    expect_outcome(line, "delivered", "delivered")


def test_an_offline_recipient_is_shown(relay, open_tab):
    expect_outcome(write(open_tab(relay), "999", "hello?"), "offline", "offline: no user has this id now")


def test_a_full_queue_is_shown(start_relay, open_tab):
    relay = start_relay(MAILBOX__MESSAGES="2", KEEPALIVE__WRITE_TIMEOUT="60s")
    silent = socket.socket()
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    silent.connect(("127.0.0.1", relay.port))
    silent.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    head = silent.recv(4096)
    their_id = re.search(rb"x-user-id: (\d+)", head).group(1).decode()
    tab = open_tab(relay)
    for _ in range(100):
        line = write(tab, their_id, "x" * 60_000)
        if tab.locator("[data-outcome=queue_full]").count():
            break
        # Each message goes to the socket or stays in the queue, so the queue fills up.
        tab.wait_for_timeout(20)
    until(lambda: tab.locator("[data-outcome=queue_full]").count(), "a full queue")
    assert "queue full" in tab.locator("[data-outcome=queue_full]").first.text_content()
    silent.close()


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</li></ol><script>document.title='owned'</script>",
    "&lt;b&gt; {{7*7}} ${7*7} javascript:alert(1)",
    "\u202egnp.exe\u202c \u2066\u200f\u200eabc\u2069",
    "\u05e9\u05dc\u05d5\u05dd, \u0645\u0631\u062d\u0628\u0627 and hello",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 e\u0301 Z\u0351\u036b\u0343",
    "\x00\x07\x1b[31m\ufeff\u2028\u2029",
    # With its frame a few bytes less than limits.message_bytes (64 KiB).
    "a" * 65_490,
]


def is_as_wide_as_its_window(tab) -> bool:
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_text_is_text(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay, viewport=PHONE)
    for n, text in enumerate(HOSTILE, 1):
        expect_outcome(write(a, own_id(b), text), "delivered", "delivered")
        assert received(b, n)[-1] == text
        assert a.locator(".message.out .body").last.text_content() == text
    assert b.locator("#log img, #log script, #log b").count() == 0
    assert b.title() == f"{own_id(b)} · Switchboard"
    assert is_as_wide_as_its_window(b)
    # The long message scrolls on its own, also with the keyboard.
    long = b.locator(".message.in .body").last
    assert long.get_attribute("tabindex") == "0"
    assert long.bounding_box()["height"] < 300
    # The list of frames shows it as text, too.
    b.click("summary")
    assert "<img src=x onerror=alert(1)>" in b.text_content("#frames")
    assert b.locator("#frames img").count() == 0


def test_a_message_above_the_limit_is_shown_as_too_large(start_relay, open_tab):
    tab = open_tab(start_relay(LIMITS__MESSAGE_BYTES="1KiB"))
    expect_outcome(write(tab, "1", "x" * 1100), "too_large", "too large")
    expect_outcome(write(tab, "1", "x" * 900), "delivered", "delivered")


def test_the_page_works_with_the_keyboard_alone(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    for _ in range(10):
        b.keyboard.press("Tab")
        if b.locator("#to:focus").count():
            break
    b.keyboard.type(own_id(a))
    b.keyboard.press("Tab")
    b.keyboard.type("one")
    b.keyboard.press("Shift+Enter")
    b.keyboard.type("two")
    b.keyboard.press("Enter")
    assert received(a, 1) == ["one\ntwo"]
    # The field keeps the focus for the next message.
    b.keyboard.type("three")
    b.keyboard.press("Enter")
    assert received(a, 2)[-1] == "three"
    for _ in range(10):
        b.keyboard.press("Tab")
        if b.locator("summary:focus").count():
            break
    b.keyboard.press("Enter")
    assert b.is_visible("#frames")


def test_an_invalid_recipient_is_reported_beside_the_field(relay, open_tab):
    tab = open_tab(relay)
    for to in ("", "x", "0", "-1", "1.5", "9007199254740992"):
        tab.fill("#to", to)
        tab.fill("#text", "hello")
        tab.press("#text", "Enter")
        assert "whole number" in tab.text_content("#problem"), to
        assert tab.get_attribute("#to", "aria-invalid") == "true"
        assert tab.locator("#to:focus").count() == 1
        assert tab.input_value("#text") == "hello"
    tab.fill("#to", own_id(tab))
    tab.press("#text", "Enter")
    until(lambda: tab.locator("[data-outcome=delivered]").count(), "delivered")
    assert tab.text_content("#problem") == ""


def test_an_invite_link_fills_in_the_recipient(relay, open_tab):
    a = open_tab(relay)
    link = a.get_attribute("#invite", "href")
    assert link == f"{relay.origin}/#to={own_id(a)}"
    b = open_tab(relay, link.removeprefix(relay.origin))
    assert b.input_value("#to") == own_id(a)
    b.keyboard.type("you called?")
    b.keyboard.press("Enter")
    assert received(a, 1) == ["you called?"]


def test_an_invalid_invite_link_fills_in_nothing(relay, open_tab):
    for invited in ("#to=<b>", "#to=", "#to=1e9", "#" + "x" * 1000):
        assert open_tab(relay, "/" + invited).input_value("#to") == ""


def test_the_frames_are_shown_unchanged(relay, open_tab):
    tab = open_tab(relay)
    write(tab, own_id(tab), "hi")
    received(tab, 1)
    assert not tab.is_visible("#frames")
    tab.click("summary")
    until(lambda: tab.locator("#frames li").count() >= 4, "frames")
    frames = tab.locator("#frames li").all_text_contents()
    assert frames[0].startswith('← {"type":"welcome","user_id":1,')
    assert frames[1] == '→ {"recipient_id":1,"message":"hi","id":1}'
    assert '← {"type":"message","sender_id":1,"message":"hi"}' in frames
    assert '← {"type":"outcome","id":1,"status":"delivered"}' in frames


def forgive_failed_connections(tab):
    """Ignores the error that Chromium logs for each connection that fails."""
    failed = f"WebSocket connection to 'ws{tab.origin.removeprefix('http')}/' failed"
    tab.complaints[:] = [text for text in tab.complaints if not text.startswith(failed)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_users_keep_their_ids_after_a_restart(start_relay, open_tab, secret_file, number):
    drain = {"DRAIN__DELAY": "0s", "DRAIN__SPREAD": "2s", "DRAIN__TIMEOUT": "10s"}
    relay = start_relay(TICKETS__SECRET_FILE=secret_file, **drain)
    # The first tab does not come back, so without tickets the other two would get other ids.
    first, a, b = open_tab(relay), open_tab(relay), open_tab(relay)
    ids = own_id(a), own_id(b)
    first.close()
    relay.stop(number)
    relay.restart()
    for tab, its_id in zip((a, b), ids):
        notices = tab.locator(".notice")
        until(lambda: notices.count() > 0, "a notice about the reconnect")
        assert notices.first.text_content() == f"Connected again as {its_id}."
        tab.wait_for_selector("#state[data-phase=open]")
        forgive_failed_connections(tab)
    assert (own_id(a), own_id(b)) == ids
    expect_outcome(write(a, ids[1], "still there?"), "delivered", "delivered")


def test_a_reload_keeps_the_id_and_a_second_window_takes_it_over(relay, open_tab):
    open_tab(relay)
    tab = open_tab(relay)
    its_id = own_id(tab)
    tab.reload()
    tab.wait_for_selector("#state[data-phase=open]")
    assert own_id(tab) == its_id
    ticket = tab.evaluate("sessionStorage.getItem('switchboard.ticket')")
    other = open_tab(relay)
    other.evaluate("ticket => sessionStorage.setItem('switchboard.ticket', ticket)", ticket)
    other.reload()
    other.wait_for_selector("#state[data-phase=open]")
    assert own_id(other) == its_id
    tab.wait_for_selector("#state[data-phase=closed]")
    assert tab.text_content("#phase") == "taken over: this id is open somewhere else"


def test_a_new_id_after_a_restart_is_shown(start_relay, open_tab):
    relay = start_relay()
    first = open_tab(relay)
    tab = open_tab(relay)
    first.close()
    relay.stop()
    relay.restart()
    notice = tab.locator(".notice")
    until(lambda: notice.count() > 0, "a notice about the reconnect")
    assert notice.text_content() == "You were 2; you are 1 now."
    forgive_failed_connections(tab)


def test_the_wait_before_a_reconnect_is_counted_down(start_relay, open_tab):
    relay = start_relay()
    tab = open_tab(relay)
    relay.stop()
    counted = lambda: re.fullmatch(r"connection lost; reconnecting in \d+ s", tab.text_content("#state"))
    until(counted, "a countdown")
    expect_outcome(write(tab, "1", "hello?"), "not_sent", "not sent: no connection")
    relay.restart()
    tab.wait_for_selector("#state[data-phase=open]", timeout=40_000)
    forgive_failed_connections(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_axe_finds_nothing(relay, open_tab, axe, scheme, viewport):
    # The content security policy of the page would block axe, like every other script.
    a = open_tab(relay, color_scheme=scheme, viewport=viewport, bypass_csp=True)
    b = open_tab(relay)
    for text in ("Hello!", "x" * 5000):
        expect_outcome(write(b, own_id(a), text), "delivered", "delivered")
    expect_outcome(write(a, own_id(b), "Hello."), "delivered", "delivered")
    expect_outcome(write(a, "999", "hello?"), "offline", "offline: no user has this id now")
    a.fill("#to", "x")
    a.fill("#text", "no recipient")
    a.press("#text", "Enter")
    a.click("summary")
    a.evaluate(axe)
    found = a.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
    assert len(found["passes"]) > 20
    assert is_as_wide_as_its_window(a)


def test_the_page_is_served_only_for_text_html(start_relay):
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    relay = start_relay()
    status, headers, body = relay.get("/", **html)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "<title>Switchboard</title>" in body
    for accept in ("*/*", "application/json"):
        assert relay.get("/", Accept=accept)[0] == 426
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', body):
        assert relay.get(path)[0] == 200, path
    off = start_relay(UI__ENABLED="false")
    assert off.get("/", **html)[0] == 426
    for path in ("/switchboard.js", "/page.js", "/page.css", "/icon.svg"):
        assert off.get(path)[0] == 404, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_pictures_of_the_page(relay, open_tab, scheme, viewport):
    """Writes the pictures of the README into the folder that SWITCHBOARD_SCREENSHOTS names."""
    name = "phone" if viewport is PHONE else "desktop"
    a = open_tab(relay, color_scheme=scheme, viewport=viewport)
    b = open_tab(relay)
    write(b, own_id(a), "Hello! Does this reach you?")
    received(a, 1)
    expect_outcome(write(a, own_id(b), "It does. And I can see that this reached you."), "delivered", "delivered")
    expect_outcome(write(a, "99", "Is anybody at 99?"), "offline", "offline: no user has this id now")
    a.fill("#to", own_id(b))
    a.focus("#text")
    picture = a.screenshot()
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("SWITCHBOARD_SCREENSHOTS"):
        pathlib.Path(folder).mkdir(exist_ok=True)
        (pathlib.Path(folder) / f"{name}-{scheme}.png").write_bytes(picture)
