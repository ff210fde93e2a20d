"""Token buckets: so many events at once, then so many a second; in memory, of this process alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    seen: float


class Buckets:
    """A bucket for every name, full at first; at most `size` of them, the one not used for longest is forgotten.

    A request that wants more than a bucket holds passes when the bucket is full and leaves a debt: a large batch is
    slow and not impossible. Whoever is forgotten is as one that was never seen, so forgetting is worth something to an
    attacker only if `size` other names come in less time than a bucket takes to fill.

    Args:
        rate: tokens per second; 0 for no limit at all.
        burst: tokens in a full bucket.
        clock: seconds, never going back.
    """

    def __init__(self, rate: float, burst: float, size: int, clock: Callable[[], float]) -> None:
        self.rate, self.burst, self.size = rate, burst, size
        self._clock = clock
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, name: Hashable, tokens: float) -> float:
        """Seconds until `tokens` could be taken; 0 when they can be now. Takes nothing."""
        bucket = self._buckets.get(name)
        if not self.rate or bucket is None:
            return 0.0
        return max(0.0, (min(tokens, self.burst) - self._filled(bucket)) / self.rate)

    def take(self, name: Hashable, tokens: float) -> None:
        """Take `tokens`, whether they are there or not."""
        if not self.rate:
            return
        now = self._clock()
        bucket = self._buckets.get(name) or _Bucket(self.burst, now)
        self._buckets[name] = _Bucket(self._filled(bucket) - tokens, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self.size:
            self._buckets.popitem(last=False)

    def _filled(self, bucket: _Bucket) -> float:
        return min(self.burst, bucket.tokens + (self._clock() - bucket.seen) * self.rate)


def take_all(wanted: Iterable[tuple[Buckets, Hashable, float]]) -> float:
    """Take from every (buckets, name, tokens) and return 0, or from none and return the seconds to wait."""
    rows = list(wanted)
    seconds = max((buckets.wait(name, tokens) for buckets, name, tokens in rows), default=0.0)
    if not seconds:
        for buckets, name, tokens in rows:
            buckets.take(name, tokens)
    return seconds
