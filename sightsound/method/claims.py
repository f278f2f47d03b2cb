"""
The claims of a trace about its sounds, one by one.

`claims_of` splits the reasoning of a trace: the sentence "I hear a dog, then a bell." gives a claim per sound, and every other
sentence that speaks of sound is a claim as a whole. A checker says yes or no to each (`verdicts.py --verdict_mode claims`), or
lists what it hears, and each sound is looked up in the list (`transcript_claims`). A trace that is rejected may then be written
again from the claims that are true, `notes_of`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sightsound.method.prompts import heard_sounds
from sightsound.method.verdicts import ACCEPT, NO_CLAIMS, NO_REASONING, REJECT


class Claim(NamedTuple):
    """
    One claim.

    Args:
        text (`str`): As it stands in the ledger.
        sound (`str`, *optional*): The sound, where the claim is one of a list ("I hear ...").
    """

    text: str
    sound: str | None = None

    @property
    def question(self) -> str:
        """The claim as a sentence that is true or false."""
        return self.text if self.sound is None else f"{self.sound} is heard"


# A sentence ends at a line break, or at a mark that is followed by a space and a capital or the number of a list: not in
# "2.5 s", "e.g. a dog" or "approx. 2 s". Marks of lists and headings are taken off the beginning.
_SENTENCE_END = re.compile(r"\s*\n+\s*|(?<=[.!?])[\"')\]*_]*\s+(?=[\"'(\[*_]*(?:[A-Z]|\d{1,2}[.)]\s))")
_LIST_MARK = re.compile(r"^(?:[-*•#>]+|\(?\d{1,2}[.)]|(?:Step )?\d{1,2}:)\s+")
# What a sentence about sound has: hearing, a word for sound, or a verb of something that sounds.
_OF_SOUND = re.compile(
    r"\b(?:hear[ds]?|hearing|audible|inaudible|listen\w*|sounds?|sounded|sounding|noises?|noisy|silen(?:ce|t)|quiet\w*|loud\w*|audio|"
    r"acoustic\w*|pitch\w*|tones?|tonal|timbre|melod\w+|harmon\w+|chords?|rhythm\w*|beats?|tempo|percussi\w+|music\w*|songs?|sing\w*|"
    r"sung|vocals?|voices?|speech|speak\w*|spoken|talk\w*|conversation\w*|shout\w*|scream\w*|yell\w*|whisper\w*|laugh\w*|cry|crying|"
    r"cough\w*|clap\w*|applau\w+|bark\w*|meow\w*|chirp\w*|growl\w*|howl\w*|roar\w*|moo\w*|buzz\w*|hum(?:s|med|ming)?|hiss\w*|"
    r"ring(?:s|ing)?|rang|chim\w+|beep\w*|siren\w*|horn\w*|honk\w*|whistl\w+|engine\w*|rumbl\w+|thump\w*|thud\w*|bang\w*|crash\w*|"
    r"crack\w*|click\w*|tick\w*|tap(?:s|ping|ped)?|knock\w*|rustl\w+|splash\w*|drip\w*|creak\w*|squeak\w*|squeal\w*|footsteps?|echo\w*)\b",
    re.IGNORECASE,
)
# About the task, not about the audio: "Option A mentions a violin.", "So the answer is B."
_OF_TASK = re.compile(
    r"\b(?:questions?|options?|choices?|answers?|correct|eliminate\w*)\b|^\W*(?:[A-D][.):]|</?\w+>)", re.IGNORECASE
)
# A question, a condition or a plan claims nothing: "Let me listen again.", "If there were a dog, ..."
_NO_CLAIM = re.compile(
    r"\?\W*$|^\W*(?:let(?:'s| me| us)|if|i (?:need|have|should|will|want)|we (?:need|have|should))\b", re.IGNORECASE
)
_I_HEAR = re.compile(r"\bI (?:can )?hear\b", re.IGNORECASE)

MAX_CLAIMS = 40  # of one trace: reasoning that repeats itself would cost one request per sentence


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the marks of lists and without emphasis."""
    parts = (_LIST_MARK.sub("", part.strip()) for part in _SENTENCE_END.split(text))
    return [plain for part in parts if (plain := " ".join(part.replace("**", "").replace("__", "").split()))]


def claims_of(think: str | None) -> list[Claim]:
    """
    The claims of a reasoning about what is heard, in order and each once. After `MAX_CLAIMS`, further ones are left out, and
    nobody verifies them.

    Returns:
        `list[Claim]`: `[]` without reasoning, or without a claim.
    """
    found: dict[str, Claim] = {}
    for sentence in sentences(think or ""):
        listed = heard_sounds(sentence) if _I_HEAR.search(sentence) else None
        if listed:
            claims = [Claim(sound, sound) for sound in listed]
        elif _OF_SOUND.search(sentence) and not _OF_TASK.search(sentence) and not _NO_CLAIM.search(sentence):
            claims = [Claim(sentence.rstrip(".!"))]
        else:
            continue
        for claim in claims:
            found.setdefault(claim.question.casefold(), claim)
    return list(found.values())[:MAX_CLAIMS]


def verdict_of_claims(think: str | None, verdicts: Sequence[str]) -> str:
    """
    The verdict on a trace.

    Args:
        think (`str`, *optional*): Its reasoning.
        verdicts (`Sequence[str]`): Those of its claims.

    Returns:
        `str`: `reject` if a claim is false, `accept` if all are true, otherwise the reason of the first without a verdict.
    """
    if think is None:
        return NO_REASONING
    if not verdicts:
        return NO_CLAIMS
    if REJECT in verdicts:
        return REJECT
    return next((verdict for verdict in verdicts if verdict != ACCEPT), ACCEPT)


def looked_up(claimed: Sequence[str], heard: Sequence[str]) -> list[str]:
    """
    The verdict on each claimed sound, given the sounds that the checker lists.

    Both are in order, and a sound may be claimed twice. The longest run of sounds that both have is true, then, before and
    after it, the longest run of the rest. This can call a true claim false: in "a, b, a" against "b, c, a", only one "a" is
    true.
    """
    from difflib import SequenceMatcher

    true = {
        block.a + i
        for block in SequenceMatcher(None, claimed, heard, autojunk=False).get_matching_blocks()
        for i in range(block.size)
    }
    return [ACCEPT if i in true else REJECT for i in range(len(claimed))]


def notes_of(claims: Sequence[Claim], verdicts: Sequence[str]) -> str | None:
    """
    The true claims of a trace, from which it can be written again: the sounds of its list, or without a list its sentences.

    Args:
        claims (`Sequence[Claim]`), verdicts (`Sequence[str]`): Of a trace, one verdict each.

    Returns:
        `str` or `None`: None where no claim is true.
    """
    true = [claim for claim, verdict in zip(claims, verdicts, strict=True) if verdict == ACCEPT]
    if listed := [claim.sound for claim in true if claim.sound is not None]:
        return ", then ".join(listed)
    return "; ".join(claim.text for claim in true) or None
