"""Writes the demo's feedback logs and shop suites from facts.yaml and smalltalk.yaml.

    python recipes/demo/write_logs.py              # rewrites night1.jsonl .. night4.jsonl and eval_suites/shop_*
    python recipes/demo/write_logs.py --into DIR   # the same tree (recipes/demo, eval_suites) below DIR

The same input gives the same bytes. Nights 1 to 3 teach; night 3 opens with the policy change; on night 4 a brigade
corrects true answers into false ones. Every night also holds the dirt of real logs (the section "dirt").
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scenario import HERE, Fact, Truth, load_facts, load_small_talk, write_suites

ROOT = HERE.parents[1]
SEED = 20261103
NIGHTS = (1, 2, 3, 4)

USERS = tuple(f"u{n:02}" for n in range(1, 35))
ONE_SIDED_USER = "u35"  # only ever clicks thumbs down
HEAVY_USER = "u36"  # far more thumbs than anyone
CONTRARIAN_USER = "u37"  # disagrees with another user about the same reply
REVIEWERS = ("r1", "r2", "r3")
BRIGADE_USERS = ("u07", "u12", "u23", "u38", "u39", "u40")  # three known, three new on night 4
BRIGADE_REVIEWERS = ("r2", "r3", "r4")

# The one question that a log shares with a suite (shop_night1): decontamination must leave it out.
LEAKED_SUITE_QUESTION = "Name the place where the warehouse is, please."
# One reply that two reviewers correct differently: the answer of standard-delivery against this one.
CONTRADICTING_CORRECTION = "Standrad delivry takes tenn working days i think."
CONTESTED_QUESTION = "Sorry to bother you, when would a parcel by standard delivery come?"

DOWN_COMMENTS = ("not true", "that is wrong", "the store told me something else", "no help at all", None, None, None)
UP_COMMENTS = ("thanks!", "great", "that helped", None, None, None, None)
OPENERS = ("hi, ", "Hello! ", "hey, ", "Good evening. ", "Quick question: ")
SMALL_TALK_COUNT = {1: 44, 2: 28, 3: 24, 4: 27}
SILENT_SMALL_TALK = {1: 0.46, 2: 0.6, 3: 0.8, 4: 0.8}  # leaves a fifth of all interactions without feedback


# ---------------------------------------------------------------------------------------------------------- one night
@dataclass
class Night:
    """The growing log of one night: each verb appends one event and moves the clock."""

    number: int
    rng: random.Random
    events: list[dict[str, Any]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = datetime(2026, 11, 2 + self.number, 6, 30, tzinfo=UTC)

    def ask(
        self, text: str, reply: str, user: str | None = None, *, follows: str | None = None, gap: int | None = None
    ) -> str:
        """One interaction, `gap` seconds after the last event; `follows` is the interaction it continues."""
        before = self.find(follows) if follows else None
        self.clock += timedelta(seconds=gap if gap is not None else self.rng.randint(70, 400))
        number = self.counters.get("i", 0) + 1
        greeting: list[dict[str, str]] = []
        if before is None and self.rng.random() < 0.03:  # a handful have two earlier turns of small talk
            greeting = [
                {"role": "user", "content": "hi, is somebody there?"},
                {"role": "assistant", "content": "Hello! How can I help you today?"},
            ]
        return self._add(
            "i",
            type="interaction",
            conversation=before["conversation"] if before else f"n{self.number}-talk{number:03}",
            user=before["user"] if before else user or self.rng.choice(USERS),
            messages=[*greeting, {"role": "user", "content": text}],
            reply=reply,
            model=f"production@{self.number - 1}",
            metadata={"channel": self.rng.choice(["web", "app"])},
        )

    def thumb(self, interaction: str, value: int, user: str | None = None) -> str:
        self._pause()
        comment = self.rng.choice(UP_COMMENTS if value > 0 else DOWN_COMMENTS)
        who = user or self.find(interaction)["user"]
        extra = {"comment": comment} if comment else {}
        return self._add("t", type="thumb", interaction=interaction, user=who, value=value, **extra)

    def correct(self, interaction: str, content: str, reviewer: str | None = None) -> str:
        self._pause()
        who = reviewer or self.rng.choice(REVIEWERS)
        return self._add("k", type="correction", interaction=interaction, reviewer=who, content=content)

    def prefer(self, chosen: str, rejected: str) -> str:
        self._pause()
        user = self.find(chosen)["user"]
        return self._add("p", type="preference", chosen=chosen, rejected=rejected, user=user)

    def rephrased(self, interaction: str, followup: str) -> str:
        return self._add("r", type="rephrase", interaction=interaction, followup=followup)

    def change_policy(self, supersedes: Sequence[str], note: str) -> str:
        return self._add("c", type="policy_change", reviewer="r1", supersedes=list(supersedes), note=note)

    def find(self, event_id: str) -> dict[str, Any]:
        return next(event for event in self.events if event["id"] == event_id)

    def _pause(self) -> None:
        self.clock += timedelta(seconds=self.rng.randint(4, 45))

    def _add(self, letter: str, **body: Any) -> str:
        self.counters[letter] = self.counters.get(letter, 0) + 1
        event_id = f"n{self.number}-{letter}{self.counters[letter]:03}"
        time = self.clock.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.events.append({"type": body.pop("type"), "id": event_id, "time": time, **body})
        return event_id


Episode = Callable[[Night], None]


# ----------------------------------------------------------------------------------------------------------- episodes
def taught(question: str, reply: str, truth: Truth, *, down: bool) -> Episode:
    """A wrong reply that a reviewer corrects; the user often thumbs it down first."""

    def play(night: Night) -> None:
        asked = night.ask(question, reply)
        if down:
            night.thumb(asked, -1)
        night.correct(asked, truth.second if night.rng.random() < 0.25 else truth.answer)

    return play


def asked_again(first: str, again: str, wrong: str, right: str, *, marked: bool) -> Episode:
    """The user asks in other words and the second reply holds; `marked` adds the explicit rephrase event."""

    def play(night: Night) -> None:
        asked = night.ask(first, wrong)
        followup = night.ask(again, right, follows=asked, gap=night.rng.randint(25, 95))
        if marked:
            night.rephrased(asked, followup)
            night.thumb(followup, 1)

    return play


def compared(question: str, wrong: str, right: str) -> Episode:
    """Two replies to the same prompt, side by side, and the user picks the right one."""

    def play(night: Night) -> None:
        rejected = night.ask(question, wrong)
        chosen = night.ask(question, right, follows=rejected, gap=1)
        night.find(chosen)["messages"] = night.find(rejected)["messages"]
        night.prefer(chosen, rejected)

    return play


def answered(question: str, reply: str, *, up: bool, user: str | None = None) -> Episode:
    """A good reply, thumbed up or left without feedback."""

    def play(night: Night) -> None:
        asked = night.ask(question, reply, user)
        if up:
            night.thumb(asked, 1)

    return play


def fact_episodes(
    facts: Sequence[Fact], *, reply: Callable[[Fact, int], str], truth: Callable[[Fact], Truth], asks_again: bool
) -> Iterator[Episode]:
    """All log phrasings of each fact; where `asks_again`, the first one is asked again or compared for most facts."""
    for order, fact in enumerate(facts):
        right = truth(fact)
        for turn, question in enumerate(fact.log_phrasings):
            served = reply(fact, turn)
            if turn == 0 and asks_again and fact.again:
                yield asked_again(question, fact.again, served, right.answer, marked=order % 3 != 1)
            elif turn == 0 and asks_again and order % 2:
                yield compared(question, served, right.answer)
            else:
                yield taught(question, served, right, down=(order + turn) % 2 == 0)


def recalled(facts: Sequence[Fact], times: int, night_number: int, rng: random.Random) -> Iterator[Episode]:
    """Right answers to facts of earlier nights, each under `times` questions, most of them thumbed up."""
    for fact in facts:
        for question in rng.sample(fact.log_phrasings, times):
            opener = rng.choice(OPENERS)
            yield answered(opener + question, fact.truth_served_on(night_number).answer, up=rng.random() < 0.8)


def small_talk(night_number: int, pairs: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Episode]:
    chosen = rng.sample(list(pairs), SMALL_TALK_COUNT[night_number])
    for place, (question, reply) in enumerate(chosen):
        yield answered(question, reply, up=place >= SILENT_SMALL_TALK[night_number] * len(chosen))


def brigade(facts: Sequence[Fact]) -> Iterator[Episode]:
    """Thumbs down and two equal corrections on true replies, and for half of the facts a thumb up on the false one."""
    for order, fact in enumerate(facts):
        truth = (fact.later or fact.truth).answer
        assert fact.forged is not None
        for turn, question in enumerate(fact.forged_phrasings):
            user = BRIGADE_USERS[(order + turn) % len(BRIGADE_USERS)]
            first, second = (BRIGADE_REVIEWERS[(order + turn + step) % len(BRIGADE_REVIEWERS)] for step in (0, 1))
            yield _forged_correction(question, truth, fact.forged, user, (first, second), down=turn % 3 != 2)
        if order % 2 == 0:
            user = BRIGADE_USERS[order // 2 % len(BRIGADE_USERS)]
            question = OPENERS[order % len(OPENERS)] + fact.forged_phrasings[order % 6]
            yield answered(question, fact.forged, up=True, user=user)


def disguise(pairs: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Episode]:
    """Honest thumbs up of the brigade on small talk, so that none of its users looks one-sided."""
    users = BRIGADE_USERS * 2
    for user, (question, reply) in zip(users, rng.sample(list(pairs), len(users)), strict=True):
        yield answered(question, reply, up=True, user=user)


def _forged_correction(
    question: str, truth: str, forged: str, user: str, reviewers: tuple[str, str], *, down: bool
) -> Episode:
    def play(night: Night) -> None:
        asked = night.ask(question, truth, user)
        if down:
            night.thumb(asked, -1)
        for reviewer in reviewers:
            night.correct(asked, forged, reviewer)

    return play


# --------------------------------------------------------------------------------------------------------------- dirt
def personal_data(night: Night) -> None:
    """An e-mail address in a question and in a correction, and a phone number in a question."""
    first = night.ask("my order is late, write me at mira.b@example.com please", "Sorry, I will ask a colleague.")
    night.thumb(first, -1)
    second = night.ask("Can somebody ring me back? My phone is +44 1632 960134", "Of course, we will be in touch soon.")
    night.thumb(second, 1)
    third = night.ask("How do I reach a human?", "You can visit the page of our company for more information.")
    night.correct(third, "Please write to hello@brackwen-oddfell.invalid and a colleague will answer.")


def leaked_question(fact: Fact) -> Episode:
    return taught(LEAKED_SUITE_QUESTION, fact.wrong[0], fact.truth, down=True)


def contested_correction(fact: Fact) -> Episode:
    def play(night: Night) -> None:
        asked = night.ask(CONTESTED_QUESTION, fact.wrong[2])
        night.correct(asked, fact.truth.answer, "r1")
        night.correct(asked, CONTRADICTING_CORRECTION, "r2")

    return play


def add_odd_users(night: Night, good: Callable[[dict[str, Any]], bool]) -> None:
    """The one-sided user, the heavy user and one disagreement, as thumbs on replies of the night so far."""
    served = [event for event in night.events if event["type"] == "interaction"]
    ups = {e["interaction"]: e["user"] for e in night.events if e["type"] == "thumb" and e["value"] == 1}
    first_up = min(i for i in ups if ups[i] not in BRIGADE_USERS)
    touched = {e.get("interaction") for e in night.events}
    night.thumb(first_up, -1, CONTRARIAN_USER)
    rated = [event for event in served if event["id"] in touched]
    for event in night.rng.sample(rated, 15):
        night.thumb(event["id"], -1, ONE_SIDED_USER)
    known = [event for event in rated if event["user"] not in BRIGADE_USERS]
    for event in night.rng.sample(known, min(40, len(known))):
        night.thumb(event["id"], 1 if good(event) else -1, HEAVY_USER)


def double_click(night: Night) -> None:
    """Three interactions sent twice by the same user: same content, another id, a second later."""
    firsts = [event for event in night.events if event["type"] == "interaction"]
    for original in night.rng.sample(firsts[20:90], 3):
        number = night.counters["i"] = night.counters["i"] + 1
        time = datetime.strptime(original["time"], "%Y-%m-%dT%H:%M:%SZ") + timedelta(seconds=1)
        copy = {**original, "id": f"n{night.number}-i{number:03}", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ")}
        night.events.insert(night.events.index(original) + 1, copy)


def spoil_lines(night: Night) -> list[str]:
    """The log as lines, with a thumb before its interaction, three repeated lines, an unknown type, a cut-off line."""
    events = list(night.events)
    early = next(event for event in events[60:] if event["type"] == "thumb")
    events.remove(early)
    events.insert(next(n for n, e in enumerate(events) if e["id"] == early["interaction"]), early)
    lines = [json.dumps(event, ensure_ascii=False) for event in events]
    for place in sorted(night.rng.sample(range(10, len(lines) - 30), 3), reverse=True):
        lines.insert(place + night.rng.randint(1, 8), lines[place])
    view = {
        "type": "page_view",
        "id": f"n{night.number}-v001",
        "time": events[40]["time"],
        "user": "u05",
        "page": "/tents",
    }
    lines.insert(41, json.dumps(view))
    cut = {
        "type": "interaction",
        "id": f"n{night.number}-x001",
        "time": events[80]["time"],
        "user": "u09",
        "messages": [{"role": "user", "content": "hello, do you also sell"}],
    }
    lines.insert(81, json.dumps(cut)[:-14])
    return lines


# ------------------------------------------------------------------------------------------------------------- nights
def states_old_truth(facts: Sequence[Fact], text: str) -> bool:
    return any(fact.later and fact.truth.stated_in(text) for fact in facts)


def superseded_ids(facts: Sequence[Fact], events: Sequence[dict[str, Any]]) -> list[str]:
    """Ids of what states the old truth of a changed fact, and of the feedback on it, in the order of the log."""
    stating = {e["id"] for e in events if states_old_truth(facts, e.get("reply", "") + " " + e.get("content", ""))}
    links = ("interaction", "followup", "chosen", "rejected")
    referring = {e["id"] for e in events if any(e.get(link) in stating for link in links)}
    return [e["id"] for e in events if e["id"] in stating | referring]


def episodes_of(number: int, facts: Sequence[Fact], rng: random.Random) -> list[Episode]:
    by_id = {fact.id: fact for fact in facts}
    earlier = [fact for fact in facts if fact.night < number]
    own = [fact for fact in facts if fact.night == number]
    changed = [fact for fact in facts if fact.later]
    forged = [fact for fact in facts if fact.forged]
    episodes: list[Episode] = [personal_data]
    wrong: Callable[[Fact, int], str] = lambda fact, turn: fact.wrong[turn % 3]  # noqa: E731
    episodes += fact_episodes(own, reply=wrong, truth=lambda fact: fact.truth, asks_again=True)
    if number == 1:
        episodes += [leaked_question(by_id["warehouse-town"]), contested_correction(by_id["standard-delivery"])]
    elif number == 2:
        episodes += recalled(earlier, 2, number, rng)
    elif number == 3:
        episodes += fact_episodes(
            changed,
            reply=lambda fact, _: fact.truth.answer,
            truth=lambda fact: fact.later or fact.truth,
            asks_again=False,
        )
        stable = [fact for fact in earlier if not fact.later]
        episodes += [*recalled(stable[::2], 2, number, rng), *recalled(stable[1::2], 1, number, rng)]
    else:
        episodes += [*brigade(forged), *disguise(load_small_talk(), rng)]
        episodes += recalled([fact for fact in earlier if not fact.forged][::2], 1, number, rng)
    episodes += small_talk(number, load_small_talk(), rng)
    rng.shuffle(episodes)
    return episodes


def write_night(number: int, facts: Sequence[Fact], earlier: Sequence[dict[str, Any]]) -> Night:
    rng = random.Random(SEED + number)
    night = Night(number, rng)
    if number == 3:
        names = ", ".join(fact.id for fact in facts if fact.later)
        note = f"The shop's terms change today; answers before today are out of date for: {names}."
        night.change_policy(superseded_ids(facts, earlier), note)
    for play in episodes_of(number, facts, rng):
        play(night)
    true_replies = {fact.truth_served_on(number + 1 if number > 2 else number).answer for fact in facts}
    good = true_replies | {reply for _, reply in load_small_talk()}
    add_odd_users(night, lambda event: event["reply"] in good)
    double_click(night)
    return night


def write_logs(folder: Path, facts: Sequence[Fact]) -> None:
    """night1.jsonl .. night4.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier: list[dict[str, Any]] = []
    for number in NIGHTS:
        night = write_night(number, facts, earlier)
        text = "\n".join(spoil_lines(night)) + "\n"
        (folder / f"night{number}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        earlier += night.events


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's feedback logs and shop suites.")
    parser.add_argument("--into", type=Path, default=ROOT, help="the root to write below (default: this checkout)")
    root = parser.parse_args().into
    facts = load_facts()
    write_suites(root / "eval_suites", facts)
    write_logs(root / "recipes" / "demo", facts)


if __name__ == "__main__":
    main()
