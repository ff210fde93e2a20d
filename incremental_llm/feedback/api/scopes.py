"""What an API key may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Scope = Literal["ingest", "review", "admin"]
"""ingest logs replies and users' feedback, review corrects them and changes policy, admin reads the metrics."""

SCOPE_OF: Mapping[str, Scope] = {
    "interaction": "ingest",
    "thumb": "ingest",
    "preference": "ingest",
    "rephrase": "ingest",
    "ranking": "ingest",
    "copy": "ingest",
    "abandon": "ingest",
    "correction": "review",
    "policy_change": "review",
}
"""The scope that an event of each type needs. No scope includes another; a key may have several."""
