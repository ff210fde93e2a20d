"""What the compiler sees in people's words: rephrased questions, personal data and secrets.

    python benchmarks/signals.py --data FOLDER     # a minute
    python benchmarks/signals.py --data FOLDER --embeddings MODEL --no-record    # with rephrase_embeddings

FOLDER holds, one folder each, public data: `alexa_cqr_rephrase` and `trec_cast` (turns with people's rewrites of them),
`gsm8k`, `standard_cl`, `oasst_en100` and `hh_rlhf_harmless` (texts of people).

Rephrases: a turn and its rewrite, where their words differ, are a question asked again. Not so, and hard to tell: a
turn and the next one of its conversation, and a turn and that of its conversation which is nearest to it by its words.
Precision is that of all pairs together. (Nearest turns of other conversations are the same question too often: "What
hospital is nearby?" and "What is the nearby hospital?")

Redaction: positives are made by Faker in twelve locales, put into sentences; one counts as found if all of its letters
and digits are covered. False positives are counted over lines of real text drawn by chance: what was found there is
printed, to be looked at, and all of it is counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from record import record

from incremental_llm.dataset import CompileSettings
from incremental_llm.dataset.dedup import normalised
from incremental_llm.dataset.rephrases import is_rephrased
from incremental_llm.evaluation.intervals import wilson
from incremental_llm.feedback.redact import find

Pairs = list[tuple[str, str]]

LOCALES = (
    *("en_US", "en_GB", "en_AU", "en_IN", "de_DE", "fr_FR"),
    *("es_ES", "it_IT", "nl_NL", "pl_PL", "sv_SE", "pt_BR"),
)
SENTENCES = {
    "email": ("Please write to {} about it.", "my mail is {}", "{} is where I get invoices"),
    "phone": ("My phone number is {}.", "call me at {} please", "You can reach me: {}", "tel. {}"),
    "card": ("I paid with card {} yesterday", "{} is my credit card"),
    "iban": ("Refund to IBAN {} please", "bank account: {}."),
    "ip": ("I log in from {} and it fails", "server {} does not answer"),
    "handle": ("dm me on twitter, {}", "I am {} on instagram"),
    "secret": ("my password is {}", "api_key={}", "Authorization: Bearer {}"),
}
CLEAN = ("gsm8k", "standard_cl", "oasst_en100", "hh_rlhf_harmless")
SHORTEST = 25  # characters of a line


def lines(path: Path) -> Iterator[Any]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield json.loads(line)


def alexa(folder: Path) -> tuple[Pairs, Pairs]:
    """(asked again, not asked again) of both parts."""
    again: Pairs = []
    other: Pairs = []
    for part in ("dev", "test"):
        for dialogue in (row["dialogue"] for row in lines(folder / f"{part}.jsonl")):
            users = [turn["data"]["utterance"].strip() for turn in dialogue if turn["turn"] == "driver"]
            other += [*itertools.pairwise(users), *nearest(users)]
            for told in (turn["reformulation"] for turn in dialogue if turn.get("reformulation")):
                if told.get("reformulated_utt"):
                    asked = dialogue[told["base_utt_idx"]]["data"]["utterance"].strip()
                    again.append((asked, told["reformulated_utt"].strip()))
    return again, other


def cast(folder: Path) -> tuple[Pairs, Pairs]:
    """(asked again, not asked again); turns without a rewrite are left out."""
    topics: dict[Any, list[tuple[str, str]]] = {}
    for row in lines(folder / "turns.jsonl"):
        if "raw" in row:
            topics.setdefault((row["year"], row["topic"]), []).append((row["raw"], row["rewrite"]))
    again = [turn for turns in topics.values() for turn in turns]
    other: Pairs = []
    for turns in topics.values():
        for form in zip(*turns, strict=True):
            other += itertools.pairwise(form)
        other += nearest([rewrite for _, rewrite in turns])
    return again, other


def nearest(texts: Sequence[str]) -> Pairs:
    """Each text with the one nearest to it by its words."""
    from rapidfuzz import fuzz, process

    distinct = list({normalised(text): text for text in texts}.values())
    found = []
    for place, text in enumerate(distinct):
        rest = [other for number, other in enumerate(distinct) if number != place]
        if best := process.extractOne(text, rest, scorer=fuzz.token_set_ratio, processor=normalised):
            found.append((text, best[0]))
    return found


def rephrases(folder: Path, embeddings: str | None) -> dict[str, float]:
    settings = CompileSettings(rephrase_embeddings=embeddings)
    figures: dict[str, float] = {}
    counts = {"found": 0, "again": 0, "false": 0}
    for name, (again, other) in {
        "alexa": alexa(folder / "alexa_cqr_rephrase"),
        "cast": cast(folder / "trec_cast"),
    }.items():
        again = [pair for pair in again if normalised(pair[0]) != normalised(pair[1])]
        other = [pair for pair in dict.fromkeys(other) if normalised(pair[0]) != normalised(pair[1])]
        found = sum(is_rephrased(*pair, settings) for pair in again)
        false = [pair for pair in other if is_rephrased(*pair, settings)]
        figures |= rates(f"rephrase_{name}", found, len(again), len(false)) | {f"rephrase_{name}_others": len(other)}
        for pair in false[:6]:
            print(f"{name}, taken for the same question: {pair}")
        for key, number in (("found", found), ("again", len(again)), ("false", len(false))):
            counts[key] += number
    return figures | rates("rephrase", counts["found"], counts["again"], counts["false"])


def rates(name: str, found: int, positives: int, false: int) -> dict[str, float]:
    """Precision and recall with their Wilson intervals of 95 %."""
    figures = {}
    for kind, whole in (("precision", found + false), ("recall", positives)):
        low, high = wilson(found, whole)
        figures |= {f"{name}_{kind}": found / whole, f"{name}_{kind}_low": low, f"{name}_{kind}_high": high}
    return figures


def personal(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(sentence, what in it is personal), every kind in turn."""
    from faker import Faker

    rng = random.Random(seed)
    Faker.seed(seed)
    makers = [Faker(locale) for locale in LOCALES]
    for number in range(count):
        kind, fake = list(SENTENCES)[number % len(SENTENCES)], rng.choice(makers)
        made = {
            "email": fake.email,
            "phone": fake.phone_number,
            "card": fake.credit_card_number,
            "iban": fake.iban,
            "ip": rng.choice([fake.ipv4_public, fake.ipv6]),
            "handle": lambda fake=fake: f"@{fake.user_name()}",
            "secret": lambda fake=fake: fake.password(length=rng.randint(12, 24), special_chars=False),
        }[kind]()
        yield rng.choice(SENTENCES[kind]).format(made), made


def covered(text: str, part: str) -> bool:
    places = {place for span in find(text) for place in range(span.start, span.end)}
    start = text.index(part)
    return all(start + n in places for n, character in enumerate(part) if character.isalnum())


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)
    elif isinstance(value, str):
        yield from (line for line in value.split("\n") if len(line) >= SHORTEST and " " in line)


def real_lines(folders: Iterable[Path], count: int, seed: int) -> list[str]:
    found = {
        text
        for folder in folders
        for path in sorted(folder.glob("*.jsonl"))
        for row in lines(path)
        for text in texts(row)
    }
    return random.Random(seed).sample(sorted(found), count)


def redaction(folder: Path, positives: int, clean: int, seed: int) -> dict[str, float]:
    missed = [text for text, part in personal(positives, seed) if not covered(text, part)]
    drawn = real_lines([folder / name for name in CLEAN], clean, seed)
    false = [(text, [text[span.start : span.end] for span in find(text)]) for text in drawn if find(text)]
    for text in missed[:12]:
        print(f"missed: {text}")
    for text, finds in false:
        print(f"found {finds} in: {text[:120]}")
    return {
        "redaction_recall": 1 - len(missed) / positives,
        "redaction_recall_low": wilson(positives - len(missed), positives)[0],
        "redaction_positives": positives,
        "redaction_false_positives": len(false) / clean,
        "redaction_false_positives_high": wilson(len(false), clean)[1],
        "redaction_clean_lines": clean,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--positives", type=int, default=500)
    parser.add_argument("--clean", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embeddings", help="a folder with a model2vec model")
    parser.add_argument("--no-record", action="store_true")
    told = parser.parse_args()
    figures = rephrases(told.data, told.embeddings) | redaction(told.data, told.positives, told.clean, told.seed)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if not told.no_record:
        record("signals", figures, "python benchmarks/signals.py --data FOLDER")


if __name__ == "__main__":
    main()
