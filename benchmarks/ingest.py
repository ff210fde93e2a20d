"""The ingestion API under load, and killed again and again: what was acknowledged is stored once.

    python benchmarks/ingest.py                                 # 60 s at 500 requests/s, then 100 kills: five minutes
    python benchmarks/ingest.py --seconds 5 --kills 3           # a try; nothing is recorded

A process of its own sends interactions and thumbs over loopback with keep-alive, each at its time whether or not
earlier ones are answered; latency counts from that time, so a server that falls behind does not look fast. Then the
server gets SIGKILL at random moments and is started again, while every request that was not answered is repeated with
its Idempotency-Key until it is. At the end the store has to hold each acknowledged request once: `lost` counts those
that it lacks, `doubled` the copies beyond the first, acknowledged or not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from record import record

from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.events import Interaction, Thumb

SECONDS, RATE, KILLS = 60.0, 500.0, 100
CONNECTIONS = 64
USERS = 5000
SERVE = "from incremental_llm.cli import main; main()"
Acknowledged = dict[int, str]
"""The id that each request's event got, by the number that the event carries in its text."""


class Client:
    """One connection that is kept alive; a request is repeated, on new ones too, until it is answered with 202."""

    def __init__(self, port: int, key: str) -> None:
        self.port, self.key = port, key
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, path: str, body: dict[str, Any], name: str) -> dict[str, Any]:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n"
            f"Idempotency-Key: {name}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        while True:
            try:
                status, answer = await self._exchange(head.encode() + content)
            except (OSError, asyncio.IncompleteReadError):
                self.close()
                if os.getppid() == 1:
                    raise SystemExit("the benchmark has ended, and nobody will answer") from None
                await asyncio.sleep(0.02)
                continue
            if status == 202:
                return answer
            if status not in (429, 503):
                raise SystemExit(f"{path}: expected 202, found {status}: {answer}")
            await asyncio.sleep(0.1)

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None

    async def _exchange(self, request: bytes) -> tuple[int, dict[str, Any]]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(head.split(maxsplit=2)[1]), json.loads(await reader.readexactly(length))


async def generate(port: int, key: str, rate: float, first: int) -> dict[str, Any]:
    """Send requests numbered from `first` on until SIGTERM; what was acknowledged, and each one's milliseconds."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("sending", flush=True)
    numbers = itertools.count()
    start = time.perf_counter()
    acknowledged: Acknowledged = {}
    latencies: list[float] = []

    async def work() -> None:
        client = Client(port, key)
        logged: dict[str, Any] | None = None
        while not stop.is_set():
            number = next(numbers)
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            path, body = _request(first + number, logged)
            answer = await client.send(path, body, f"request-{first + number}")
            latencies.append((time.perf_counter() - due) * 1e3)
            acknowledged[first + number] = answer["id"]
            logged = answer if logged is None else None
        client.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return {"seconds": time.perf_counter() - start, "acknowledged": acknowledged, "latencies": latencies}


def _request(number: int, logged: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """An interaction, or a thumb on the one that this connection has logged."""
    user = f"u{number % USERS}"
    if logged is not None:
        judged = {"type": "thumb", "interaction": logged["id"], "user": user, "value": 1, "comment": str(number)}
        return "/v1/feedback", {**judged, "reply_tokens": [logged["reply_token"]]}
    messages = [{"role": "user", "content": f"How long can I return order {number}? " * 4}]
    said = {"conversation": f"c{number}", "user": user, "messages": messages, "model": "production@1"}
    return "/v1/interactions", {**said, "reply": "You can return it within 30 days. " * 8, "metadata": {"n": number}}


class Server:
    """`illm serve-ingest` on a database, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'feedback.db'}"
        self.log = folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        with FeedbackStore(self.url) as store:
            self.key = KeyTable(store).create("benchmark", ["ingest"])[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["serve-ingest", "--port", str(self.port), "--key-rate", "0", "--set", f"database={self.url}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-c", SERVE, *options], stdout=log, stderr=log)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server did not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.02)

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()


class Load:
    """The load generator, in a process of its own."""

    def __init__(self, server: Server, rate: float, first: int) -> None:
        told = json.dumps({"port": server.port, "key": server.key, "rate": rate, "first": first})
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--generate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        self.process.stdin.write(told.encode())
        self.process.stdin.close()
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it has begun

    def end(self) -> dict[str, Any]:
        """Let it finish what it has begun; what `generate` returned."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        with self.process.stdout as stdout:
            text = stdout.read()
        if self.process.wait():
            raise SystemExit("the load generator failed; nothing was measured")
        found: dict[str, Any] = json.loads(text)
        found["acknowledged"] = {int(number): name for number, name in found["acknowledged"].items()}
        return found


def kill_again_and_again(
    server: Server, rate: float, kills: int, *, by: signal.Signals = signal.SIGKILL, seed: int = 0
) -> Acknowledged:
    """Load a server that runs, end it at random moments and start it again; all that was acknowledged."""
    moments = random.Random(seed)
    load = Load(server, rate, first=1_000_000_000)
    for _ in range(kills):
        time.sleep(moments.uniform(0.2, 1.2))
        server.end(by)
        server.start()
    found: Acknowledged = load.end()["acknowledged"]
    return found


def lost_and_doubled(server: Server, acknowledged: Acknowledged) -> tuple[int, int]:
    """How many acknowledged requests the log does not hold under their id, and how many copies it holds too many."""
    held: Counter[int] = Counter()
    ids: Acknowledged = {}
    with FeedbackStore(server.url) as store:
        for one in store.read():
            assert isinstance(one.event, Interaction | Thumb)
            number = int(one.event.metadata["n"] if isinstance(one.event, Interaction) else one.event.comment or "")
            held[number] += 1
            ids[number] = one.event.id
    lost = sum(ids.get(number) != name for number, name in acknowledged.items())
    return lost, sum(held.values()) - len(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long the load lasts")
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        json.dump(asyncio.run(generate(**json.load(sys.stdin))), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(Path(scratch))
        server.start()
        load = Load(server, options.rate, first=0)
        time.sleep(options.seconds)
        steady = load.end()
        latencies = sorted(steady["latencies"])
        figures = {
            "requests_per_s": len(latencies) / steady["seconds"],
            "p50_ms": statistics.median(latencies),
            "p99_ms": latencies[int(len(latencies) * 0.99)],
        }
        print(f"{len(latencies)} requests: {json.dumps(figures)}", flush=True)
        acknowledged = kill_again_and_again(server, options.rate, options.kills)
        server.end(signal.SIGTERM)
        lost, doubled = lost_and_doubled(server, steady["acknowledged"] | acknowledged)
    figures |= {"kills": options.kills, "acknowledged": len(acknowledged), "lost": lost, "doubled": doubled}
    print(f"{options.kills} kills: {len(acknowledged)} acknowledged, {lost} lost, {doubled} doubled")
    if (options.seconds, options.rate, options.kills) == (SECONDS, RATE, KILLS):
        record("ingest", figures, "python benchmarks/ingest.py")
    if lost or doubled:
        raise SystemExit(f"expected each acknowledged request once, found {lost} lost and {doubled} doubled")


if __name__ == "__main__":
    main()
