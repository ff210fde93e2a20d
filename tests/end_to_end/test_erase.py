"""A person is erased from a workspace of two nights: no byte of what he said is left, and all promises still hold."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from incremental_llm.cli import app
from incremental_llm.cli import erase as cli_erase
from incremental_llm.cli import registry as cli_registry
from incremental_llm.config import RunConfig
from incremental_llm.erase import erase_person
from incremental_llm.errors import InputError, IntegrityError, PendingErasureError, PreconditionFailed
from incremental_llm.feedback import parse_event, tables
from incremental_llm.feedback.api.groups import Entry, IdempotencyKey, Request, store_group
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.replay import ReplayBuffer
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]

CANARIES = {
    "name": "zilpzalp-ünï",  # of the user, in every form in which text is written
    "prompt": 'kanari-prompt-7f3a "quoted" ß',
    "reply": "kanari-reply-91bc",
    "comment": "kanari-comment-2d4e 'so' <b>",
    "correction": "kanari-correction-55aa",
    "id": "kanari-id-c0ffee",
}
PIECES = ("zilpzalp", "kanari")
ASKED, UNJUDGED = 5, 32  # a night: questions of his that were judged, and those that were not
EVENTS = 3 * (4 * ASKED + UNJUDGED) + 1


def ways(text: str) -> set[bytes]:
    """Every way in which a program may have written a text."""
    return {
        text.encode(),
        json.dumps(text)[1:-1].encode(),
        json.dumps(text, ensure_ascii=False)[1:-1].encode(),
        text.encode("utf-16-le"),
        text.encode("ascii", "backslashreplace"),
    }


def found_in(folder: Path, texts: tuple[str, ...] = PIECES) -> list[str]:
    """Files below a folder whose name or bytes hold one of these, in either case."""
    needles = {form.lower() for text in texts for form in ways(text)}
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if any(form in str(path).encode() for form in needles if len(form) > 6)
        or (path.is_file() and any(form in path.read_bytes().lower() for form in needles))
    ]


def of_the_person(number: int) -> list[dict[str, Any]]:
    """What the person did that night, and what others did about it."""
    clock, name = f"2026-11-{number:02d}T15", CANARIES["name"]
    events: list[dict[str, Any]] = []
    for index in range(ASKED):
        asked = {"role": "user", "content": f"{CANARIES['prompt']} {number} {index}"}
        served = {
            "type": "interaction",
            "id": f"{CANARIES['id']}-{number}-i{index}",
            "time": f"{clock}:{index:02d}:00Z",
        }
        served |= {"conversation": f"{CANARIES['id']}-c", "user": name, "messages": [asked], "model": "production"}
        served |= {"reply": f"{CANARIES['reply']} {index}", "metadata": {"topic": CANARIES["id"]}}
        about = {"time": f"{clock}:{index:02d}:30Z", "interaction": served["id"]}
        thumb = {"type": "thumb", "id": f"{CANARIES['id']}-{number}-t{index}", "user": name, "value": -1}
        fixed = {"type": "correction", "id": f"n{number}-fix{index}", "reviewer": "r0"}
        events += [served, about | thumb | {"comment": CANARIES["comment"]}]
        events += [about | fixed | {"content": f"{CANARIES['correction']} the shop answers"}]
        events += [about | {"type": "thumb", "id": f"n{number}-other{index}", "user": "u1", "value": -1}]
    served = events[0]
    return events + [served | {"id": f"{CANARIES['id']}-{number}-quiet{n}"} for n in range(UNJUDGED)]


def of_others(number: int) -> list[dict[str, Any]]:
    """So much that was served to others, and judged, that his phrases have a lift and his topic hardly speaks."""
    events: list[dict[str, Any]] = []
    for index in range(110):
        user, clock = f"u{index % 40}", f"2026-11-{number:02d}T15:00:{index % 60:02d}Z"
        asked = {"role": "user", "content": f"What about {number} and {index}?"}
        served = {"type": "interaction", "id": f"n{number}-o{index}", "time": clock, "conversation": f"o{index}"}
        served |= {"user": user, "messages": [asked], "reply": f"Nothing about {index}", "model": "production"}
        left = {"type": "abandon", "id": f"n{number}-a{index}", "time": clock, "interaction": served["id"]}
        events += [served, left | {"user": user}]
    return events


def lines_that_are_refused(folder: Path) -> Path:
    """A log whose lines become no event; its reasons quote them."""
    lines = [
        {"type": "thumb", "id": "x1", "time": "2026-11-02T10:00:00Z", "interaction": "n1-i0", "user": "u1"}
        | {"value": CANARIES["comment"]},
        {"type": "thumb", "id": "x2", "time": CANARIES["prompt"], "interaction": "n1-i0", "user": "u1", "value": 1},
        {"type": "thumb", "id": "x3", "time": "2026-11-02T10:00:00Z", "interaction": "n1-i0", "user": "u1", "value": 1}
        | {CANARIES["id"]: True},
        {"type": "interaction", "id": f"{CANARIES['id']}-1-i0", "user": CANARIES["name"]},
    ]
    return write_log(folder / "refused.jsonl", lines)


def park(workspace: Workspace) -> None:
    """Messages of a topic that became no events: one names him, one holds his words, one is somebody else's."""
    values = [
        json.dumps({"user": CANARIES["name"], "value": "?"}).encode(),
        f"cut off: {CANARIES['prompt']} 1 0 and".encode(),
        b'{"user": "u1"}',
    ]
    rows = [
        {"topic": "t", "partition": 0, "offset_number": n, "digest": f"{n}" * 64, "time_ms": None, "size": len(value)}
        | {"reason": f"expected JSON, found {value[:40]!r}", "message_key": None, "value": value}
        for n, value in enumerate(values)
    ]
    rows[0]["message_key"] = CANARIES["name"].encode()
    with workspace.store.writing() as connection:
        connection.execute(sa.insert(tables.parked_messages), rows)


def post(workspace: Workspace) -> None:
    """A request of the API whose idempotency key remembers what became of it, and a key of his own."""
    KeyTable(workspace.store).create("app", ["review"], reviewer=CANARIES["name"])
    again = parse_event(of_the_person(1)[0])
    other = again.model_copy(update={"reply": CANARIES["reply"]})
    store_group(workspace.store, [Request((Entry(other),), IdempotencyKey("a" * 64, "b" * 64))], 3600.0)


class Killed(BaseException):
    """What no handler catches, as a kill is."""


def killed_at_a_checkpoint(**arguments: Any) -> Any:
    """Training that ends like a killed process, once it has written something to go on from."""
    from incremental_llm.training.increment import train_increment

    def progress(what: str, done: int, total: int, loss: float | None) -> None:
        if list(arguments["out"].glob("*/checkpoint-*/manifest.json")):
            raise Killed

    return train_increment(**arguments | {"progress": progress})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workspace of `config` lies once the first test has made it."""
    return tmp_path_factory.mktemp("kept") / "illm"


@pytest.fixture
def config(tmp_path: Path, tiny_config: Config, kept: Path) -> RunConfig:
    """Two nights that read him, a third night's feedback that waits, and all that lies around in a workspace."""
    config = tiny_config()
    gate = config.gate.model_copy(update={"max_correction_losses": 0.9, "margin": 0.9})
    replay = config.replay.model_copy(update={"ratio": 0.5, "answers": "on_policy"})
    config = config.model_copy(update={"gate": gate, "replay": replay})
    if not kept.exists():
        logs = tmp_path / "logs"
        logs.mkdir()
        with Workspace.create(config) as workspace:
            for number, said in ((1, (GOOD, BAD)), (2, ("we open at nine", "we close at two"))):
                workspace.import_feedback(
                    write_log(
                        logs / f"n{number}.jsonl", [*night(number, *said), *of_the_person(number), *of_others(number)]
                    )
                )
                workspace.import_feedback(lines_that_are_refused(logs))
                outcome = workspace.run()
                assert outcome.version == number, outcome.reasons
            late = [{"type": "thumb", "id": f"{CANARIES['id']}-late", "time": "2026-11-03T10:00:00Z", "value": 1}]
            late[0] |= {"interaction": "never came", "user": CANARIES["name"]}
            workspace.import_feedback(
                write_log(logs / "n3.jsonl", [*of_the_person(3), *night(3, "it rains here", "the sun shines"), *late])
            )
            park(workspace)
            post(workspace)
            with pytest.raises(Killed):
                workspace.run(train=killed_at_a_checkpoint)
            assert list(config.workspace.glob("runs/v3-*/training/*/checkpoint-*"))
        (config.workspace / "illm-crash-1.txt").write_text(f"ValueError: {CANARIES['comment']}", encoding="utf-8")
        shutil.copytree(config.workspace, kept)
    else:
        shutil.copytree(kept, config.workspace)
    return config


@pytest.fixture
def workspace(config: RunConfig) -> Iterator[Workspace]:
    with Workspace.open(config) as opened:
        yield opened


def test_no_byte_of_him_is_left_and_every_promise_holds(workspace: Workspace) -> None:
    folder, registry, store = workspace.config.workspace, workspace.registry, workspace.store
    assert len(found_in(folder)) > 15  # in every kind of place
    for path in folder.glob("runs/*/night.json"):  # phrases of his corrections, and his topic
        said = json.loads(path.read_text(encoding="utf-8"))["night"]["mixture"]
        assert "kanari correction 55 aa" in said and f"topic '{CANARIES['id']}'" in said, said
    before, head, counts = registry.list(), store.head(), store.counts()

    plan = workspace.plan_erasure(CANARIES["name"])
    assert plan.increments == (1, 2) and plan.versions == (1, 2) and plan.rebuild == (1, 2)
    assert plan.serving == ("production",)
    assert len(plan.found.events) == EVENTS
    assert len(found_in(folder)) > 15 and registry.erasures() == ()  # a plan changes nothing

    report = workspace.erase(CANARIES["name"])
    assert found_in(folder) == [] and report.left == ()
    assert registry.verify() == []
    assert registry.list() == before  # no version has changed: the chain is over digests
    assert set(registry.erased_parts()) == {1, 2}
    assert all("cannot be restored" in said and "replay" in said for said in registry.erased_parts().values())

    erased = len(plan.found.events)
    assert store.head() == head + 1  # the one that waited has a place now
    assert store.counts()["erased"] == erased and sum(store.counts().values()) == sum(counts.values())
    assert store.waiting_count() == 0
    assert [stored.seq for stored in store.read()] == list(range(1, head + 2))
    assert report.record.events == erased and report.record.versions == (1, 2)
    with pytest.raises(InputError, match=f"found none since erasure {report.record.id}"):
        workspace.plan_erasure(CANARIES["name"])
    page = workspace.report(folder.parent / "page.html").read_text(encoding="utf-8")
    assert "night 2" in page and not any(piece in page for piece in PIECES)
    for back in (lambda: workspace.rollback(1, "back"), lambda: workspace.promote(1)):
        with pytest.raises(PreconditionFailed, match="found version 1, which erasure"):
            back()
    assert registry.list() == before


def test_production_goes_on_without_him(workspace: Workspace) -> None:
    workspace.erase(CANARIES["name"])
    registry, store = workspace.registry, workspace.store
    head = registry.head()
    buffer = ReplayBuffer.read(registry.object_path(str(head.replay)) / "buffer.json")
    assert len(buffer.items) > 10
    assert {c["interaction_id"][0] for c in registry.get_json(str(head.corrections))} == {"n"}
    plan = "\n".join(workspace.plan().lines)
    assert "continuing" not in plan  # the killed night had read him: it begins anew
    outcome = workspace.run()
    assert outcome.decision == "promoted", outcome.reasons
    assert registry.verify() == []
    assert {s.outcome for s in registry.sightings("n3-k0")} == {"used"}
    assert found_in(workspace.config.workspace) == []
    assert store.read(types=["erased"]) is not None


def test_what_was_erased_does_not_come_back_and_new_feedback_does(workspace: Workspace, tmp_path: Path) -> None:
    workspace.erase(CANARIES["name"])
    store = workspace.store
    before = store.counts()
    again = workspace.import_feedback(write_log(tmp_path / "again.jsonl", [*of_the_person(1), *of_the_person(2)]))
    assert (again.added, len(again.refused)) == (0, 2 * (4 * ASKED + UNJUDGED))
    assert {row.reason.split(":")[0] for row in again.refused} == {
        "it was erased with the person it was from, or is about what was"
    }
    assert found_in(workspace.config.workspace) == []
    about = {"type": "thumb", "id": "new", "time": "2026-11-03T10:00:00Z", "user": "u1", "value": 1}
    about |= {"interaction": f"{CANARIES['id']}-1-i0"}
    assert workspace.import_feedback(write_log(tmp_path / "about.jsonl", [about])).added == 0
    assert store.counts() == before
    anew = {**of_the_person(4)[0], "id": "back"}
    assert workspace.import_feedback(write_log(tmp_path / "anew.jsonl", [anew])).added == 1
    assert [place.id for place in store.by_person(CANARIES["name"])] == ["back"]
    second = workspace.erase(CANARIES["name"])
    assert second.record.events == 1 and second.record.versions == (1, 2) and found_in(workspace.config.workspace) == []
    assert len(workspace.registry.erasures()) == 2


def test_whoever_is_only_in_a_message_that_is_no_event_is_erased_too(workspace: Workspace) -> None:
    row = {"topic": "t", "partition": 0, "offset_number": 9, "digest": "9" * 64, "time_ms": None, "size": 1}
    row |= {"reason": "expected JSON", "message_key": None, "value": b'{"user": "u-9", "said"'}
    with workspace.store.writing() as connection:
        connection.execute(sa.insert(tables.parked_messages), [row])
    with pytest.raises(InputError, match=r"expected text of 6 characters or more .* found --also 'a'"):
        workspace.erase("u-9", ["a"])
    with pytest.raises(InputError, match="found none called 'u-99'"):
        workspace.plan_erasure("u-99")
    assert workspace.plan_erasure("u-9").rows["feedback_parked_messages"] == 1
    report = workspace.erase("u-9")
    assert (report.record.status, report.record.events, report.rebuild) == ("erased", 0, ())
    assert workspace.registry.verify() == []
    with pytest.raises(InputError, match="found none since erasure"):
        workspace.erase("u-9")


def test_the_command_shows_a_plan_first(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cli_erase, cli_registry):
        monkeypatch.setattr(module, "opened", lambda *given: contextlib.nullcontext(workspace))
    command = ["feedback", "erase", "--user", CANARIES["name"]]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    for said in (
        f"{EVENTS} events",
        "in the weights of versions: 1, 2",
        "to make again: 2 increments",
        "replay buffer",
    ):
        assert said in shown.output
    assert f"illm feedback erase --user '{CANARIES['name']}' --yes" in shown.output
    plan = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert plan["rows"]["feedback_events"] == EVENTS and plan["unsure"] == []
    assert plan["rebuild"] == [1, 2] and plan["serving"] == ["production"] and plan["rebuild_seconds"] > 0
    assert {Path(one["path"]).name for one in plan["outside"]} == {"n1.jsonl", "n2.jsonl", "n3.jsonl", "refused.jsonl"}
    assert workspace.registry.erasures() == ()
    done = CliRunner().invoke(app, [*command, "--yes"])
    assert done.exit_code == 0, done.output
    assert "illm rebuild" in done.output and f"{EVENTS} events have left tombstones" in done.output
    verified = CliRunner().invoke(app, ["registry", "verify"])
    assert verified.exit_code == 0 and "version 2: erased parts (replay, " in verified.output
    assert CliRunner().invoke(app, [*command, "--yes"]).exit_code == 2


def refuses_to_read(workspace: Workspace) -> None:
    """What reads or moves production says how the erasure goes on, and changes nothing."""
    out = workspace.config.workspace.parent / "out"
    for call in (
        workspace.run,
        workspace.plan,
        workspace.compile_preview,
        workspace.representation,
        lambda: workspace.online(out),
        lambda: workspace.export("production", out),
        lambda: workspace.report(out),
        lambda: workspace.promote(1),
    ):
        with pytest.raises(PendingErasureError, match="illm feedback erase --user NAME --yes"):
            call()
    assert not out.exists()


def killed_and_made_good(config: RunConfig, kept: Path, step: str) -> None:
    """Erase from a copy of the workspace, die at a step, and give the same call again."""
    shutil.rmtree(config.workspace)
    shutil.copytree(kept, config.workspace)

    def kill(name: str) -> None:
        if name == step:
            raise Killed

    with Workspace.open(config) as workspace, pytest.raises(Killed):
        erase_person(workspace.registry, workspace.store, config, CANARIES["name"], failpoint=kill)
    with Workspace.open(config) as workspace:
        (record,) = workspace.registry.erasures()
        problems = workspace.registry.verify()
        assert record.status == ("erased" if step == "record erased" else "pending"), step
        assert bool(problems) == (record.status == "pending"), (step, problems)
        assert all("not ended" in str(problem) for problem in problems), (step, problems)
        if record.status == "pending":
            refuses_to_read(workspace)
            workspace.erase(CANARIES["name"])
        (done,) = workspace.registry.erasures()
        assert (done.id, done.status, done.versions, done.events) == (record.id, "erased", (1, 2), EVENTS), step
        assert found_in(config.workspace) == [], step
        assert workspace.registry.verify() == [], step
        assert workspace.store.counts()["erased"] == EVENTS, step


@pytest.mark.parametrize("step", ["record pending", "object dataset", "registry rows", "store rows"])
def test_a_kill_is_made_good_by_the_same_call(config: RunConfig, kept: Path, step: str) -> None:
    killed_and_made_good(config, kept, step)


@pytest.mark.slow
def test_a_kill_at_any_step_is_made_good_by_the_same_call(config: RunConfig, kept: Path) -> None:
    steps: list[str] = []
    with Workspace.open(config) as workspace:
        erase_person(workspace.registry, workspace.store, config, CANARIES["name"], failpoint=steps.append)
    assert len(set(steps)) > 25, steps
    for step in dict.fromkeys(steps):
        killed_and_made_good(config, kept, step)


def test_the_nights_that_read_him_are_made_again_without_him(workspace: Workspace) -> None:
    registry, folder = workspace.registry, workspace.config.workspace
    with pytest.raises(InputError, match="expected an erasure that waits for it"):
        workspace.rebuild()
    old = registry.head()
    workspace.erase(CANARIES["name"])
    report = workspace.rebuild()
    assert report.decision is not None and report.decision.passed, (report.left_out, report.decision)
    assert (report.made, report.left_out, report.version) == ({1: 3, 2: 4}, {}, 4)
    head = registry.head()
    assert (head.version, head.cursor, len(head.stack.adapters)) == (4, old.cursor, 2)
    assert set(old.stack.adapters).isdisjoint(head.stack.adapters)
    assert set(report.purged) == set(old.stack.adapters) and not any(registry.objects.glob(f"{report.purged[0]}/*"))
    name = {sighting.adapter for sighting in registry.adapters_that_saw(registry.erasures()[0].person)}
    assert name and name.isdisjoint(head.stack.adapters)  # nothing in production's stack has seen him
    assert {(s.version, s.outcome) for s in registry.sightings("n1-k0")} >= {(1, "used"), (3, "used")}
    assert registry.erasures()[0].status == "rebuilt" and registry.erasures()[0].rebuilt == 4
    assert registry.verify() == [] and found_in(folder) == []
    for version in (1, 2):
        with pytest.raises(PreconditionFailed, match="which erasure"):
            workspace.rollback(version, "back")
    with pytest.raises(IntegrityError, match="they were erased with a person"):
        workspace.load(2)
    with pytest.raises(InputError, match="expected an erasure that waits for it"):
        workspace.rebuild()
    outcome = workspace.run()  # the third night, on the rebuilt stack
    assert (outcome.decision, outcome.version) == ("promoted", 5), outcome.reasons
    assert registry.verify() == [] and found_in(folder) == []


def test_a_rebuild_that_is_worse_does_not_serve_and_a_killed_one_goes_on(workspace: Workspace) -> None:
    registry, old = workspace.registry, workspace.registry.head()
    workspace.erase(CANARIES["name"])
    trained: list[Path] = []

    def second_is_killed(**arguments: Any) -> Any:
        from incremental_llm.training.increment import train_increment

        trained.append(arguments["out"])
        if len(trained) == 2:
            raise Killed
        return train_increment(**arguments)

    with pytest.raises(Killed):
        workspace.rebuild(train=second_is_killed)
    assert (registry.head(), registry.refs()["rebuild"]) == (old, 3)

    def idle(**arguments: Any) -> Any:
        """One step that changes nothing: what the night taught is not learnt."""
        from incremental_llm.training.increment import train_increment

        phases = tuple(
            phase.model_copy(update={"learning_rate": 1e-12, "max_steps": 1}) for phase in arguments["settings"].phases
        )
        return train_increment(**arguments | {"settings": arguments["settings"].model_copy(update={"phases": phases})})

    strict = workspace.config.gate.model_copy(update={"max_correction_losses": 0.0})
    workspace.config = workspace.config.model_copy(update={"gate": strict})
    report = workspace.rebuild(train=idle)
    assert report.made == {1: 3} and set(report.left_out) == {2}
    assert report.decision is not None and not report.decision.passed  # what the second night taught would be lost
    assert report.version is None and registry.head() == old and report.purged == ()
    assert registry.attempts() == () and registry.quarantined() == frozenset()
    assert registry.verify() == []
