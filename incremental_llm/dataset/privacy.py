"""Personal data and secrets leave before anything else sees an event: what is compiled, stored and trained has none.

In a prompt a placeholder such as [EMAIL] takes their place. A reply that holds some is left out by default: a model
that is taught to say [EMAIL] will say it to someone who asked where to write to.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from incremental_llm.chat import Message
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.feedback.events import Correction, Event, Interaction
from incremental_llm.feedback.redact import redact
from incremental_llm.feedback.store import StoredEvent


class Redaction:
    """Replaces as the settings have it; `counts` are the finds in what was replaced so far, by kind.

    A text that is longer than the settings allow is not searched: no example may have it (`too_long`).
    """

    def __init__(self, settings: CompileSettings) -> None:
        self._longest_prompt, self._longest_reply = settings.max_prompt_chars, settings.max_completion_chars
        self._prompts = settings.personal_data_in_prompts == "replace"
        self._replies = settings.personal_data_in_replies == "replace"
        self._public = settings.public_texts
        self.counts: Counter[str] = Counter()

    def of(self, stored: StoredEvent) -> StoredEvent:
        """The event without; itself where there is nothing to replace."""
        event = self._event(stored.event)
        return stored if event is stored.event else replace(stored, event=event)

    def text(self, text: str) -> str:
        """Any text without, however long it is; counted."""
        clean, counts = redact(text, self._public)
        self.counts.update(counts)
        return clean

    def _event(self, event: Event) -> Event:
        if isinstance(event, Interaction):
            messages = self._messages(event.messages) if self._prompts else event.messages
            reply = self._reply(event.reply) if self._replies else event.reply
            if messages != event.messages or reply != event.reply:
                return event.model_copy(update={"messages": messages, "reply": reply})
        elif isinstance(event, Correction) and self._replies:
            content = self._reply(event.content)
            if content != event.content:
                return event.model_copy(update={"content": content})
        return event

    def _messages(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        too_long = sum(len(message.content) for message in messages) > self._longest_prompt
        return messages if too_long else tuple(map(self._message, messages))

    def _reply(self, reply: str) -> str:
        return reply if len(reply) > self._longest_reply else self.text(reply)

    def _message(self, message: Message) -> Message:
        text = self.text(message.content)
        return message if text == message.content else message.model_copy(update={"content": text})
