"""What keeps a text out of training whatever it says: form, length, personal data, questions that are measured.

Prompts are judged before anybody's verdict counts, replies when the examples are there: a pair can fall for its
rejected reply while the correction stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from incremental_llm.chat import Conversation
from incremental_llm.dataset.decontaminate import SuiteIndex
from incremental_llm.dataset.reasons import DropReason
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.feedback.redact import personal_data


class Filters:
    """All filters of a compile; each method names the first that objects."""

    def __init__(self, settings: CompileSettings, suites: SuiteIndex) -> None:
        self.settings = settings
        self.suites = suites
        self._personal: dict[str, bool] = {}

    def prompt_reason(self, prompt: Conversation) -> DropReason | None:
        """Why no example may have this prompt, None when one may."""
        if not prompt or prompt[-1].role != "user" or not prompt[-1].content.strip():
            return DropReason.UNPARSABLE
        if sum(len(message.content) for message in prompt) > self.settings.max_prompt_chars:
            return DropReason.TOO_LONG
        if self.settings.personal_data_in_prompts == "drop" and any(self._is_personal(m.content) for m in prompt):
            return DropReason.PERSONAL_DATA
        asked = (message.content for message in prompt if message.role == "user")
        if any(text in self.suites for text in asked) or self._shares_passage(message.content for message in prompt):
            return DropReason.IN_SUITE
        return None

    def reply_reason(self, texts: Sequence[str]) -> DropReason | None:
        """Why no example may hold these replies, None when one may."""
        if not all(text.strip() for text in texts):
            return DropReason.UNPARSABLE
        if max(map(len, texts)) > self.settings.max_completion_chars:
            return DropReason.TOO_LONG
        if self.settings.personal_data_in_replies == "drop" and any(map(self._is_personal, texts)):
            return DropReason.PERSONAL_DATA
        return DropReason.IN_SUITE if self._shares_passage(texts) else None

    def _shares_passage(self, texts: Iterable[str]) -> bool:
        return any(map(self.suites.shares_passage, texts))

    def _is_personal(self, text: str) -> bool:
        if text not in self._personal:
            self._personal[text] = bool(personal_data(text, self.settings.public_texts))
        return self._personal[text]
