"""A made-up log of any length with the shape of a real one: sessions, heavy users, repeats, noise. Flat in memory.

    python benchmarks/generated_log.py 1000000 log.jsonl [--seed 0]

Lengths are lognormal, users and subjects follow a power law (a few ask most), a tenth of what is delivered comes twice,
questions are asked again in other words, and there are personal data, empty replies, unknown types and broken lines.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2026, 11, 1, tzinfo=UTC)
TWICE, BROKEN, UNKNOWN = 0.1, 0.001, 0.002
RATED, CORRECTED, PREFERRED, AGAIN = 0.35, 0.05, 0.03, 0.08
FORMS = (
    "How long can I return {}?",
    "Within how many days may I send back {}?",
    "What does {} cost?",
    "Is there a warranty on {}, and for how long?",
    "Do you ship {} to {}?",
    "The {} I ordered arrived broken, what can I do about it now?",
    "Can you tell me whether {} comes in {}?",
)
SYLLABLES = ("ba", "do", "ki", "lu", "me", "na", "po", "ra", "se", "ti", "vo", "wa", "xi", "yu", "zen", "gor", "fel")


class Log:
    """Events in the order of delivery."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.words = sorted({"".join(self.rng.choices(SYLLABLES, k=self.rng.randint(2, 4))) for _ in range(4000)})
        self.number = 0

    def lines(self, count: int) -> Iterator[str]:
        """`count` lines; those that come twice and broken ones are among them."""
        made, held = 0, []
        for event in self.events():
            line = json.dumps(event, ensure_ascii=False)
            held.append(line)
            again = self.rng.random() < TWICE
            for text in (line, *([self.rng.choice(held)] if again else ())):
                yield text if self.rng.random() >= BROKEN else text[: len(text) // 2]
                made += 1
                if made == count:
                    return
            del held[:-200]

    def events(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.session()

    def session(self) -> Iterator[dict[str, Any]]:
        """One user's conversation: a few questions, some judged, some asked again."""
        user, conversation = f"u{self.power(200_000)}", f"c{self.next()}"
        at = START + timedelta(seconds=self.number * 0.2)
        turns: list[dict[str, str]] = []
        for _ in range(1 + int(self.rng.expovariate(0.7))):
            subject, form = self.word(), self.rng.choice(FORMS)
            for question in (form, *((self.rng.choice(FORMS[:2]),) if self.rng.random() < AGAIN else ())):
                asked = {"role": "user", "content": self.noisy(question.format(subject, self.word()))}
                served = self.interaction(user, conversation, at, [*turns, asked])
                yield served
                yield from self.feedback(served, user, at)
                at += timedelta(seconds=self.rng.expovariate(1 / 60))
            turns = [*turns, asked, {"role": "assistant", "content": served["reply"]}][-4:]

    def feedback(self, served: dict[str, Any], user: str, at: datetime) -> Iterator[dict[str, Any]]:
        about = {"interaction": served["id"]}
        if self.rng.random() < RATED:
            yield self.event("thumb", at, user=user, value=self.rng.choice((1, 1, -1)), **about)
        if self.rng.random() < CORRECTED:
            yield self.event("correction", at, reviewer=f"r{self.power(40)}", content=self.reply(), **about)
        if self.rng.random() < PREFERRED:
            other = self.interaction(user, served["conversation"], at, served["messages"])
            yield other
            yield self.event("preference", at, chosen=other["id"], rejected=served["id"], user=user)
        if self.rng.random() < UNKNOWN:
            yield self.event("page_view", at, page="/returns")

    def interaction(self, user: str, conversation: str, at: datetime, messages: list[dict[str, str]]) -> dict[str, Any]:
        where = {"conversation": conversation, "user": user, "messages": messages}
        return self.event("interaction", at, reply=self.reply(), model="production@7", **where)

    def event(self, kind: str, at: datetime, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "id": f"{kind[0]}{self.next()}", "time": at.isoformat(), **fields}

    def reply(self) -> str:
        if self.rng.random() < 0.3:  # much of what a model says, it says again and again
            return f"You can return {self.words[self.power(200)]} within 30 days."
        count = min(400, max(1, int(self.rng.lognormvariate(2.9, 0.8))))
        return " ".join(self.rng.choices(self.words, k=count)) + "."

    def noisy(self, text: str) -> str:
        chance = self.rng.random()
        if chance < 0.02:
            return f"{text} Write to {self.word()}@example.com"
        if chance < 0.03:
            return f"{text} Call +44 7700 9{self.rng.randrange(10**5):05d}"
        if chance < 0.1:
            place = self.rng.randrange(len(text) - 1)
            return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        return text.lower() if chance < 0.3 else text

    def word(self) -> str:
        return self.words[self.power(len(self.words))]

    def power(self, size: int) -> int:
        """A number below `size`, small ones far more often."""
        return int(size * self.rng.random() ** 4)

    def next(self) -> int:
        self.number += 1
        return self.number


def write_log(path: Path, count: int, seed: int = 0) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in Log(seed).lines(count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    write_log(told.path, told.count, told.seed)
