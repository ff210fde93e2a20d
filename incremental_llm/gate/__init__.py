"""Decide whether a candidate may serve, from two evaluation reports and a policy.

    from incremental_llm.gate import GatePolicy, decide

    decision = decide(
        candidate=report, production=report_now,
        candidate_stack=stack.digest, production_stack=stack_now.digest,
        policy=GatePolicy(margins={"general": 0.05}),
        new_suites=["shop_night2"], old_suites=["general", "shop_night1"],
        corrections=["corrections"],
    )
    decision.passed, decision.reasons        # False, ("shop_night1: 95.0 -> 77.5 (-17.5, interval ...): worse; ...",)
    for row in decision.table(): ...

    policy.py     the numbers to be met          decide.py     the rules, pure          decision.py   the verdict

The one design fact: the gate fails closed. What is missing, unscored, too small or measured on something else is a
failed check with its reason, and no rule passes for want of data.
"""

from __future__ import annotations

from incremental_llm.gate.decide import decide, suites_by_role
from incremental_llm.gate.decision import COLUMNS, Check, Decision
from incremental_llm.gate.policy import GatePolicy

__all__ = ["COLUMNS", "Check", "Decision", "GatePolicy", "decide", "suites_by_role"]
