"""The page in a real browser: people talk, see what became of each message, and come back."""

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
    """Writes a message as a person does; the element of its outcome."""
    tab.fill("#to", to)
    tab.fill("#text", text)
    tab.press("#text", "Enter")
    return tab.locator(".message.out").last.locator(".outcome")


def expect_outcome(line, outcome: str, words: str):
    until(lambda: line.get_attribute("data-outcome") == outcome, outcome)
    assert line.text_content() == words


def received(tab, count: int):
    """The texts of the messages that have come, once there are `count`."""
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
    # Whoever wrote first is whom the answer goes to.
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


def test_offline_is_said(relay, open_tab):
    expect_outcome(write(open_tab(relay), "999", "anybody?"), "offline", "offline: nobody has this id now")


def test_a_full_queue_is_said(start_relay, open_tab):
    relay = start_relay(MAILBOX__MESSAGES="2", KEEPALIVE__WRITE_TIMEOUT="60s")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", relay.port))
    deaf.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    head = deaf.recv(4096)
    their_id = re.search(rb"x-user-id: (\d+)", head).group(1).decode()
    tab = open_tab(relay)
    for _ in range(100):
        line = write(tab, their_id, "x" * 60_000)
        if tab.locator("[data-outcome=queue_full]").count():
            break
        # Either it left, or it waits; then the next one finds the queue fuller.
        tab.wait_for_timeout(20)
    until(lambda: tab.locator("[data-outcome=queue_full]").count(), "a full queue")
    assert "queue full" in tab.locator("[data-outcome=queue_full]").first.text_content()
    deaf.close()


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</li></ol><script>document.title='owned'</script>",
    "&lt;b&gt; {{7*7}} ${7*7} javascript:alert(1)",
    "\u202egnp.exe\u202c \u2066\u200f\u200eabc\u2069",
    "\u05e9\u05dc\u05d5\u05dd, \u0645\u0631\u062d\u0628\u0627 and hello",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 e\u0301 Z\u0351\u036b\u0343",
    "\x00\x07\x1b[31m\ufeff\u2028\u2029",
    # With what stands around it, 64 KiB to a few bytes.
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
    # The long one scrolls by itself, by keyboard too.
    long = b.locator(".message.in .body").last
    assert long.get_attribute("tabindex") == "0"
    assert long.bounding_box()["height"] < 300
    # In the raw frames it is text as well.
    b.click("summary")
    assert "<img src=x onerror=alert(1)>" in b.text_content("#frames")
    assert b.locator("#frames img").count() == 0


def test_a_message_over_the_limit_is_said_to_be(start_relay, open_tab):
    tab = open_tab(start_relay(LIMITS__MESSAGE_BYTES="1KiB"))
    expect_outcome(write(tab, "1", "x" * 1100), "too_large", "too large")
    expect_outcome(write(tab, "1", "x" * 900), "delivered", "delivered")


def test_all_of_it_by_keyboard(relay, open_tab):
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
    # The field has the focus again, for the next one.
    b.keyboard.type("three")
    b.keyboard.press("Enter")
    assert received(a, 2)[-1] == "three"
    for _ in range(10):
        b.keyboard.press("Tab")
        if b.locator("summary:focus").count():
            break
    b.keyboard.press("Enter")
    assert b.is_visible("#frames")


def test_a_recipient_that_is_none_is_asked_for(relay, open_tab):
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


def test_an_invite_link_leads_to_its_person(relay, open_tab):
    a = open_tab(relay)
    link = a.get_attribute("#invite", "href")
    assert link == f"{relay.origin}/#to={own_id(a)}"
    b = open_tab(relay, link.removeprefix(relay.origin))
    assert b.input_value("#to") == own_id(a)
    b.keyboard.type("you called?")
    b.keyboard.press("Enter")
    assert received(a, 1) == ["you called?"]


def test_a_link_with_nonsense_leads_nowhere(relay, open_tab):
    for invited in ("#to=<b>", "#to=", "#to=1e9", "#" + "x" * 1000):
        assert open_tab(relay, "/" + invited).input_value("#to") == ""


def test_the_wire_is_shown_as_it_is(relay, open_tab):
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
    """Chromium itself logs each try that finds no server, or one that drains."""
    failed = f"WebSocket connection to 'ws{tab.origin.removeprefix('http')}/' failed"
    tab.complaints[:] = [text for text in tab.complaints if not text.startswith(failed)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_come_back_as_who_they_were(start_relay, open_tab, secret_file, number):
    drain = {"DRAIN__DELAY": "0s", "DRAIN__SPREAD": "2s", "DRAIN__TIMEOUT": "10s"}
    relay = start_relay(TICKETS__SECRET_FILE=secret_file, **drain)
    # Whoever was before them stays away, so that their ids would be others without tickets.
    strangers, a, b = open_tab(relay), open_tab(relay), open_tab(relay)
    ids = own_id(a), own_id(b)
    strangers.close()
    relay.stop(number)
    relay.restart()
    for tab, its_id in zip((a, b), ids):
        notices = tab.locator(".notice")
        until(lambda: notices.count() > 0, "the page says that it was away")
        assert notices.first.text_content() == f"Connected again as {its_id}."
        tab.wait_for_selector("#state[data-phase=open]")
        forgive_failed_connections(tab)
    assert (own_id(a), own_id(b)) == ids
    expect_outcome(write(a, ids[1], "still there?"), "delivered", "delivered")


def test_a_reload_keeps_the_id_and_a_second_window_takes_it(relay, open_tab):
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


def test_a_restart_without_a_secret_says_what_has_changed(start_relay, open_tab):
    relay = start_relay()
    first = open_tab(relay)
    tab = open_tab(relay)
    first.close()
    relay.stop()
    relay.restart()
    notice = tab.locator(".notice")
    until(lambda: notice.count() > 0, "the page says that it was away")
    assert notice.text_content() == "You were 2; you are 1 now."
    forgive_failed_connections(tab)


def test_the_wait_is_counted_down(start_relay, open_tab):
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
    # The policy of the page keeps axe out as it does any other script.
    a = open_tab(relay, color_scheme=scheme, viewport=viewport, bypass_csp=True)
    b = open_tab(relay)
    for text in ("Hello!", "x" * 5000):
        expect_outcome(write(b, own_id(a), text), "delivered", "delivered")
    expect_outcome(write(a, own_id(b), "Hello."), "delivered", "delivered")
    expect_outcome(write(a, "999", "anybody?"), "offline", "offline: nobody has this id now")
    a.fill("#to", "x")
    a.fill("#text", "to nobody")
    a.press("#text", "Enter")
    a.click("summary")
    a.evaluate(axe)
    found = a.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
    assert len(found["passes"]) > 20
    assert is_as_wide_as_its_window(a)


def test_only_browsers_get_the_page(start_relay):
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
def test_it_is_worth_a_look(relay, open_tab, scheme, viewport):
    """The pictures of the README, into the folder that SWITCHBOARD_SCREENSHOTS names."""
    name = "phone" if viewport is PHONE else "desktop"
    a = open_tab(relay, color_scheme=scheme, viewport=viewport)
    b = open_tab(relay)
    write(b, own_id(a), "Hello! Does this reach you?")
    received(a, 1)
    expect_outcome(write(a, own_id(b), "It does. And I can see that this reached you."), "delivered", "delivered")
    expect_outcome(write(a, "99", "Is anybody at 99?"), "offline", "offline: nobody has this id now")
    a.fill("#to", own_id(b))
    a.focus("#text")
    picture = a.screenshot()
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("SWITCHBOARD_SCREENSHOTS"):
        pathlib.Path(folder).mkdir(exist_ok=True)
        (pathlib.Path(folder) / f"{name}-{scheme}.png").write_bytes(picture)
