"""When two texts are the same, and when they only look it."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from incremental_llm.chat import Message
from incremental_llm.dataset import PairExample, SftExample, UnpairedExample, dedup, opponents
from incremental_llm.dataset.dedup import exact_key, group_near, near_duplicates, normalised, same_statement, tokens
from incremental_llm.dataset.examples import Example

ASKED = (Message(role="user", content="How long?"),)
SAID = {"prompt": ASKED, "sources": ("i", "k"), "users": ("u",)}
BOOTS = "Is it true that I can return every pair of boots within 30 days if they are clean and in their box"


def example(prompt: str, completion: str = "Yes, that is right.") -> SftExample:
    asked = (Message(role="user", content=prompt),)
    return SftExample(prompt=asked, completion=completion, sources=("i", "k"), users=("r",))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How long?", "  how LONG "),
        ("“Yes”, it's free.", '"yes" it’s free'),
        ("size 30-40", "Size 30 40"),
        ("ＡＢＣ", "abc"),
    ],
)
def test_case_spaces_and_punctuation_mean_nothing(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@given(st.text(st.sampled_from("aB9'-.,_%$~|\x00\x1c\x7f \n"), max_size=12))
def test_plain_ascii_has_the_same_tokens_as_what_is_not(text: str) -> None:
    """A quotation mark at the end is dropped, and sends the text the long way."""
    assume(any(c.isalnum() or c in "%$~|\x00\x7f" for c in text))
    assert tokens(text) == tokens(text + " “")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("it is -5 degrees", "it is 5 degrees"),
        ("1.5 litres", "15 litres"),
        ("1.5 litres", "1 5 litres"),
        ("5 %", "5"),
        ("5 €", "5 $"),
        ("C", "C#"),
        ("?", "!"),
    ],
)
def test_signs_and_numbers_mean_something(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@pytest.mark.parametrize(
    "other",
    [
        BOOTS.replace("return", "retrun"),
        BOOTS.replace("every pair", "every the pair"),
        BOOTS.replace("boots", "bots").replace("clean", "claen"),
        BOOTS.upper() + "!",
    ],
)
def test_typing_errors_and_filler_make_near_duplicates(other: str) -> None:
    assert near_duplicates([BOOTS], [other])
    assert near_duplicates([other], [BOOTS])
    assert group_near([example(BOOTS), example(other)]) == [0, 0]


@pytest.mark.parametrize(
    "other",
    [
        BOOTS.replace("30", "45"),
        BOOTS.replace("30", "3"),
        BOOTS.replace("can", "cannot"),
        BOOTS.replace("I can", "I can't"),
        BOOTS.replace("boots", "tents"),
        BOOTS.replace("clean", "unclean"),
        BOOTS.replace("every", "no"),
        BOOTS.replace("clean and in their box", "in their box and clean"),
        BOOTS + " today",
    ],
)
def test_another_number_word_or_order_is_no_duplicate(other: str) -> None:
    assert not near_duplicates([BOOTS], [other])
    assert group_near([example(BOOTS), example(other)]) == [0, 1]


def test_a_digit_is_no_typing_error() -> None:
    text = "The voucher of an item that was returned in the sale can be used until the end of {} and not any longer"
    assert not near_duplicates([text.format("2027")], [text.format("2028")])


def test_number_words_are_numbers() -> None:
    text = "We keep every parcel that nobody collects at the counter for {} days and then it goes back to the sender"
    assert not near_duplicates([text.format("four")], [text.format("five")])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yes, the path is open for hiking.", "yes - path is open for hiking, thanks!", True),
        ("Yes, the path is open for hiking.", "Yes, the path is open for biking.", False),
        ("Send the boots back.", "Send the bots back.", False),
        ("ok", "please", False),
        ("", "?", False),
    ],
)
def test_one_letter_makes_another_reply(one: str, other: str, same: bool) -> None:
    assert same_statement(one, other) is same
    assert (group_near([example(BOOTS, one), example(BOOTS.replace("return", "retrun"), other)]) == [0, 0]) is same


def test_a_paraphrased_question_with_the_same_answer_is_no_duplicate() -> None:
    pair = [example("May boots go back?"), example("Can I return boots?")]
    assert group_near(pair) == [0, 1]
    assert exact_key(pair[0]) != exact_key(pair[1])


def test_verdict_kind_and_roles_are_part_of_what_is_compared() -> None:
    asked = (Message(role="user", content="?"),)
    up = UnpairedExample(prompt=asked, completion=BOOTS, desirable=True, sources=(), users=())
    down = up.model_copy(update={"desirable": False})
    system = up.model_copy(update={"prompt": (Message(role="system", content="?"), *asked)})
    assert group_near([up, down, system]) == [0, 1, 2]
    assert len({exact_key(e) for e in (up, down, system)}) == 3


_VOCABULARY = ("return", "boots", "30", "45", "days", "not", "within", "every", "pair", "the", "clean", "retrun")
_WORDS = st.lists(st.sampled_from(_VOCABULARY), max_size=8)


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(_WORDS.map(" ".join), min_size=1, max_size=8))
def test_blocks_find_what_comparing_all_with_all_finds(texts: list[str]) -> None:
    examples = [example(text) for text in texts]
    kept: list[int] = []
    expected = []
    for position, text in enumerate(texts):
        match = next((k for k in kept if near_duplicates([text], [texts[k]])), position)
        expected.append(match)
        if match == position:
            kept.append(position)
    assert group_near(examples) == expected


_ANY_WORD = st.text("abc", min_size=4, max_size=7) | st.text("ab", min_size=30, max_size=35)


@given(_ANY_WORD, st.data())
def test_words_that_one_edit_makes_equal_look_alike(word: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(word) - 2))
    before, one, two, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    edited = data.draw(
        st.sampled_from([before + two + after, before + two + one + after, before + "c" + two + after, word + "c"])
    )
    assume(len(edited) >= 4)
    look = dedup._lookalikes([word, "warranty", edited])
    assert look[word] == look[edited]
    assert look["warranty"] == "warranty"


def test_questions_from_a_template_with_the_same_reply_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(one: Example, other: Example) -> bool:
        nonlocal compared
        compared += 1
        return repeats(one, other)

    repeats = dedup._repeats
    monkeypatch.setattr(dedup, "_repeats", counted)
    generator = random.Random(0)
    named = ["".join(generator.choices("bdfgklmnprstaeiou", k=12)) for _ in range(500)]
    asked = [f"Can you please tell me the current price of {name} in the online shop today" for name in named]
    assert group_near([example(text) for text in asked]) == list(range(500))
    assert compared == 0
    typo = asked[7].replace("price", "pirce")
    assert group_near([example(text) for text in (*asked, typo)])[-1] == 7


def test_five_thousand_examples_are_grouped() -> None:
    generator = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ando", "erim", "ilon", "ovat")]
    texts = [" ".join(generator.choices(vocabulary, k=18)) for _ in range(4000)]
    typos = [text.replace("ando", "adno", 1) for text in texts[:1000]]
    first = group_near([example(text) for text in (*texts, *typos)])
    assert sum(original != position for position, original in enumerate(first)) > 800


@pytest.mark.parametrize(
    ("old", "turned"),
    [
        (UnpairedExample(**SAID, completion="14 days.", desirable=True), True),
        (SftExample(**SAID, completion="14 DAYS"), True),
        (PairExample(**SAID, chosen="14 days", rejected="7 days"), True),
        (PairExample(**SAID, chosen="7 days", rejected="30 days"), True),
        (UnpairedExample(**SAID, completion="30 days", desirable=False), True),
        (UnpairedExample(**SAID, completion="14 days.", desirable=False), False),
        (SftExample(**SAID, completion="30 days"), False),
        (SftExample(**SAID, completion="15 days"), False),
        (SftExample(**SAID | {"prompt": (Message(role="user", content="How far?"),)}, completion="14 days"), False),
    ],
)
def test_a_later_verdict_turns_an_earlier_one_on_the_same_reply(old: Example, turned: bool) -> None:
    tonight = [PairExample(**SAID | {"users": ("u7", "u8")}, chosen="30 days", rejected="14 days")]
    assert opponents(tonight)(old) == (frozenset({"u7", "u8"}) if turned else frozenset())
    assert not opponents([])(old)
