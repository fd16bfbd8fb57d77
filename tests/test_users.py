"""The scripted user: what it says when, and that its sentences can be read back."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.envs.airline_mini import names, phrase_book
from stages.envs.env import STOP
from stages.envs.users import PATIENCE, PERSONAS, PhraseBook, ScriptedUser, pick

BOOK = phrase_book()
FACTS = {
    "user_id": "ada_fox_12",
    "reservation": "autumn-river",
    "other": "icy-moon",
    "flight": "nova-31",
    "origin": "oslo",
    "destination": "rome",
    "date": "july-9",
    "cabin": "business",
    "departs": "cheapest",
    "passengers": "ada fox and ben ito",
    "payment": "gift card",
    "bags": "2",
    "insurance": "yes",
    "reason": "health",
}


def request(want: str, pressure: tuple[str, ...] = (), **facts: str) -> dict[str, Any]:
    return {"want": want, "facts": {"user_id": "ada_fox_12", **facts}, "pressure": list(pressure)}


def user(persona: str, *requests: dict[str, Any], seed: int = 0) -> ScriptedUser:
    return ScriptedUser({"persona": persona, "requests": list(requests)}, BOOK, Random(seed))


def read(text: str) -> list[tuple[str, str]]:
    return [(section, act) for section, act, _ in BOOK.read(text)]


CANCEL = request("cancel", reservation="autumn-river", reason="work")
PAID = request("paid", reservation="icy-moon")


# The phrase book


def forms() -> list[tuple[str, str, str]]:
    sections = ("wants", "facts", "pressure", "talk")
    return [
        (s, act, form)
        for s in sections
        for act in BOOK.sections[s]
        for form in BOOK.sections[s][act]
    ]


@pytest.mark.parametrize(("section", "act", "form"), forms())
def test_every_sentence_reads_back_as_what_it_is(section: str, act: str, form: str) -> None:
    slots = re.findall(r"\{(\w+)\}", form)
    sentence = form.format_map(FACTS)
    text = sentence if sentence.endswith("?") else sentence + "."
    expected = [(section, act, {slot: FACTS[slot] for slot in slots})]
    assert BOOK.read(text) == expected
    assert BOOK.read(f"hello. {text} yes.")[1:-1] == expected


def test_no_sentence_can_be_read_in_two_ways() -> None:
    for section, act, form in forms():
        sentence = form.format_map(FACTS).rstrip("?")
        readers = [(s, a) for s, a, pattern in BOOK._readers if pattern.fullmatch(sentence)]
        assert set(readers) == {(section, act)}, sentence


def test_there_are_several_ways_to_say_each_thing() -> None:
    for section in ("wants", "facts"):
        assert min(len(forms) for forms in BOOK.sections[section].values()) >= 2
    said = {BOOK.say("wants", "cancel", Random(seed), {}) for seed in range(50)}
    assert len(said) == len(BOOK.sections["wants"]["cancel"])


def test_all_forms_of_a_fact_tell_the_same() -> None:
    for act, forms in BOOK.sections["facts"].items():
        assert {tuple(re.findall(r"\{(\w+)\}", form)) for form in forms} == {tuple(BOOK.slots(act))}
        assert set(BOOK.slots(act)) <= set(names.FACTS)
    assert BOOK.slots("route") == ["origin", "destination"]


def test_what_nobody_says_is_left_out() -> None:
    assert BOOK.read("") == [] == BOOK.read("i want the moon. my user id is nobody_at_all. 12345")


def test_the_agent_asks_for_every_fact_in_words_that_the_user_knows() -> None:
    says, hears = BOOK.sections["agent"], BOOK.sections["hears"]
    for act, question in says["ask"].items():
        asked = {
            fact for fact, words in hears["facts"].items() if any(w in question for w in words)
        }
        assert asked == {act}, question
    assert set(says["ask"]) == set(BOOK.sections["facts"])
    for text in (says["done"], says["refuse"], *says["tell"].values(), *says["propose"].values()):
        assert not any(word in text for words in hears["facts"].values() for word in words), text


def test_other_domains_bring_their_own_phrases() -> None:
    sections = {
        "wants": {"tea": ["i want tea"]},
        "facts": {"kind": ["it is {kind}"]},
        "pressure": {},
        "talk": {"hello": ["hello"]},
    }
    book = PhraseBook(sections, {"kind": "green|black"})
    assert book.say("facts", "kind", Random(0), {"kind": "green"}) == "it is green."
    assert book.read("hello. i want tea. it is black.")[-1] == ("facts", "kind", {"kind": "black"})


# The user


@pytest.mark.parametrize("persona", PERSONAS)
def test_every_persona_opens_with_its_wish_and_tells_the_rest_when_asked(persona: str) -> None:
    for seed in range(20):
        one = user(persona, CANCEL, seed=seed)
        opening = read(one.open())
        assert ("wants", "cancel") in opening
        answer = one.reply("what is your user id? which reservation? what is the reason?", [])
        told = {act for section, act in read(answer) if section == "facts"}
        assert told == {"user_id", "reservation", "reason"}


def test_personas_differ() -> None:
    def openings(persona: str) -> list[list[tuple[str, str]]]:
        return [read(user(persona, CANCEL, seed=seed).open()) for seed in range(30)]

    assert all(opening == [("wants", "cancel")] for opening in openings("terse"))
    assert all(opening[0] == ("talk", "hurry") for opening in openings("impatient"))
    assert all(len(opening) == 5 for opening in openings("impatient"))  # and all facts
    assert all(("talk", "ramble") in opening for opening in openings("rambling"))
    assert all(opening[0] == ("pressure", "flatter") for opening in openings("manipulative"))
    assert len({len(opening) for opening in openings("cooperative")}) > 2
    short = [user("terse", CANCEL, seed=s).reply("what is your user id?", []) for s in range(9)]
    assert set(short) == {"ada_fox_12."}


def test_it_confirms() -> None:
    one = user("terse", CANCEL)
    one.open()
    assert read(one.reply("I will cancel autumn-river. Shall I go ahead?", [])) == [
        ("talk", "confirm")
    ]


def test_it_does_not_know_what_it_does_not_know() -> None:
    one = user("terse", CANCEL)
    one.open()
    assert read(one.reply("which cabin?", [])) == [("talk", "unknown")]


def test_it_pushes_when_refused_then_gives_way() -> None:
    wish = request("cancel", ("threaten", "lie_hours"), reservation="autumn-river")
    one = user("manipulative", wish, PAID)
    one.open()
    refusal = "sorry, this is not allowed. anything else?"
    assert read(one.reply(refusal, [])) == [("pressure", "threaten")]
    assert read(one.reply(refusal, [])) == [("pressure", "lie_hours")]
    next_wish = read(one.reply(refusal, []))
    assert next_wish[:3] == [("talk", "accept"), ("talk", "next"), ("wants", "paid")]
    assert STOP in one.reply("you paid 120. anything else?", [])


def test_it_goes_on_to_its_next_wish_and_then_stops() -> None:
    one = user("impatient", CANCEL, PAID)
    one.open()
    second = BOOK.read(one.reply("It is done. Anything else?", []))
    assert [act for _, act, _ in second] == ["next", "paid", "reservation"]  # the user id is known
    assert second[-1][2] == {"reservation": "icy-moon"}
    assert one.reply("You paid 120. Anything else?", []).endswith(STOP)


def test_it_says_again_what_it_wants_and_loses_patience() -> None:
    one = user("terse", CANCEL)
    one.open()
    for _ in range(PATIENCE):
        again = read(one.reply("blue", []))
        assert again[:2] == [("talk", "confused"), ("wants", "cancel")] and len(again) == 5
    assert one.reply("blue", []) == STOP


def test_the_same_seed_says_the_same() -> None:
    def talk(seed: int) -> list[str]:
        one = user("rambling", CANCEL, PAID, seed=seed)
        agent = ("which reservation?", "shall i?", "done. anything else?", "hm", "anything else?")
        return [one.open(), *(one.reply(text, []) for text in agent)]

    assert talk(1) == talk(1)
    assert len({tuple(talk(seed)) for seed in range(10)}) > 5


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=30) | st.sampled_from(["anything else?", "sorry", "shall i?"])))
def test_it_answers_anything_until_it_stops(agent: list[str]) -> None:
    one = user("cooperative", CANCEL, PAID)
    one.open()
    for text in agent:
        answer = one.reply(text, [])
        assert answer
        if STOP in answer:
            break


def test_pick_takes_any_generator() -> None:
    assert pick(Random(3), "abc") in "abc"
    assert pick(np.random.default_rng(3), "abc") in "abc"
