"""How a conversation becomes tokens: the one place that training, evaluation and serving share. No torch.

    prompt_ids(tokenizer, conversation)            the context, ending where the assistant starts to speak
    completion_ids(tokenizer, conversation, text)  what the assistant then says, ending with the end-of-turn token
    end_of_turn_id(tokenizer)                      the token that ends an assistant turn, as the template writes it
    user_turn_ids(tokenizer, conversation)         the context, ending where the user starts to speak
    special_texts(tokenizer)                       texts that are not read as words: a message must not hold them

The one design fact: a completion is cut out of the rendered chat after exactly the tokens that generation starts from,
so what is trained, what is scored and what is served are the same sequence.
"""

from __future__ import annotations

from typing import Any

from incremental_llm.chat import Conversation, Message, as_dicts
from incremental_llm.errors import InputError


def prompt_ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Token ids of a conversation with the generation prompt behind it.

    Raises:
        InputError: the conversation is empty, or the tokenizer has no chat template.
    """
    return _encode(tokenizer, _render(tokenizer, conversation, generation_prompt=True))


def completion_ids(tokenizer: Any, conversation: Conversation, completion: str) -> list[int]:
    """Token ids of an assistant reply after `prompt_ids(tokenizer, conversation)`.

    The last one is the end-of-turn token; the newline that a template writes after it is left out, since generation
    stops before it.

    Raises:
        InputError: the template changes the prompt once a reply follows, ends a turn without a special token, or the
            reply itself contains the end-of-turn token.
    """
    prompt = _render(tokenizer, conversation, generation_prompt=True)
    reply = Message(role="assistant", content=completion)
    full = _render(tokenizer, (*conversation, reply), generation_prompt=False)
    if not full.startswith(prompt):
        raise InputError(
            "expected the chat template to keep the prompt unchanged when a reply follows, found another text: "
            f"{prompt[-60:]!r} is not how {full[-160:]!r} begins. Use a base model whose template only appends."
        )
    ids = _without_trailing_space(tokenizer, _continuation(tokenizer, prompt, full))
    if not ids or ids[-1] not in special_ids(tokenizer):
        raise InputError(
            "expected the chat template to end an assistant turn with a special token, found "
            f"{full[-40:]!r}. Generation could not stop: use a base model with a chat template that ends its turns."
        )
    if ids[-1] in ids[:-1]:
        raise InputError(
            f"the reply {completion[:60]!r} contains the end-of-turn token {tokenizer.convert_ids_to_tokens(ids[-1])}: "
            "it would end before its text does. Remove the token from the text."
        )
    return ids


def end_of_turn_id(tokenizer: Any) -> int:
    """The token id with which the chat template ends an assistant turn; raises like `completion_ids`."""
    return completion_ids(tokenizer, (Message(role="user", content="a"),), "b")[-1]


def user_turn_ids(tokenizer: Any, before: Conversation = ()) -> list[int]:
    """Token ids of what the template writes up to the first word of a user's turn, behind the messages `before`.

    Raises:
        InputError: the template writes the user's words changed, so that where they begin is not known.
    """
    text = _render(tokenizer, (*before, Message(role="user", content=_USER_WORDS)), generation_prompt=False)
    prefix, found, _ = text.partition(_USER_WORDS)
    if not found:
        raise InputError(
            f"expected the chat template to write the user's words as they are, found {text[-160:]!r}. With such a "
            "template production cannot write questions: choose another replay.policy than self_synthesised."
        )
    return _encode(tokenizer, prefix)


_USER_WORDS = "What the user says begins here."


def special_texts(tokenizer: Any) -> frozenset[str]:
    """How the special tokens are written. A chat is encoded as a whole, so inside a message they are tokens too."""
    return frozenset(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))))


def _render(tokenizer: Any, conversation: Conversation, *, generation_prompt: bool) -> str:
    if not conversation:
        raise InputError("expected a conversation with at least one message, found an empty one.")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template. Use a chat model (often named ...-Instruct) as the base.")
    text: str = tokenizer.apply_chat_template(
        as_dicts(conversation), add_generation_prompt=generation_prompt, tokenize=False
    )
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    # The template has already written every special token: the tokenizer must not add its own again.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _continuation(tokenizer: Any, prompt: str, full: str) -> list[int]:
    """Ids behind the prompt's ids.

    A merge across the seam (two newlines, say) cannot happen in generation, which starts from the prompt's own ids, so
    then the reply is encoded alone.
    """
    prefix, ids = _encode(tokenizer, prompt), _encode(tokenizer, full)
    if ids[: len(prefix)] == prefix:
        return ids[len(prefix) :]
    alone = _encode(tokenizer, full[len(prompt) :])
    if tokenizer.decode(prefix + alone) != tokenizer.decode(ids):
        raise InputError(
            f"the tokens of the prompt {prompt[-60:]!r} are no prefix of the tokens of the chat with its reply, and "
            "the two encoded apart decode to another text. This tokenizer cannot be trained on replies alone."
        )
    return alone


def _without_trailing_space(tokenizer: Any, ids: list[int]) -> list[int]:
    special = special_ids(tokenizer)
    end = len(ids)
    while end and ids[end - 1] not in special and not tokenizer.decode(ids[end - 1 : end]).strip():
        end -= 1
    return ids[:end]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that are not read as words."""
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids) | frozenset(added)
