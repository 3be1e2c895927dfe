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
    assert line.text_content().removesuffix(" Send again") == words


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
    b.click("#send")
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


def test_a_message_above_the_limit_stays_in_the_box_and_names_the_limit(start_relay, open_tab):
    tab = open_tab(start_relay(LIMITS__MESSAGE_BYTES="1KiB"))
    tab.fill("#to", own_id(tab))
    tab.fill("#text", "x" * 1100)
    tab.press("#text", "Enter")
    until(lambda: "1,024 bytes" in tab.text_content("#problem"), "the limit")
    assert tab.input_value("#text") == "x" * 1100
    assert tab.locator(".message").count() == 0
    expect_outcome(write(tab, "1", "x" * 900), "delivered", "delivered")
    assert tab.text_content("#problem") == ""


def test_a_visitor_reads_what_this_is_and_can_type_at_once(relay, open_tab):
    tab = open_tab(relay)
    assert "Write to another person by number" in tab.text_content("header")
    assert "Open this page in another tab" in tab.text_content("#empty")
    assert tab.locator("#to:focus").count() == 1
    assert "on this computer" in tab.text_content("#invite-label")
    tab.click("summary")
    for name in ("asyncapi.yaml", "switchboard.js"):
        assert tab.evaluate(f"fetch(document.querySelector('a[href=\"{name}\"]').href).then(a => a.status)") == 200


def test_an_invited_visitor_reads_to_whom_to_write(relay, open_tab):
    tab = open_tab(relay, "/#to=7")
    assert tab.text_content("#text-label") == "Write to 7"
    assert tab.text_content("#empty") == "No messages yet. Write to 7."
    assert tab.locator("#text:focus").count() == 1


def fill_the_log(tab, count: int = 20):
    for n in range(count):
        expect_outcome(write(tab, own_id(tab), f"message {n}"), "delivered", "delivered")
    received(tab, count)


def hidden_below(tab) -> float:
    return tab.evaluate("(log => log.scrollHeight - log.scrollTop - log.clientHeight)(document.getElementById('log'))")


def test_the_newest_message_stays_visible_when_the_log_shrinks(relay, open_tab):
    tab = open_tab(relay, viewport=DESKTOP)
    fill_the_log(tab)
    for shrink in (
        lambda: tab.fill("#text", "\n" * 8),
        lambda: tab.click("summary"),
        lambda: tab.set_viewport_size({"width": 700, "height": 420}),
    ):
        shrink()
        until(lambda: hidden_below(tab) < 2, "the end of the log")


def test_a_box_that_grows_with_a_message_hides_no_end(relay, open_tab):
    """The event of the scroll to a new message comes when the log has already shrunk."""
    tab = open_tab(relay, viewport=DESKTOP)
    fill_the_log(tab)
    tab.evaluate("""() => {
        const [log, text] = ["log", "text"].map((id) => document.getElementById(id));
        log.scrollTop -= 5;
        log.scrollTop = log.scrollHeight;
        text.value = "\\n".repeat(8);
        text.dispatchEvent(new Event("input", { bubbles: true }));
    }""")
    until(lambda: hidden_below(tab) < 2, "the end of the log")


def is_in_sight(tab, selector: str) -> bool:
    box = tab.locator(selector).bounding_box()
    return box["y"] >= 0 and box["y"] + box["height"] <= tab.viewport_size["height"]


def test_an_outcome_of_two_lines_stays_visible(relay, open_tab):
    tab = open_tab(relay, viewport=PHONE)
    fill_the_log(tab, 12)
    expect_outcome(write(tab, "999", "hello?"), "offline", "offline: no user has this id now")
    until(lambda: hidden_below(tab) < 2, "the end of the log")


def test_send_stays_visible_above_the_keyboard_of_a_phone(relay, open_tab):
    tab = open_tab(relay, viewport=PHONE)
    fill_the_log(tab, 5)
    tab.set_viewport_size({"width": 390, "height": 430})
    tab.focus("#text")
    assert is_in_sight(tab, "#send")


def test_messages_of_one_sender_are_grouped_and_have_a_time(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    for text in ("one", "two"):
        expect_outcome(write(a, own_id(b), text), "delivered", "delivered")
    received(b, 2)
    heads = b.locator(".message.in .who")
    assert heads.first.is_visible() and not heads.nth(1).is_visible()
    assert re.search(r"\d\d:\d\d", heads.first.locator("time").text_content())


def test_the_next_of_a_group_gets_the_head_of_one_that_is_sent_again(relay, open_tab):
    tab = open_tab(relay)
    for text in ("one", "two"):
        expect_outcome(write(tab, "999", text), "offline", "offline: no user has this id now")
    heads = tab.locator(".message .who")
    assert [head.is_visible() for head in heads.all()] == [True, False]
    tab.locator("text=Send again").first.click()
    until(lambda: tab.locator(".message .body").all_text_contents() == ["two", "one"], "the order")
    assert [head.is_visible() for head in heads.all()] == [True, False]


def test_reply_shows_on_hover_and_focus(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    expect_outcome(write(a, own_id(b), "hello"), "delivered", "delivered")
    received(b, 1)
    reply = b.locator(".reply")
    opacity = lambda: reply.evaluate("button => getComputedStyle(button).opacity")
    assert opacity() == "0"
    b.hover(".message.in .body")
    assert opacity() == "1"
    b.hover("h1")
    b.focus("#copy")
    b.keyboard.press("Tab")
    b.keyboard.press("Tab")
    until(lambda: b.locator(".reply:focus").count() == 1, "focus on Reply")
    assert opacity() == "1"
    b.fill("#to", "")
    b.keyboard.press("Shift+Tab")
    reply.click()
    assert b.input_value("#to") == own_id(a)
    assert b.locator("#text:focus").count() == 1


def test_a_failed_message_can_be_sent_again(relay, open_tab):
    a = open_tab(relay)
    expect_outcome(write(a, "2", "are you there?"), "offline", "offline: no user has this id now")
    b = open_tab(relay)
    assert own_id(b) == "2"
    a.click("text=Send again")
    assert received(b, 1) == ["are you there?"]
    until(lambda: a.locator("[data-outcome=delivered]").count() == 1, "delivered")
    assert a.locator(".message.out").count() == 1


def test_unread_messages_are_hinted_at_and_counted_in_the_title(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    fill_the_log(b)
    b.evaluate("document.getElementById('log').scrollTop = 0")
    b.wait_for_timeout(100)
    for n in (1, 2):
        expect_outcome(write(a, own_id(b), f"news {n}"), "delivered", "delivered")
    until(lambda: b.is_visible("#unread"), "the hint")
    until(lambda: b.text_content("#unread") == "2 new messages", "two")
    assert b.title() == f"(2) {own_id(b)} · Switchboard"
    b.click("#unread")
    until(lambda: not b.is_visible("#unread"), "no hint")
    assert b.title() == f"{own_id(b)} · Switchboard"
    assert hidden_below(b) < 2


def test_messages_that_come_while_the_tab_is_hidden_are_unread(relay, open_tab):
    a, b = open_tab(relay), open_tab(relay)
    hide = """hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    b.evaluate(hide, True)
    expect_outcome(write(a, own_id(b), "news"), "delivered", "delivered")
    until(lambda: b.title() == f"(1) {own_id(b)} · Switchboard", "the number in the title")
    b.evaluate(hide, False)
    until(lambda: b.title() == f"{own_id(b)} · Switchboard", "no number")


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
    failed = (f"WebSocket connection to 'ws{tab.origin.removeprefix('http')}/' failed", "Failed to load resource: ")
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
    assert tab.is_disabled("#send")
    assert is_in_sight(tab, "#new")
    # The tab is still useful: it joins with a new id.
    tab.click("text=Join as somebody new")
    tab.wait_for_selector("#state[data-phase=open]")
    assert own_id(tab) not in ("1", its_id)
    assert other.get_attribute("#state", "data-phase") == "open"


@pytest.mark.parametrize("by", ["locks", "messages"])
def test_a_duplicated_tab_becomes_a_user_of_its_own(relay, open_tab, by):
    tab = open_tab(relay)
    if by == "messages":
        # As in a page that is not secure, which has no locks.
        tab.context.add_init_script("delete Navigator.prototype.locks")
        tab.reload()
        tab.wait_for_selector("#state[data-phase=open]")
    with tab.context.expect_page() as opened:
        tab.evaluate("void window.open(location.href)")  # copies the storage of the tab, as a duplicate does
    copy = opened.value
    copy.wait_for_selector("#state[data-phase=open]")
    assert (own_id(tab), own_id(copy)) == ("1", "2")
    expect_outcome(write(copy, "1", "we are two"), "delivered", "delivered")
    assert received(tab, 1) == ["we are two"]
    # Both keep their ids when they are loaded again.
    for one, its_id in ((copy, "2"), (tab, "1")):
        one.reload()
        one.wait_for_selector("#state[data-phase=open]")
        assert own_id(one) == its_id


def test_the_page_asks_for_a_token_and_says_why_one_is_refused(start_relay, open_tab, secret_file):
    relay = start_relay(AUTH__MODE="jwt", AUTH__SECRET_FILE=secret_file)
    tab = open_tab(relay, phase="closed")
    assert tab.is_visible("#token") and tab.is_disabled("#send")
    assert tab.text_content("#token-problem") == "This relay asks for a token."
    assert tab.text_content("#phase") == "not connected: a token is needed"
    assert tab.locator("#token:focus").count() == 1
    tab.keyboard.type("nonsense")
    tab.keyboard.press("Enter")
    until(lambda: tab.text_content("#token-problem") == "The token was refused: unauthorized", "the reason")
    assert tab.text_content("#phase") == "not connected: the token was refused"
    tab.fill("#token", relay.issue_token())
    tab.press("#token", "Enter")
    tab.wait_for_selector("#state[data-phase=open]")
    assert not tab.is_visible("#token")
    expect_outcome(write(tab, own_id(tab), "with a token"), "delivered", "delivered")
    forgive_failed_connections(tab)


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


# At 200% a window has half as many CSS pixels each way.
VIEWPORTS = {"phone": PHONE, "desktop": DESKTOP, "zoomed": {"width": 500, "height": 320}}


def conversation(relay, secured, open_tab, **options):
    a, b = open_tab(relay, **options), open_tab(relay)
    for text in ("Hello!", "x" * 5000):
        expect_outcome(write(b, own_id(a), text), "delivered", "delivered")
    expect_outcome(write(a, own_id(b), "Hello."), "delivered", "delivered")
    expect_outcome(write(a, "999", "hello?"), "offline", "offline: no user has this id now")
    a.fill("#to", "x")
    a.fill("#text", "no recipient")
    a.press("#text", "Enter")
    a.click("summary")
    return a


def unread(relay, secured, open_tab, **options):
    a = open_tab(relay, **options)
    fill_the_log(a)
    a.evaluate("document.getElementById('log').scrollTop = 0")
    a.wait_for_timeout(100)
    expect_outcome(write(open_tab(relay), own_id(a), "news"), "delivered", "delivered")
    until(lambda: a.is_visible("#unread"), "the hint")
    return a


def taken_over(relay, secured, open_tab, **options):
    a, b = open_tab(relay, **options), open_tab(relay)
    ticket = a.evaluate("sessionStorage.getItem('switchboard.ticket')")
    b.evaluate("ticket => sessionStorage.setItem('switchboard.ticket', ticket)", ticket)
    b.reload()
    a.wait_for_selector("#state[data-phase=closed]")
    assert is_in_sight(a, "#new")
    return a


def token_wanted(relay, secured, open_tab, **options):
    a = open_tab(secured, phase="closed", **options)
    a.keyboard.type("nonsense")
    a.keyboard.press("Enter")
    until(lambda: "refused" in a.text_content("#token-problem"), "the reason")
    forgive_failed_connections(a)
    return a


def waiting(relay, secured, open_tab, **options):
    a = open_tab(relay, **options)
    relay.stop()
    a.wait_for_selector("#state[data-phase=waiting]")
    forgive_failed_connections(a)
    return a


def empty(relay, secured, open_tab, **options):
    return open_tab(relay, **options)


def invited(relay, secured, open_tab, **options):
    return open_tab(relay, "/#to=7", **options)


def too_large(relay, secured, open_tab, **options):
    a = open_tab(relay, "/#to=1", **options)
    a.fill("#text", "x" * 70_000)
    a.press("#text", "Enter")
    until(lambda: "65,536 bytes" in a.text_content("#problem"), "the limit")
    return a


def token_asked(relay, secured, open_tab, **options):
    a = open_tab(secured, phase="closed", **options)
    forgive_failed_connections(a)
    return a


STATES = [empty, invited, conversation, unread, too_large, taken_over, token_asked, token_wanted, waiting]


@pytest.fixture
def secured(start_relay, secret_file):
    return start_relay(AUTH__MODE="jwt", AUTH__SECRET_FILE=secret_file)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", VIEWPORTS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing(relay, secured, open_tab, axe, state, scheme, viewport):
    """Also writes a picture of each state into the folder that SWITCHBOARD_SCREENSHOTS names."""
    # The content security policy of the page would block axe, like every other script.
    options = {"color_scheme": scheme, "viewport": VIEWPORTS[viewport], "bypass_csp": True}
    tab = state(relay, secured, open_tab, **options)
    if folder := os.environ.get("SWITCHBOARD_SCREENSHOTS"):
        pathlib.Path(folder).mkdir(exist_ok=True)
        tab.screenshot(path=pathlib.Path(folder) / f"{state.__name__}-{viewport}-{scheme}.png")
    tab.evaluate(axe)
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
    assert len(found["passes"]) > 20
    assert is_as_wide_as_its_window(tab)
    forgive_failed_connections(tab)


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
