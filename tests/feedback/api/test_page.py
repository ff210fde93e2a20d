"""The curl commands of docs/ingest.md and docs/review.md work as they stand, and the tables say what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from incremental_llm.feedback.api.sessions import SECONDS
from incremental_llm.feedback.api.settings import ApiSettings
from incremental_llm.feedback.review import ReviewSettings

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "ingest.md").read_text(encoding="utf-8")
REVIEW = (DOCS / "review.md").read_text(encoding="utf-8")


def sent(api: Any, command: str, variables: dict[str, str]) -> Any:
    """The response to a curl command, its shell variables replaced."""
    for name, value in variables.items():
        command = command.replace(f"'${name}'", value).replace(f"${name}", value)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "curl"
    options = list(zip(words[2::2], words[3::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in options if option == "-H")
    (body,) = (value for option, value in options if option == "-d")
    return api.client.post(words[1].removeprefix("http://127.0.0.1:8712"), content=body, headers=headers)


def test_the_commands_work(api) -> None:
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S)
    first, thumb, batch = (block[block.index("curl") :] for block in blocks)
    variables = {"KEY": api.keys["shop"]}
    logged = sent(api, first, variables)
    assert (logged.status_code, set(logged.json())) == (202, {"id", "outcome", "reply_token"})
    variables |= {"ID": logged.json()["id"], "TOKEN": logged.json()["reply_token"]}
    assert sent(api, thumb, variables).json()["outcome"] == "added"
    results = sent(api, batch, variables).json()["results"]
    assert [one["outcome"] for one in results] == ["added", "refused"]
    assert "value: Input should be 1 or -1, found 5" in results[1]["reason"]
    assert "value: Input should be 1 or -1, found 5" in PAGE


def test_the_command_of_a_moderator_works(api) -> None:
    (flag,) = re.findall(r"^```console\n(.*?)^```$", REVIEW, re.M | re.S)
    name, token = api.log()
    answer = sent(api, flag, {"KEY": api.keys["shop"], "ID": name, "TOKEN": token})
    assert (answer.status_code, answer.json()["outcome"]) == (202, "added")


def test_the_review_page_names_the_defaults() -> None:
    settings = ReviewSettings()
    assert f"`review.lease_seconds` ({settings.lease_seconds / 60:g} minutes)" in REVIEW
    assert f"`review.seed_share` (1 in {1 / settings.seed_share:g})" in REVIEW
    assert f"`review.two_person` (`{', '.join(settings.two_person)}` by default)" in REVIEW
    assert f"SameSite=Strict, {SECONDS // 3600} hours" in REVIEW


def test_the_limits_are_the_defaults() -> None:
    limits = ApiSettings()
    table = PAGE.split("## Limits")[1].split("\n## ")[0]
    for shown in (
        f"{limits.max_body_bytes >> 20} MiB",
        f"{limits.max_depth} levels",
        f"within {limits.body_seconds:g} s",
        f"{limits.key_rate:g} events per second, {limits.key_burst:g} at once",
        f"{limits.user_rate:g} events per second, {limits.user_burst:g} at once",
        f"| {limits.max_in_flight} |",
        f"{limits.queue_requests} requests or {limits.queue_bytes >> 20} MiB",
        f"{limits.max_users:,} users",
    ):
        assert shown in table, shown
    assert f"up to {limits.max_batch} of any types" in PAGE
    assert f"kept for {limits.answer_days:g} days" in PAGE


def test_every_endpoint_stands_on_the_page(api) -> None:
    for path, methods in api.client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in (REVIEW if path.startswith("/v1/review") else PAGE)
