"""Records weigh the inverse of the chance with which their replies were served."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.dataset import CompiledDataset, CompileSettings, UnpairedExample, parse_example
from incremental_llm.dataset.propensity import effective
from incremental_llm.replay import ReplayBuffer


def served(log, name: str, propensity: float | None = None, policy: str = "production@7", **more) -> str:
    chance = {} if propensity is None else {"propensity": propensity}
    asked = more.pop("asked", f"Question {name}?")
    return log.served(name, asked, f"reply {name}", metadata={"serving": {"policy": policy, **chance}}, **more)


def weights(dataset: CompiledDataset) -> dict[str, float]:
    return {example.sources[0]: example.weight for example in dataset.unpaired}


def test_rarer_replies_weigh_more_and_the_mean_stays_one(log):
    for name, propensity in (("i1", 0.8), ("i2", 0.2), ("i3", None)):
        log.up(f"t{name}", served(log, name, propensity))
    log.up("t4", log.served("i4"))
    dataset = log.compile()
    mean = (1 / 0.8 + 1 / 0.2) / 2
    assert weights(dataset) == pytest.approx({"i1": 1 / 0.8 / mean, "i2": 1 / 0.2 / mean, "i3": 1.0, "i4": 1.0})
    assert (dataset.weighting.records, dataset.weighting.weighted, dataset.weighting.capped) == (4, 2, 0)
    w = [1 / 0.8 / mean, 1 / 0.2 / mean, 1, 1]
    assert dataset.weighting.effective == pytest.approx(sum(w) ** 2 / sum(x * x for x in w))
    assert "2 of 4 pairs and verdicts weigh their inverse propensity (0 at the cap)" in dataset.weighting.sentence


def test_the_cap_bounds_the_weight_before_the_mean_is_taken(log):
    for name, propensity in (("i1", 0.5), ("i2", 0.001)):
        log.up(f"t{name}", served(log, name, propensity))
    dataset = log.compile(propensity_cap=4)
    assert weights(dataset) == pytest.approx({"i1": 2 / 3, "i2": 4 / 3})
    assert dataset.weighting.capped == 1
    assert log.compile(propensity_cap=1).weighting is None
    assert set(weights(log.compile(propensity_cap=1)).values()) == {1.0}


def test_of_two_replies_the_chances_multiply_and_of_one_reply_the_largest_counts(log):
    for name, reply, propensity in (("i1", "a", 0.5), ("i2", "b", 0.2), ("i3", "b", 0.4)):
        log.served(name, reply=reply, metadata={"serving": {"policy": "p", "propensity": propensity}})
    log.up("t1", "i1")
    log.down("t2", "i2")
    log.down("t3", "i3", "u2")
    log.preferred("p1", served(log, "i4", 0.5), served(log, "i5", 0.5, asked="Question i4?"))
    pair, other = log.compile(propensity_cap=100).pairs
    mean = (1 / (0.5 * 0.4) + 1 / (0.5 * 0.5)) / 2
    assert (pair.weight, other.weight) == pytest.approx((1.25 * 5 / mean, 4 / mean))


def test_the_mean_of_each_kind_stays_one(log):
    """Each kind is a phase of training; a pair has two chances, and would else be trained at several times the rate."""
    for n in range(6):
        (log.up if n % 2 else log.down)(f"t{n}", served(log, f"i{n}", 0.95 - 0.1 * n))
    for n in range(4):
        one, other = served(log, f"a{n}", 0.9), served(log, f"b{n}", 0.05 + 0.2 * n, asked=f"Question a{n}?")
        log.preferred(f"p{n}", one, other)
    dataset = log.compile(trust={"enabled": False})
    for examples in (dataset.unpaired, dataset.pairs):
        assert len({example.weight for example in examples}) > 2
        assert sum(example.weight for example in examples) / len(examples) == pytest.approx(1)


def test_what_duplicates_weigh_is_the_mean_of_them(log):
    """One explored reply of many that are the same says as little as the others about what is served."""
    for n in range(4):
        name = log.served(
            f"i{n}", "Open?", "yes", metadata={"serving": {"policy": "p", "propensity": [0.1, 0.8][n > 0]}}
        )
        log.up(f"t{n}", name, f"u{n}")
    log.up("t9", served(log, "i9", 0.5), "u9")
    dataset = log.compile(user_weight_step=0, trust={"enabled": False})
    same = (10 + 3 / 0.8) / 4
    mean = (same + 2) / 2
    assert [e.weight for e in dataset.unpaired] == pytest.approx([same / mean, 2 / mean])


def test_chances_that_multiply_to_nothing_reach_the_cap(log):
    """An older log took in any propensity above 0."""
    for name, reply in (("i1", "a"), ("i2", "b")):
        log.served(name, reply=reply)
        stored = log.events[-1]
        block = {"serving": {"policy": "p", "propensity": 1e-200}}
        log.events[-1] = replace(stored, event=stored.event.model_copy(update={"metadata": block}))
    log.preferred("p1", "i1", "i2")
    dataset = log.compile()
    assert [pair.weight for pair in dataset.pairs] == [1.0]
    assert dataset.weighting.capped == 1


def test_a_reviewers_own_words_were_drawn_by_no_policy(log):
    log.corrected("k1", served(log, "i1", 0.1))
    log.up("t2", served(log, "i2", 0.9))
    dataset = log.compile(policy_decay=0.5)
    assert dataset.sft[0].weight == 1.0
    assert dataset.weighting.weighted == 2


def test_replies_of_older_versions_count_less_by_the_version(log):
    log.up("t1", served(log, "i1", policy="production@7"))
    log.up("t2", served(log, "i2", policy="production@5"))
    log.up("t3", served(log, "i3", policy="other@1"))
    log.up("t4", log.served("i4"))
    assert weights(log.compile()) == {"i1": 1, "i2": 1, "i3": 1, "i4": 1}
    dataset = log.compile(policy_decay=0.5)
    assert weights(dataset) == {"i1": 1, "i2": 0.25, "i3": 1, "i4": 1}
    assert (dataset.weighting.older, dataset.weighting.weighted) == (1, 0)


def test_a_version_that_is_not_there_yet_makes_no_other_one_old(log):
    log.up("t1", served(log, "i1", policy="production@7"))
    log.up("t2", served(log, "i2", policy="production@6"))
    log.up("t3", served(log, "i3", policy="production@999999999"))
    dataset = log.compile(policy_decay=0.5, policy_version=7)
    assert weights(dataset) == {"i1": 1, "i2": 0.5, "i3": 1}
    assert dataset.weighting.older == 1


def test_what_is_very_old_still_counts(log):
    log.up("t1", served(log, "i1", policy="production@7"))
    log.up("t3", served(log, "i3", policy="production@999999999"))
    dataset = log.compile(policy_decay=0.5)
    assert weights(dataset) == {"i1": 0.05, "i3": 1}
    assert dataset.account["t1"] == "used"


def test_how_it_was_served_goes_with_the_example_through_the_disk_and_the_buffer(log, tmp_path):
    log.up("t1", served(log, "i1", 0.05))
    dataset = log.compile()
    (example,) = dataset.unpaired
    assert [(one.policy, one.propensity) for one in example.serving] == [("production@7", 0.05)]
    assert parse_example(json.loads(example.model_dump_json())) == example
    dataset.write(tmp_path)
    assert CompiledDataset.read(tmp_path) == dataset
    buffer = ReplayBuffer().updated(dataset.examples, 1, 0)
    assert ReplayBuffer.from_json(buffer.to_json()).items[0].example == example


def test_without_a_serving_block_nothing_new_is_written(log, tmp_path):
    log.up("t1", log.served("i1"))
    dataset = log.compile(policy_reviewers=[])
    dataset.write(tmp_path)
    head = json.loads((tmp_path / "dataset.json").read_text())
    assert "weighting" not in head
    later = ("rephrase_embeddings", "held_out_share", "propensity_cap", "policy_decay", "ranking", "copied")
    assert not any(name in text for name in later for text in (json.dumps(head["settings"]),))
    assert json.loads((tmp_path / "unpaired.jsonl").read_text()).keys() == {
        "kind", "prompt", "completion", "desirable", "weight", "sources", "users",
    }  # fmt: skip
    changed = CompileSettings(propensity_cap=3, held_out_share=0.02)
    assert CompileSettings.model_validate(changed.model_dump(mode="json")) == changed
    old = {"prompt": [], "completion": "a", "desirable": True, "sources": [], "users": []}
    assert UnpairedExample.model_validate(old).serving == ()


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_the_effective_sample_size_is_between_one_and_the_number_of_records(listed: list[float]) -> None:
    assert 1 - 1e-9 <= effective(listed) <= len(listed) * (1 + 1e-9)
    assert effective([2.0] * len(listed)) == pytest.approx(len(listed))
    assert effective([]) == 0


def test_inverse_propensity_weights_recover_what_every_policy_would_have_got(log):
    """100 requests, of which 5 explored; the explored policy pleases always, production half of the time."""
    for n in range(100):
        explored = n % 20 == 0
        name = served(log, f"i{n}", 0.05 if explored else 0.95)
        (log.up if explored or n % 2 else log.down)(f"t{n}", name, f"u{n}")
    dataset = log.compile(propensity_cap=100)
    liked = sum(e.weight for e in dataset.unpaired if e.desirable) / sum(e.weight for e in dataset.unpaired)
    assert liked == pytest.approx(
        (1.0 + 50 / 95) / 2
    )  # as logged it is 0.55: production is heard nineteen times as often
    rates = {}
    for arm in (True, False):
        found = [e for e in dataset.unpaired if (e.serving[0].propensity < 0.5) == arm]
        rates[arm] = sum(e.weight for e in found)
    assert rates[True] == pytest.approx(rates[False])  # as if half of the requests were each's
