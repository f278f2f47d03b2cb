"""Which claims about sounds a reasoning makes, in the styles of many models, and the verdict that follows from theirs."""

import pytest

from sightsound.method.claims import MAX_CLAIMS, Claim, claims_of, looked_up, notes_of, sentences, verdict_of_claims
from sightsound.method.verdicts import ACCEPT, NO_CLAIMS, NO_REASONING, REJECT, UNCLEAR


# A reasoning, and its claims as the ledger shows them.
CLAIMS = [
    ("I hear a dog, then a bell.", ["dog", "bell"]),
    ("I hear dog, then dog, then bell. That makes three.", ["dog", "bell"]),
    ("I can hear a car engine and people talking. So the answer is B.", ["car engine", "people talking"]),
    ("I hear nothing.", ["I hear nothing"]),
    ("I hear a siren wailing in the distance, but no dog.", ["siren wailing in the distance"]),
    ("The rhythmic thumping suggests a drum.", ["The rhythmic thumping suggests a drum"]),
    ("There is no speech in the recording.", ["There is no speech in the recording"]),
    ("The audio contains birds chirping. A man is speaking over them.",
     ["The audio contains birds chirping", "A man is speaking over them"]),
    ("1. A dog barks twice.\n2. A door is slammed with a loud bang.\n3. Then it is quiet.",
     ["A dog barks twice", "A door is slammed with a loud bang", "Then it is quiet"]),
    ("- **Violin**: a high, sustained tone\n- **Piano**: soft chords",
     ["Violin: a high, sustained tone", "Piano: soft chords"]),
    ("Let me think. The question asks which instrument is played first. The melody is played by a flute.",
     ["The melody is played by a flute"]),
    ("Option A mentions a violin sound, and option B a trumpet sound. A trumpet is audible from the start.",
     ["A trumpet is audible from the start"]),
    ("The man opens his mouth wide. He wears a red coat.", []),
    ("Since the video shows a beach, waves are likely.", []),
    ("Perhaps it is a siren; the pitch rises and falls.", ["Perhaps it is a siren; the pitch rises and falls"]),
    ('A woman says "hello" and then laughs.', ['A woman says "hello" and then laughs']),
    ("Is that a horn? I should listen again. It is a truck horn, honking twice.", ["It is a truck horn, honking twice"]),
    ("If there were a dog, I would hear barking.", []),
    ("Let's listen to the second half.", []),
    ("So the correct answer is the bell sound.", []),
    ("The sound lasts approx. 2.5 s and fades, e.g. like a gong.",
     ["The sound lasts approx. 2.5 s and fades, e.g. like a gong"]),
    ("Step 1: The engine idles.\nStep 2: It revs up with a roar.", ["The engine idles", "It revs up with a roar"]),
    ("The crowd applauds! Everybody cheers loudly.", ["The crowd applauds", "Everybody cheers loudly"]),
    ("(1) Rain patters: a constant noise. (2) Thunder rumbles.", ["Rain patters: a constant noise", "Thunder rumbles"]),
    ("### Sounds\n* a cat meows\n* a clock ticking", ["Sounds", "a cat meows", "a clock ticking"]),
    ("The tempo is fast, about 140 beats per minute. It is rock music.",
     ["The tempo is fast, about 140 beats per minute", "It is rock music"]),
    ("Eliminating the choices, only whistling remains.", []),
    ("The bird is heard before the bell rings. The bird is heard before the bell rings.",
     ["The bird is heard before the bell rings"]),
    ("Two people are having a conversation, one of them coughs", ["Two people are having a conversation, one of them coughs"]),
    ("I hear a piano.\nI hear a voice, then the piano again.", ["piano", "voice", "piano again"]),
    ("It sounds as if someone was chopping wood.", ["It sounds as if someone was chopping wood"]),
    ("Footsteps on gravel. Then silence.", ["Footsteps on gravel", "Then silence"]),
    ("We need the number of dog barks. There are three barks.", ["There are three barks"]),
    ("", []),
    ("The horses move slowly through the field.", []),
]  # fmt: skip


@pytest.mark.parametrize(("think", "claims"), CLAIMS)
def test_claims_of_reasoning_in_many_styles(think: str, claims: list[str]) -> None:
    assert [claim.text for claim in claims_of(think)] == claims


def test_the_sounds_of_a_list_are_asked_about_as_sentences() -> None:
    listed, sentence = claims_of("I hear a dog. The dog barks twice.")
    assert (listed.question, sentence.question) == ("dog is heard", "The dog barks twice")
    assert (listed.sound, sentence.sound) == ("dog", None)


def test_reasoning_in_circles_has_few_claims_and_none_has_none() -> None:
    assert len(claims_of(" ".join(f"Bell number {i} rings." for i in range(500)))) == MAX_CLAIMS
    assert claims_of(None) == []
    assert sentences("A dog. **B**\n\n  2) c") == ["A dog.", "B", "c"]


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ([], NO_CLAIMS),
        ([ACCEPT, ACCEPT], ACCEPT),
        ([ACCEPT, REJECT], REJECT),
        ([UNCLEAR, REJECT], REJECT),
        ([ACCEPT, UNCLEAR], UNCLEAR),
    ],
)
def test_a_trace_is_rejected_for_one_false_claim(verdicts: list[str], verdict: str) -> None:
    assert verdict_of_claims("I hear it.", verdicts) == verdict
    assert verdict_of_claims(None, verdicts) == NO_REASONING


@pytest.mark.parametrize(
    ("claimed", "heard", "true"),
    [
        (["dog", "bell"], ["dog", "bell"], [True, True]),
        (["dog", "bell"], ["bell"], [False, True]),
        (["dog", "dog", "bell"], ["dog", "bell"], [True, False, True]),
        (["bell", "dog"], ["dog", "bell"], [True, False]),  # one of them is out of order
        (["dog"], [], [False]),
        ([], ["dog"], []),
    ],
)
def test_claimed_sounds_are_looked_up_in_order(claimed: list[str], heard: list[str], true: list[bool]) -> None:
    found = [verdict == ACCEPT for verdict in looked_up(claimed, heard)]
    assert sum(found) == sum(true) and len(found) == len(true)
    if claimed != ["bell", "dog"] and len(set(claimed)) == len(claimed):
        assert found == true


def test_notes_are_the_true_sounds_or_else_the_true_sentences() -> None:
    listed = [Claim("dog", "dog"), Claim("bell", "bell"), Claim("The bell rings twice")]
    assert notes_of(listed, [REJECT, ACCEPT, ACCEPT]) == "bell"
    assert notes_of(listed, [REJECT, REJECT, ACCEPT]) == "The bell rings twice"
    assert notes_of(listed, [REJECT, UNCLEAR, REJECT]) is None
