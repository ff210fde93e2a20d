"""Who and what the feedback does not represent: of the replies that were served, which were judged, and which taught.

Served replies are grouped by who asked, by what answered, by when, and by what was asked. For each group the report has
the share that anybody judged and its ratio to the share elsewhere, with an interval. A group far below 1 is one whose
wishes a model that learns from this log will not hear of.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from incremental_llm.chat import last_user_text
from incremental_llm.feedback.events import Interaction, UnknownEvent, references
from incremental_llm.feedback.serving import serving_of
from incremental_llm.feedback.store import StoredEvent

_Z = 1.959963984540054  # two-sided 95 %
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LENGTHS, _LENGTH_NAMES = (50, 200, 1000), ("up to 50", "51 to 200", "201 to 1000", "over 1000")
_TURNS, _TURN_NAMES = (1, 2, 5), ("first", "second", "third to fifth", "sixth or later")
_FEWEST, _QUIET = 30, 0.5  # a night's note is about groups of so many replies that are surely below this ratio


class Group(BaseModel):
    """One group of served replies: how many there are, were judged, and stand behind an example.

    `ratio` is the share judged here over that of all other replies, with its interval of 95 %, `low` to `high`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: str
    value: str
    served: int
    judged: int
    used: int
    ratio: float
    low: float
    high: float


class Representation(BaseModel):
    """The groups, those that are surely least represented first: in order of the upper end of the ratio's interval.

    `silent_users` are those of the `users` who were served something and gave no feedback; `loudest_share` is the part
    of users' feedback that comes from the tenth of its givers who give most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served: int
    judged: int
    used: int
    users: int
    silent_users: int
    loudest_share: float
    groups: tuple[Group, ...]

    @property
    def sentence(self) -> str:
        """The group that is most surely missing, in words; empty where none of a fair size is."""
        quiet = next((one for one in self.groups if one.served >= _FEWEST and one.high < _QUIET), None)
        if quiet is None:
            return ""
        return (
            f"feedback hardly speaks for {quiet.dimension} {quiet.value!r}: {quiet.judged} of {quiet.served} replies "
            f"judged, {quiet.ratio:.2f} ({quiet.low:.2f} to {quiet.high:.2f}) times as often as elsewhere"
        )


@dataclass(frozen=True, slots=True)
class _Served:
    user: str
    groups: tuple[tuple[str, str], ...]


def represent(events: Iterable[StoredEvent], used: Collection[str] = ()) -> Representation:
    """The report on a log or a part of it; `used` are the ids of events that examples were made from.

    A reply counts as judged where any feedback names it. Feedback on replies that are not among `events` counts for
    nothing.
    """
    served: dict[str, _Served] = {}
    named: set[str] = set()
    given: Counter[str] = Counter()
    for event in (stored.event for stored in events):
        if isinstance(event, Interaction):
            served[event.id] = _Served(event.user, tuple(_groups(event)))
        elif not isinstance(event, UnknownEvent) and (about := references(event)):
            named.update(about)
            if speaker := getattr(event, "user", None):
                given[speaker] += 1
    judged, taught = named & served.keys(), set(used) & served.keys()
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    activity = _activity(Counter(one.user for one in served.values()))
    for name, one in served.items():
        for group in (*one.groups, ("user activity", activity[one.user])):
            members[group].append(name)
    groups = [
        _group(dimension, value, names, judged, taught, len(served))
        for (dimension, value), names in members.items()
        if len(names) < len(served)  # nothing to compare it with
    ]
    loudest = sorted(given.values(), reverse=True)[: math.ceil(len(given) / 10)]
    return Representation(
        served=len(served),
        judged=len(judged),
        used=len(taught),
        users=len(activity),
        silent_users=len(activity.keys() - given.keys()),
        loudest_share=sum(loudest) / given.total() if given else 0.0,
        groups=tuple(sorted(groups, key=lambda one: (one.high, one.ratio, one.dimension, one.value))),
    )


def _groups(event: Interaction) -> Iterator[tuple[str, str]]:
    serving = serving_of(event.metadata)
    yield "policy", event.model if serving is None else serving.policy
    if serving is not None and serving.explored is not None:
        yield "explored", "yes" if serving.explored else "no"
    yield "hour (UTC)", f"{event.time.hour // 3 * 3:02} to {event.time.hour // 3 * 3 + 2:02}"
    yield "day", _DAYS[event.time.weekday()]
    yield "question's length", _LENGTH_NAMES[bisect_left(_LENGTHS, len(last_user_text(event.messages)))]
    turns = sum(message.role == "user" for message in event.messages)
    yield "turn", _TURN_NAMES[bisect_left(_TURNS, turns)]
    topic = event.metadata.get("topic")
    if isinstance(topic, str) and topic:
        yield "topic", topic


def _activity(served: Counter[str]) -> dict[str, str]:
    """Each user's tenth by how many replies they got, 1 for the fewest; users with as many share the higher one."""
    counts = sorted(served.values())
    tenth = {count: math.ceil(10 * bisect_right(counts, count) / len(counts)) for count in set(counts)}
    return {user: f"tenth {tenth[count]:>2} of users" for user, count in served.items()}


def _group(
    dimension: str,
    value: str,
    names: Collection[str],
    judged: Collection[str],
    taught: Collection[str],
    everything: int,
) -> Group:
    here = sum(name in judged for name in names)
    ratio, low, high = risk_ratio(here, len(names), len(judged) - here, everything - len(names))
    used = sum(name in taught for name in names)
    return Group(
        dimension=dimension,
        value=value,
        served=len(names),
        judged=here,
        used=used,
        ratio=ratio,
        low=low,
        high=high,
    )


def risk_ratio(a: int, n: int, c: int, m: int) -> tuple[float, float, float]:
    """(a/n) / (c/m) with its interval of 95 %, by the logarithm, a half added to every count (Pettigrew et al. 1986).

    The half keeps it finite where nobody spoke: 0 of 50 against 40 of 50 gives 0.01, 0.001 to 0.20.
    """
    here, there = (a + 0.5) / (n + 0.5), (c + 0.5) / (m + 0.5)
    error = math.sqrt(1 / (a + 0.5) - 1 / (n + 0.5) + 1 / (c + 0.5) - 1 / (m + 0.5))
    ratio = here / there
    return ratio, ratio * math.exp(-_Z * error), ratio * math.exp(_Z * error)
