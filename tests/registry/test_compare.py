"""What lies between two versions is read from what is there, and what is not there is said."""

from __future__ import annotations

import pytest
import torch

from incremental_llm.adapters.lora import delta, read_adapter, write_adapter
from incremental_llm.registry import EventUse

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.k_proj"


def adapter(world, seed: int, *modules: str) -> str:
    random = torch.Generator().manual_seed(seed)
    factors = {name: (torch.randn(2, 6, generator=random), torch.randn(5, 2, generator=random)) for name in modules}
    folder = world.root / f"lora{seed}"
    write_adapter(folder, factors, "tiny", scaling=dict.fromkeys(modules, 0.5))
    return world.registry.put_object(folder)


def night(world, *, digest: str, lr: float, score: float | None, **fields: object):
    head = world.registry.head()
    stack = head.stack.plus(digest)
    recipe = world.registry.put_json({"training": {"lr": lr, "seed": 1}, **({"new": [1]} if lr == 2 else {})})
    report = world.registry.put_json({"suites": {"shop": {"score": score}}})
    parts = {"recipe": recipe, "report": report, "decision": world.decision(stack), "cursor": head.cursor + 3}
    return world.registry.commit_increment(parent=head.version, stack=stack, **parts, **fields)


@pytest.fixture
def two(world):
    uses = [EventUse(event=f"e{n}", seq=n, outcome=how) for n, how in ((1, "used"), (2, "used"), (3, "duplicate"))]
    night(world, digest=adapter(world, 1, Q), lr=1, score=0.25, uses=uses)
    night(world, digest=adapter(world, 2, Q, K), lr=2, score=0.75)
    return world


def test_recipe_data_and_scores_stand_side_by_side(two):
    found = two.registry.compare(1, "production")
    settings = [(one.key, one.before, one.after) for one in found.settings]
    assert settings == [("new", None, [1]), ("training.lr", 1, 2)]
    counts = [(one.what, one.before, one.after) for one in found.counts]
    assert counts == [("events, left out", 1, 0), ("events, used", 2, 0)]
    assert [(one.suite, one.before, one.after) for one in found.scores] == [("shop", 0.25, 0.75)]
    assert (found.before, found.after, found.events, len(found.added), found.absent) == (1, 2, 3, 1, ())


def test_norms_are_those_of_the_summed_deltas(two):
    first, second = (read_adapter(two.registry.object_path(one)) for one in two.registry.head().stack.adapters)
    low, high = two.registry.compare(1, 2).layers
    old, new = delta(first, Q), delta(first, Q) + delta(second, Q)
    assert (low.layer, high.layer) == ("layer 0", "layer 11")
    assert low.before == pytest.approx(old.norm().item(), rel=1e-5)
    assert low.after == pytest.approx(new.norm().item(), rel=1e-5)
    assert low.moved == pytest.approx((new - old).norm().item(), rel=1e-5)
    assert low.relative == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)
    assert (high.before, high.relative) == (0.0, None)
    assert high.moved == high.after == pytest.approx(delta(second, K).norm().item(), rel=1e-5)
    back = two.registry.compare(2, 1).layers[0]
    assert (back.before, back.after, back.moved) == (low.after, low.before, low.moved)
    assert all(one.moved == 0.0 for one in two.registry.compare(2, 2).layers)


def test_what_is_not_there_is_said_and_never_zero(two):
    found = two.registry.compare(0, 1)
    assert found.absent == (
        "version 0 has no recipe",
        "version 0 has no report",
        "version 0 trained on no data of its own (init)",
    )
    assert (found.settings, found.scores[0].before) == ((), None)
    two.registry.object_path(two.registry.get(2).recipe).unlink()
    (two.registry.object_path(two.registry.head().stack.adapters[1]) / "adapter_model.safetensors").write_bytes(b"x")
    found = two.registry.compare(1, 2)
    assert (found.settings, found.layers) == ((), ())
    assert "the recipe of version 2 cannot be read" in found.absent[0]
    assert "an adapter of version 2 is not there" in found.absent[1]


def test_an_adapter_of_another_kind_has_no_norms(world):
    world.night()
    (said,) = [line for line in world.registry.compare(0, 1).absent if "norms" in line]
    assert "adapter_config.json" in said
