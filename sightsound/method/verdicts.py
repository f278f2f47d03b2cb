"""
How a checker's reply becomes the verdict on a trace: `accept`, `reject`, or the reason why it is neither.

A trace is rejected in one of four functions, one for each `verdict_mode`:

- `parse_yes_no`: the checker was asked whether every sound is heard, and says no;
- `claims.verdict_of_claims`: the checker was asked about each claim with `parse_yes_no`, and says no to one;
- `compare_with_transcript`: the checker lists other sounds than the trace claims;
- `verdict_of_probability`: a trained verifier gives less than its threshold.

What becomes of a question whose traces are rejected is decided in `selection.py` (`FILTERS`).

Accepting a trace that claims a sound which is not there is the worse of the two errors. So a reply accepts only when it says
yes, when nothing in it takes the yes back (a negation, an exception, a doubt, a part of the sounds, a question), and when what
follows the yes describes what is heard. `verdict_reading/` holds the patterns.
"""

import unicodedata

from sightsound.data import schema
from sightsound.method.prompts import heard_sounds
from sightsound.method.verdict_reading import replies


ACCEPT, REJECT = "accept", "reject"
# Why a trace has no verdict. Where the checker's request failed, it is the request's outcome (`schema.REFUSED` and others).
NO_REASONING, NO_CLAIMS, UNCLEAR, CUT = "no_reasoning", "no_claims", "unclear", "cut"
INVALID = "invalid"  # in files of earlier versions, which recorded no reason

# The values of the column `verdict`, as the card and the page explain them. None is a trace that was not checked yet.
VERDICTS = {
    ACCEPT: "the checker heard every sound that the trace claims",
    REJECT: "the checker did not hear every sound that the trace claims, or not in that order",
    NO_REASONING: "no verdict: the trace has no reasoning to check",
    NO_CLAIMS: "no verdict: the reasoning does not list what is heard, so there is nothing to compare",
    UNCLEAR: "no verdict: the checker's reply is neither a clear yes nor a clear no",
    CUT: "no verdict: the checker's reply was cut by its token limit",
    schema.REFUSED: "no verdict: the checker or its server refused",
    schema.CORRUPT_MEDIA: "no verdict: the clip cannot be decoded",
    schema.BAD_RESPONSE: "no verdict: the server sent no chat completion",
    schema.SERVER_ERROR: "no verdict: the server failed at this request",
    INVALID: "no verdict: the reason was not recorded",
    None: "not checked yet",
}


def parse_yes_no(text: str) -> str:
    """
    The verdict in a reply to "Is every sound that the listener claims really heard? Answer yes or no."

    Args:
        text (`str`): The checker's whole reply.

    Returns:
        `str`: `accept` for a clear acceptance alone; `reject`; `refused` where the checker does not do its task; `unclear` for
        everything else.
    """
    plain = replies.folded(text)
    if replies.REFUSAL.search(replies.without_reasoning(plain)):
        return schema.REFUSED
    words = replies.words_of_reply(plain)
    verdict, rest = _stated_verdict(words)
    if verdict == REJECT:
        return REJECT
    is_affirmed = replies.AFFIRMED.search(words) is not None
    if verdict == ACCEPT or (verdict is None and is_affirmed and not plain.startswith("no")):
        objected = replies.OBJECTION.search(words) or replies.FOREIGN_LETTER.search(words)
        return UNCLEAR if objected or not replies.is_description(rest) else ACCEPT
    if verdict is None and replies.DENIED.search(words) and not is_affirmed and not replies.UNDECIDED.search(words):
        return REJECT
    return UNCLEAR


def _stated_verdict(words: str) -> tuple[str | None, str]:
    """
    The verdict that a reply states, and the text after it: its last conclusion, or else what its sentences begin with.

    A reply that states none gives None and the whole reply.
    """
    stated = list(replies.STATED.finditer(words))
    concluded = list(replies.CONCLUSION.finditer(words))
    found = concluded[-1] if concluded else stated[0] if stated else None
    if found is None:
        return None, words
    rest = words[found.end() :]
    verdicts = [ACCEPT if each["yes"] else REJECT for each in stated]
    if concluded:
        verdict = ACCEPT if found["yes"] else REJECT
        later = {ACCEPT if each["yes"] else REJECT for each in stated if each.start() >= found.end()}
        return verdict if later <= {verdict} else UNCLEAR, rest
    if len(set(verdicts)) == 1:
        return verdicts[0], rest
    return REJECT if verdicts[-1] == REJECT else UNCLEAR, rest


def parse_cut_yes_no(text: str) -> str:
    """The same for a reply that the token limit cut: a yes counts only where no further word follows it."""
    verdict = parse_yes_no(text)
    is_bare = len(replies.words_of_reply(replies.folded(text)).split()) <= 1
    return verdict if verdict == REJECT or (verdict == ACCEPT and is_bare) else CUT


def compare_with_transcript(think: str | None, transcript: str) -> str:
    """
    Whether a trace claims exactly the sounds that the checker lists, in the same order.

    Args:
        think (`str`, *optional*): The reasoning of the trace.
        transcript (`str`): The checker's list of the sounds that it hears.

    Returns:
        `str`: `accept` or `reject`; `no_reasoning` or `no_claims` where the trace is at fault, `refused` or `unclear` where
        the transcript is.
    """
    if think is None:
        return NO_REASONING
    claimed = heard_sounds(think)
    if claimed is None:
        return NO_CLAIMS
    listed = replies.without_reasoning(unicodedata.normalize("NFKC", transcript))
    if replies.REFUSAL.search(replies.folded(listed)):
        return schema.REFUSED
    heard = heard_sounds(listed)
    if heard is None or replies.HEDGED_TRANSCRIPT.search(listed.lower()):
        return UNCLEAR
    return ACCEPT if claimed == heard else REJECT


def verdict_of_probability(p: float | None, threshold: float) -> str:
    """The verdict of a trained verifier, from its probability `p` that every claimed sound is heard; None is unclear."""
    return UNCLEAR if p is None else ACCEPT if p >= threshold else REJECT
