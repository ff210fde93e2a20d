"""The review page in a headless Chromium: keys, exact bytes, and nothing of what users wrote becoming markup."""

from __future__ import annotations

import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.feedback.api.app import create_app
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.api.settings import ApiSettings
from incremental_llm.feedback.review import Proposal, ReviewQueue, ReviewSettings, Voice

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium (CONTRIBUTING.md)"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


class Server:
    """The application in a thread, on a port of its own; it can be ended and begun again."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(self._make(), port=self.port, log_config=None, ws="none", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@dataclass
class Site:
    """A server with a queue, and a page of a reviewer who is logged in."""

    store: FeedbackStore
    queue: ReviewQueue
    server: Server
    page: Any
    errors: list[str]
    dialogs: Callable[[Any], None]

    def put(self, name: str, reply: str, asked: str = "How long can I return boots?", **fields: Any) -> str:
        """An item on the reply of a new interaction."""
        messages = fields.pop("prompt", [{"role": "user", "content": asked}])
        said = {"conversation": name, "user": "asker", "messages": messages, "reply": reply, "model": "m"}
        event = {"type": "interaction", "id": name, "time": "2026-11-01T12:00:00Z", **said}
        self.store.append([parse_event(event)])
        told = {"kind": "moderation", "reason": "unsure", "priority": 0.5, "interaction": name, "prompt": messages}
        proposal = Proposal.model_validate({**told, "reply": reply, **fields})
        self.queue.add([proposal])
        return proposal.id

    def open(self, key: str, *, reply: str | None = None) -> None:
        """Log in, and wait for the item with this reply."""
        self.page.goto(f"{self.server.url}/review")
        self.page.fill("#key", key)
        self.page.press("#key", "Enter")
        self.page.wait_for_selector("#work" if reply is not None else "#counts", state="visible")
        if reply is not None:
            self.shows(reply)

    def shows(self, reply: str) -> None:
        self.page.wait_for_function("reply => item && item.reply === reply && !busy", arg=reply)

    def says(self, text: str) -> None:
        self.page.wait_for_function("text => at('status').textContent.includes(text) && !busy", arg=text)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def taught(self) -> list[Any]:
        return [stored.event for stored in self.store.read() if stored.event.type != "interaction"]


@pytest.fixture
def site(tmp_path: Path, browser: Any) -> Iterator[Site]:
    with ExitStack() as stack:
        store = stack.enter_context(FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}"))
        queue = ReviewQueue(store, ReviewSettings(seed_share=0))
        server = Server(lambda: create_app(store, ApiSettings(refresh_seconds=0), review=queue))
        stack.callback(server.stop)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        stack.callback(context.close)
        context.set_default_timeout(15_000)
        page, errors = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))

        def dialogs(dialog: Any) -> None:
            errors.append(f"dialog {dialog.message}")
            dialog.dismiss()

        page.on("dialog", dialogs)
        page.on("console", lambda told: errors.append(told.text) if "Content Security" in told.text else None)
        yield Site(store, queue, server, page, errors, dialogs)
        assert errors == []


@pytest.fixture
def key(site: Site) -> str:
    return KeyTable(site.store).create("r1", ["review"], reviewer="r1")[1]


def test_a_morning_by_keyboard(site: Site, key: str) -> None:
    for number, reply in enumerate(("right", "wrong", "nearly", "odd", "other")):
        site.put(f"i{number}", reply, priority=1 - number / 10)
    site.open(key, reply="right")
    site.press("a")
    site.shows("wrong")
    site.press("n")  # later
    site.shows("nearly")
    site.press("k")  # and back
    site.shows("wrong")
    site.press("r")
    site.shows("nearly")
    site.press("e")
    site.page.keyboard.type("45 days")
    site.press("Escape", "u")
    assert site.page.input_value("#text") == "nearly"
    site.press("c", "End")
    site.page.keyboard.type(" right")
    assert site.page.locator("#diff ins").inner_text().strip("· ") == "right"
    site.press("Escape", "a")  # would throw away what was typed
    site.says("You have changed the text")
    site.press("e")
    site.press("Control+Enter")
    site.shows("odd")
    site.press("s")
    site.shows("other")
    site.press("?")
    assert site.page.locator("#keys").is_visible()
    site.press("Escape")
    site.press("j")
    site.says("1 were put off")
    assert site.page.locator("#work").is_hidden()
    site.press("n")
    site.shows("other")
    told = [(event.type, getattr(event, "content", getattr(event, "value", None))) for event in site.taught()]
    assert told == [("correction", "right"), ("thumb", -1), ("correction", "nearly right")]


EXACT = "  two leading, \u200bzero width\u200d, \u202eturned\u202c, ελληνικά, שלום, 👩🏽\u200d🚀\n\n\ttab\nlast \n \n"


def test_the_text_arrives_byte_for_byte(site: Site, key: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    site.page.fill("#text", EXACT)
    size = f"{len(EXACT)} characters, {len(EXACT.encode())} bytes"
    assert site.page.locator("#size").inner_text() == size
    signs = site.page.locator("#diff .sign").all_inner_texts()
    assert [sign for sign in signs if sign.isupper()] == ["ZWSP", "ZWJ", "RLO", "PDF", "ZWJ", "TAB"]
    assert "\u202e" not in site.page.locator("#diff").inner_text()
    site.page.focus("#text")
    site.press("Control+Enter")
    site.says("Nothing to review")
    (event,) = site.taught()
    assert event.content == EXACT
    site.press("a", "r", "s")
    assert len(site.taught()) == 1


def test_a_reply_with_carriage_returns_is_kept_by_accept_and_said_to_change_by_edit(site: Site, key: str) -> None:
    site.put("i1", "one\r\ntwo\r\n")
    site.open(key, reply="one\r\ntwo\r\n")
    assert "2 carriage returns" in site.page.locator("#ends").inner_text()
    assert site.page.locator("#diff .sign").all_inner_texts()[:1] == ["CR"]
    assert site.page.locator("#save").is_disabled()
    site.press("a")
    site.says("Nothing to review")
    assert site.taught()[0].content == "one\r\ntwo\r\n"


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)" x=\'',
    "</textarea><iframe src=javascript:alert(4)></iframe>",
    "javascript:alert(5) [click](javascript:alert(6)) {{7*7}} ${7*7} <!-- -->",
    "x" * 5000,
    "\u202e" + "מהפך " * 40,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_users_write_is_text(site: Site, key: str, text: str) -> None:
    voices = (Voice(who=text[:200], says=text[:300]), Voice(who="r9", says=text, text=True))
    turns = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    site.put("i1", text, prompt=turns, other=text + "!", reason=text[:100], voices=voices)
    site.open(key, reply=text)
    body = site.page.locator("#work")
    assert body.locator("script, img, iframe, a").count() == 0
    attributes = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name))"
    assert not [name for name in site.page.evaluate(attributes) if name.startswith("on")]
    assert site.page.input_value("#text") == text
    site.page.fill("#text", text + " more")
    for width in (1280, 400):
        site.page.set_viewport_size({"width": width, "height": 800})
        assert site.page.evaluate("document.documentElement.scrollWidth") <= width
    site.page.hover("#why")
    site.press("Escape")
    site.page.locator("#text").blur()
    site.press("1")
    assert site.page.input_value("#text") == text


def test_a_difference_gives_back_both_texts(site: Site, key: str) -> None:
    rng = random.Random(0)
    pieces = ["a", "b b", "  ", "\n", "\r\n", "30", ".", "שלום", "👩🏽\u200d🚀", "\u200b", "-", "e\u0301"]
    pairs = [["".join(rng.choices(pieces, k=rng.randint(0, 12))) for _ in range(2)] for _ in range(300)]
    pairs += [["same", "same"], ["", "new"], ["old", ""], ["x " * 3000, "y " * 3000]]
    site.open(key)
    found = site.page.evaluate("pairs => pairs.map(([before, after]) => changes(before, after))", pairs)
    for (before, after), parts in zip(pairs, found, strict=True):
        assert "".join(text for kind, text in parts if kind != "ins") == before
        assert "".join(text for kind, text in parts if kind != "del") == after
    few = site.page.evaluate("changes('You can return it within 14 days.', 'You can return it within 30 days.')")
    assert few == [["same", "You can return it within "], ["del", "14"], ["ins", "30"], ["same", " days."]]


def test_of_two_replies_one_is_better(site: Site, key: str) -> None:
    site.put("i2", "30 days.", reason="tie", priority=0.1)
    site.put("i1", "14 days.", other="30 days.", other_interaction="i2", kind="low_margin", priority=0.9)
    site.open(key, reply="14 days.")
    assert "Second is better" in site.page.locator("#reject").inner_text()
    site.press("r")
    site.shows("30 days.")
    (event,) = site.taught()
    assert (event.type, event.chosen, event.rejected) == ("preference", "i2", "i1")


def test_the_second_of_two_people_is_waited_for(site: Site, key: str) -> None:
    site.put("i1", "Take two.", kind="safety")
    site.open(key, reply="Take two.")
    site.press("r")
    site.says("Nothing to review")
    assert "1 of them wait for a second" in site.page.locator("#counts").inner_text()
    assert site.taught() == []


def test_a_claim_that_ran_out_is_taken_again_with_the_text(site: Site, key: str) -> None:
    name = site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    site.page.fill("#text", "30 days.")
    site.queue.release(name, "r1")
    site.press("Control+Enter")
    site.says("Your time for this one had run out, and it is yours again")
    assert site.page.input_value("#text") == "30 days."
    assert site.taught() == []
    site.press("Control+Enter")
    site.says("Nothing to review")
    assert site.taught()[0].content == "30 days."


def test_somebody_else_was_faster(site: Site, key: str) -> None:
    name = site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    site.page.fill("#text", "30 days.")
    site.queue.release(name, "r1")
    site.queue.claim(name, "r2")
    site.press("Control+Enter")
    site.says("Somebody else has this one now, and nothing was sent")
    assert site.page.input_value("#text") == "30 days."
    assert site.taught() == []


def test_a_lost_connection_loses_nothing(site: Site, key: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    site.page.fill("#text", "30 days.")
    site.server.stop()
    site.press("Control+Enter")
    site.says("No connection to the server. Nothing was lost")
    assert site.page.input_value("#text") == "30 days."
    site.server.start()
    site.press("Control+Enter")
    site.says("Nothing to review")
    assert site.taught()[0].content == "30 days."


def test_a_revoked_key_ends_the_session_in_words(site: Site, key: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    KeyTable(site.store).revoke(key.split("_")[1])
    site.press("a")
    site.says("You are logged out. Your text is still here")
    assert site.taught() == []


def test_a_wrong_key_is_refused_in_words_and_stands_in_no_address(site: Site, key: str) -> None:
    site.page.goto(f"{site.server.url}/review")
    site.page.fill("#key", "illm_wrong_key")
    site.page.press("#key", "Enter")
    site.says("Expected a live API key")
    assert site.page.url == f"{site.server.url}/review"
    site.open(key)
    site.says("Nothing to review")
    assert site.page.evaluate("document.cookie") == ""
    site.page.click("#logout")
    site.page.wait_for_selector("#key")


def test_a_page_of_anna_decides_nothing_in_the_name_of_ben(site: Site, key: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    ben = KeyTable(site.store).create("ben", ["review"], reviewer="ben")[1]
    other = site.page.context.new_page()
    other.goto(f"{site.server.url}/review")
    other.wait_for_function("() => !busy")
    other.click("#logout")
    other.fill("#key", ben)
    other.press("#key", "Enter")
    other.wait_for_selector("#counts", state="visible")
    site.press("r")
    site.says("This page was r1's, and this browser is logged in as somebody else now. Nothing was sent.")
    assert site.page.locator(".who span").inner_text() == "ben"
    assert site.queue.decisions() == []


def test_going_back_to_what_another_holds_by_now_keeps_this_one(site: Site, key: str) -> None:
    first, second = site.put("i1", "first", priority=0.9), site.put("i2", "second", priority=0.1)
    site.open(key, reply="first")
    site.press("n")
    site.shows("second")
    site.queue.claim(first, "r2")
    site.press("k")
    site.says("The one before is not yours to decide any more; this one still is")
    assert site.queue.get(second).claimed_by == "r1"
    site.press("a")
    site.says("Nothing")
    assert [event.content for event in site.taught()] == ["second"]


def test_going_back_gives_back_the_one_that_is_left(site: Site, key: str) -> None:
    first, second = site.put("i1", "first", priority=0.9), site.put("i2", "second", priority=0.1)
    site.open(key, reply="first")
    site.press("n")
    site.shows("second")
    site.press("k")
    site.shows("first")
    assert (site.queue.get(first).claimed_by, site.queue.get(second).claimed_by) == ("r1", None)


def drafts(site: Site) -> list[str]:
    stored = site.page.evaluate("Object.entries(sessionStorage)")
    return [text for name, text in stored if name.startswith("illm-review-draft ")]


def test_what_was_typed_outlives_a_reload_and_no_decision(site: Site, key: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    site.press("e", "End")
    site.page.keyboard.type(" Or so.")
    site.page.remove_listener("dialog", site.dialogs)
    asked: list[str] = []
    site.page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    site.page.reload()
    site.shows("14 days.")
    assert asked == ["beforeunload"]
    assert site.page.input_value("#text") == "14 days. Or so."
    assert drafts(site) == ["14 days. Or so."]
    site.press("e", "Control+Enter")
    site.says("Nothing to review")
    assert (drafts(site), site.taught()[0].content) == ([], "14 days. Or so.")


def test_logging_out_forgets_what_was_typed(site: Site, key: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    site.page.fill("#text", "15 days.")
    assert drafts(site) == ["15 days."]
    site.page.click("#logout")
    site.page.wait_for_selector("#key")
    assert drafts(site) == []


@pytest.mark.parametrize(
    ("key_", "code", "does"),
    [("R", "KeyR", "thumb"), ("к", "KeyR", "thumb"), ("a", "KeyQ", "correction"), ("ρ", "KeyR", "thumb")],
)
def test_keys_count_with_caps_lock_and_on_any_layout(site: Site, key: str, key_: str, code: str, does: str) -> None:
    site.put("i1", "14 days.")
    site.open(key, reply="14 days.")
    typed = "([key, code]) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, code, bubbles: true }))"
    site.page.evaluate(typed, [key_, code])
    site.says("Nothing to review")
    assert [event.type for event in site.taught()] == [does]


def test_a_key_in_a_long_reply_waits_for_no_difference(site: Site, key: str) -> None:
    reply = "word " * 50_000
    site.put("i1", reply)
    site.open(key, reply=reply)
    site.page.evaluate("window.shown = 0; const shows = showSize; showSize = () => { window.shown++; shows(); }; 0")
    at_once = site.page.evaluate(
        "() => { for (const end of 'abc') { at('text').value += end; at('text').dispatchEvent(new Event('input')); }"
        " return [window.shown, at('save').disabled]; }"
    )
    assert at_once == [0, False]
    site.page.wait_for_function("() => window.shown === 1")
    assert site.page.locator("#size").inner_text().startswith("250003 characters")


def test_characters_that_cannot_be_seen_have_names_in_reason_and_voices_too(site: Site, key: str) -> None:
    site.put("i1", "14 days.", reason="odd\u202e", voices=(Voice(who="an\u200bna\u202e", says="up"),))
    site.open(key, reply="14 days.")
    assert site.page.locator("#why .sign").all_inner_texts() == ["RLO"]
    assert site.page.locator("#voices b .sign").all_inner_texts() == ["ZWSP", "RLO"]
