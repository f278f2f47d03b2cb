r"""
How a checker's reply becomes a verdict: `accept`, `reject`, or the reason why it is neither.

Accepting a trace that claims a sound which is not there is the worse error of the two. So a reply is an acceptance only when it
says yes, nothing in it takes that back (a negation, an exception, a doubt, a part of the sounds, a question), and what follows
the yes is a description of what is heard. All patterns run in linear time: replies are other people's texts.
"""

import re
import unicodedata

from sightsound.data.schema import REFUSED
from sightsound.method.prompts import heard_sounds
from sightsound.method.selection import ACCEPT, CUT, NO_CLAIMS, NO_REASONING, REJECT, UNCLEAR
from sightsound.method.verdict_reading.words import (
    DOUBTS,
    EXCEPTIONS,
    FAULTS_OF_TRACES,
    FRAUDULENT,
    NEGATIONS,
    PARTS,
    REFUSALS,
    SENSED,
    SOUND_FILE,
    SOUND_VERBS,
)


_REASONING_NAMES = r"(?:think|thinking|thoughts?|reasoning|analysis|reflection|rationale|scratchpad)"
_REASONING_OPEN = re.compile(rf"<{_REASONING_NAMES}>", re.IGNORECASE)
_REASONING_CLOSE = re.compile(rf"</{_REASONING_NAMES}>", re.IGNORECASE)
# A tag that holds the verdict becomes words; every other tag only ends a line.
_VERDICT_TAG = re.compile(r"<(?:final[_ ]?)?(?:answer|verdict|conclusion|result|decision|judge?ment)>|\\boxed\{")
_TAG = re.compile(r"</?[\w|/ ]{1,40}>|\\(?:text|textbf|mathrm|mathbf)\{")
_MARKUP = re.compile(r'["`*#>{}\[\]()$]+')
_QUOTING = re.compile(r"(?<!\w)'|'(?!\w)")  # not an apostrophe

# Checkers repeat the question (`prompts.CHECKER_YES_NO`) before they answer it.
_ECHOED_QUESTION = re.compile(r"^.*?is every sound that the listener claims really heard\?", re.DOTALL)
_ECHOED_INSTRUCTION = re.compile(r"\b(?:(?:please )?answer (?:with )?)?yes (?:or|/) no\b(?!\?)|\byes ?/ ?no\b")

# Double negations that affirm. They are taken out before negations are looked for.
_FAULTS = (
    r"(?:hallucinations?|fabrications?|inventions?|discrepanc(?:y|ies)|errors?|mistakes?|contradictions?|exceptions?"
    rf"|inaccurac(?:y|ies)|{FRAUDULENT} (?:sounds?|claims?))"
)
_EMPTY = r"(?=\s*(?:$|[.,;}\n]))"
_AFFIRMING = re.compile(
    r"\b(?:nothing|none|no|not one|not a single one|not a single)(?: of (?:them|these|those|the))?"
    r"(?: claimed| mentioned| listed)?(?: sounds?| claims?)?(?: (?:is|are|was|were|has been|have been))? "
    rf"{FRAUDULENT}\b(?! (?:sounds?|claims?))"
    rf"|\b(?:(?:there (?:is|are|was|were)|i (?:find|found|see|detect)) )?no {_FAULTS}\b(?! of\b)"
    rf"|\bwithout (?:any |an? )?(?:{_FAULTS}|doubt|question|hesitation)\b|\bbeyond (?:any |a )?(?:reasonable )?doubt\b"
    rf"|\b{FRAUDULENT}(?: sounds?| claims?)?: (?:none|nothing|null|\[ ?\]){_EMPTY}"
    rf"|\b(?:hallucinations?|errors?): (?:none|no|false|null|\[ ?\]){_EMPTY}|\bnot only\b|\bbut(?= also\b)"
)

# What takes a yes back, or makes it one to a part of the sounds.
_OBJECTION = re.compile(
    rf"\b(?:{'|'.join((NEGATIONS, EXCEPTIONS, PARTS, DOUBTS, FAULTS_OF_TRACES))})\b"
    r"|-ish\b|\byes (?:or|for|to|about|regarding|concerning|when|where|with|in the case)\b"
    r"|\byes\W+(?:the )?(?:first|second|third|last)\b|\byes\W+(?:as )?(?:for|to|regarding|concerning|about|when|where)\b"
    r"|\byes\W*\.\.|\d ?/ ?\d|(?<!100)(?<!100 )%|\?|[❌✗✘👎🚫]"
)
# Words of another alphabet could take a yes back unseen.
_FOREIGN = re.compile(r"[^\W\d_a-z]")

_IT_IS = r"(?:that|this|it)(?:'s| is)"
_YES_WORDS = (
    r"(?:yes|yeah|yep|correct|true|affirmative|confirmed|accept(?:ed)?|absolutely|definitely|certainly|indeed|of course"
    rf"|{_IT_IS} (?:correct|true|right|accurate|the case))(?!\s+not\b)"
)
_NO_WORDS = (
    r"(?:no(?!\s+\w)|nope|nah|false|incorrect|untrue|wrong|inaccurate|reject(?:ed)?|negative"
    rf"|{_IT_IS} (?:not (?:correct|true|right|accurate|the case)|false|incorrect|untrue|wrong)"
    r"|(?:(?:absolutely|definitely|certainly|of course) )?not (?:correct|true|right|accurate|quite|entirely|completely|fully"
    r"|exactly|all|every|everything|at all)(?! (?:sure|certain|clear))"
    r"|(?:absolutely|definitely|certainly|of course) not|none of (?:them|these|the(?: \w+)? sounds)"
    r"|no way|i (?:don't|do not) think so)"
)
_VERDICT_WORD = rf"(?:(?P<yes>{_YES_WORDS})|(?P<no>{_NO_WORDS}))\b(?!\s*[?/]|[-']\w| me\b)"
# "The answer is yes", "Verdict: NO", "Therefore, no", "so yes": the last of these is the reply's conclusion.
_CONCLUSION = re.compile(
    r"(?:\b(?:answer|verdict|conclusion|result|decision|judge?ment|response)(?: (?:to|for|of) [^.:;?\n]{1,80}?)?"
    r"(?: is| would be| should be| must be| has to be| ?:| =)[\s:]*(?:therefore |thus |then |a clear |clearly |simply |a )?"
    r"|\b(?:therefore|thus|hence|so|consequently|accordingly|overall|finally|ultimately|in conclusion|in short|in summary"
    r"|to conclude|to summari[sz]e|i (?:have to )?(?:say|answer|conclude))[,:]?\s+(?:it is |it's )?(?:a )?)" + _VERDICT_WORD
)
# A verdict that begins a sentence, a line or what follows a label ("Dog: yes").
_STATED = re.compile(
    r"(?:^|[.!;:?\n]|(?<=\s)[-–—](?=[\s-]))[\W_]{0,9}"
    r"(?:(?:sure|right|well|oh|okay|ok|hmm*|wait|actually|unfortunately|sadly|sorry)[,.!:]? )?" + _VERDICT_WORD
)

_ALL = r"(?:all|every|everything|each|both)"
_ADVERBS = r"(?:(?:also|indeed|clearly|really|actually|all|both|definitely|certainly|in fact|easily|very|quite|well|fully) )*"
# A whole reply in other words: "All of them are heard.", "I can confirm that every sound is present."
_AFFIRMED = re.compile(
    rf"\b{_ALL}\b[^.;\n]{{0,120}}?\b(?:is|are|was|were|be)(?: \w+){{0,2}}? {SENSED}\b"
    rf"|\bi (?:can |could |do )?{_ADVERBS}(?:hear|heard|confirm|detect|perceive) (?:that )?{_ALL}\b"
    r"|\b(?:listener|claims?|descriptions?|statements?|account|caption) (?:is|are)"
    rf" {_ADVERBS}(?:correct|right|accurate|true|confirmed|supported)\b"
    r"|\b(?:audio|clip|recording) (?:matches|supports|confirms)\b|\b(?:claims?|sounds?|descriptions?) (?:all )?match\b"
    r"|\bi agree\b(?! to)"
)
# A whole reply in other words: "There is no bell.", "The bell cannot be heard."
_DENIED = re.compile(
    r"\bthere(?:'s no| (?:is|are|was|were)(?:n't| not?))\b|\b(?:cannot|can't|can not|could not|couldn't)(?: \w+)? be heard\b"
    r"|\b(?:is|are|was|were)(?:n't| not)(?: \w+)? (?:heard|audible|present|there|real)\b"
    r"|\b(?:is|are) (?:missing|absent|inaudible|hallucinated)\b"
    r"|\b(?:i|we) (?:(?:do|did|can|could)(?:n't| not)|cannot) (?:\w+ )?(?:hear|detect)\b"
    r"|^\W*no (?!doubt|idea|problem|worries|clue|way|sounds? (?:is|are)|hallucin)\w+(?: \w+){0,3}? (?:is|are|can be|was|were)\b"
    r"|\b(?:listener|claims?|descriptions?|statements?) (?:is|are) (?:\w+ )?"
    r"(?:wrong|incorrect|inaccurate|false|not (?:right|correct|accurate|true))\b"
)
_UNDECIDED = re.compile(
    r"\b(?:unsure|uncertain|unclear|not (?:\w+ )?(?:sure|certain)|maybe|perhaps|hard to|difficult to"
    r"|(?:cannot|can't|could not|couldn't) (?:tell|determine|decide|say|judge|verify|confirm))\b|\?"
)

# What may follow a yes, clause by clause: who hears, that a sound is there, when it comes, or what the clip is made of.
_CLAUSE_END = re.compile(r"\.(?!\d)|[,;!]|(?<=\s)[-–—]+(?=\s)")
_LINK = re.compile(r"^(?:(?:and|then|so|also|because|since|next|later|finally|first|second|here|therefore)\b[\W_]*)+")
_COPULA = re.compile(r"\b(?:is|are|was|were|be|'s)\b\s*")
_PLACE = (
    r"(?:at|from the (?:start|beginning)|throughout|after|before|during|near|within|around|towards?|over|along"
    r"|all along|followed by|preceded by"
    r"|together|twice|once|simultaneously"
    r"|in the (?:background|foreground|beginning|end|middle|start|audio|clip|recording|order|distance))"
)
_HEARS = re.compile(
    rf"i (?:can |could |do )?{_ADVERBS}(?:hear|heard|detect|perceive|recogni[sz]e|identify|notice|confirm|agree)\b"
)
_THERE = re.compile(rf"{_ADVERBS}(?!there (?:is|are|was|were)\b)(?:{SENSED}|{_PLACE}|clear|loud|distinct|right|\w+ing)\b")
_SUBJECT = re.compile(r"(?:an?|the|two|three|four|someone|somebody|people)\b")
_SOUNDS = re.compile(rf"\b(?:{SOUND_VERBS}|\w+ing)\b")
_THINGS = re.compile(
    r"(?:there (?:is|are|was|were) )?an? (?:\w+ ){0,2}\w+(?:,? (?:and|then|and then) (?:an? )?(?:\w+ ){0,2}\w+)*"
)
_AGREES = re.compile(
    rf"(?:{_ADVERBS}(?:it|they|these|those|this|that) (?:does|do|is|are|did|was|were|matches|match)"
    rf"|(?:that|this|it)(?:'s| is) {_ADVERBS}(?:right|{SENSED})"
    r"|indeed|exactly|absolutely|definitely|certainly|clearly|really|unmistakably|of course|of them|[\d.]+|100 ?%|yes"
    r"|i(?:'m| am) (?:\w+ )?(?:sure|certain|confident|positive)(?: (?:of|about) (?:it|that|this))?"
    r"|(?:exactly |just )?(?:as|like) (?:described|claimed|mentioned|listed|stated|(?:he|she|they|the listener) \w+))"
)
# Clauses about the question, the listener or the talk are no description of the clip.
_TALK = re.compile(
    r"\b(?:listener|user|you|your|we|us|me|my|please|question|prompt|task|claim\w*|mention\w*|wrote|writ\w+|said|says?|ask\w*"
    r"|answer\w*|check\w*|help|continue|ready|understand|will|shall|let)\b"
)

_CANNOT = r"(?:cannot|can't|can not|unable to|not able to|not capable of|(?:do not|don't) have the (?:ability|capability) to)"
_REFUSED = re.compile(
    rf"\b{_CANNOT} (?:\w+ )?(?:directly )?(?:listen\w*|hear\w*|process\w*|analy[sz]\w+|access\w*|play\w*|open|perceive|evaluate"
    rf"|verify)(?: to)? {SOUND_FILE}(?! (?:of|that))\b|\b{_CANNOT} (?:listen(?:ing)?\b(?! for)|(?:assist|help|comply)\b"
    rf"|(?:do|answer|fulfil|provide|discuss|continue)(?: with)? (?:that|this|it)\b)|{REFUSALS}"
)

_HEDGED_TRANSCRIPT = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|may be|could be|unsure|uncertain|not sure|unclear|something like|sounds like)"
    r"\b|\?"
)


def _plain(text: str) -> str:
    """Lower-cased, with straight quotes and plain spaces; tags as they were."""
    folded = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return folded.lower().replace("_", " ").strip()


def _without_reasoning(text: str) -> str:
    """What a reply says once its reasoning has ended: nothing where it never ends or nothing follows."""
    opened = _REASONING_OPEN.search(text)
    if opened is not None and re.search(r"\w", text[: opened.start()]):
        return text  # the reply came first; what follows it must not take it back
    ends = [found.end() for found in _REASONING_CLOSE.finditer(text)]
    if not ends:
        return "" if opened is not None else text
    return text[ends[-1] :]


def _words(text: str) -> str:
    """A reply without reasoning, tags, markup and what it repeats of the question."""
    said = _TAG.sub("\n", _VERDICT_TAG.sub("\nanswer: ", _without_reasoning(text)))
    # First the double negations: an empty list is one of their signs.
    said = _AFFIRMING.sub(" ", said.replace('"', ""))
    said = _QUOTING.sub(" ", _MARKUP.sub(" ", said))
    said = _ECHOED_INSTRUCTION.sub(" ", _ECHOED_QUESTION.sub(" ", said))
    return re.sub(r"[^\S\n]+", " ", said).strip()


def _spoken(said: str) -> tuple[str | None, str]:
    """
    The verdict that a reply states, and what follows it: its last conclusion, else what its sentences begin with.

    Where it states none, that is None and the whole reply.
    """
    stated = list(_STATED.finditer(said))
    concluded = list(_CONCLUSION.finditer(said))
    found = concluded[-1] if concluded else stated[0] if stated else None
    if found is None:
        return None, said
    after = said[found.end() :]
    verdicts = [ACCEPT if each["yes"] else REJECT for each in stated]
    if concluded:
        verdict = ACCEPT if found["yes"] else REJECT
        later = {ACCEPT if each["yes"] else REJECT for each in stated if each.start() >= found.end()}
        return verdict if later <= {verdict} else UNCLEAR, after
    if len(set(verdicts)) == 1:
        return verdicts[0], after
    return REJECT if verdicts[-1] == REJECT else UNCLEAR, after


def _describes(clause: str) -> bool:
    """Whether a clause after a yes says no more than what is heard, and that it is."""
    clause = _LINK.sub("", clause.strip(" \t:'-–—"))
    if not clause or clause.endswith(":") or _AGREES.fullmatch(clause) or _THERE.match(clause) or _AFFIRMED.search(clause):
        return True
    if _HEARS.match(clause) or re.match(rf"{_ALL}\b(?! \w+s? (?:claim|mention))", clause):
        return True
    if _TALK.search(clause) or re.search(r"\b(?:has|have|had|what|which|who|whatever)\b", clause):
        return False
    if _THINGS.fullmatch(clause) or (clause.startswith("there ") and _SOUNDS.search(clause)):
        return True
    linked = [_THERE.match(clause, found.end()) is not None for found in _COPULA.finditer(clause)]
    return all(linked) if linked else _SUBJECT.match(clause) is not None and _SOUNDS.search(clause) is not None


def _is_description(said: str) -> bool:
    for line in said.split("\n"):
        *labels, rest = line.split(":")  # "Reasoning: ...", "1. Dog: heard"
        if any(len(label.split()) > 6 for label in labels) or not all(map(_describes, _CLAUSE_END.split(rest))):
            return False
    return True


def parse_yes_no(text: str) -> str:
    """
    Read the reply to "Is every sound that the listener claims really heard? Answer yes or no."

    Args:
        text (`str`): The checker's whole reply.

    Returns:
        `str`: `accept` for a clear acceptance alone; `reject`; `refused` where the checker does not do what it was asked;
        `unclear` for everything else.
    """
    plain = _plain(text)
    if _REFUSED.search(_without_reasoning(plain)):
        return REFUSED
    said = _words(plain)
    verdict, after = _spoken(said)
    if verdict == REJECT:
        return REJECT
    is_affirmed = _AFFIRMED.search(said) is not None
    if verdict == ACCEPT or (verdict is None and is_affirmed and not plain.startswith("no")):
        is_doubtful = _OBJECTION.search(said) or _FOREIGN.search(said) or not _is_description(after)
        return UNCLEAR if is_doubtful else ACCEPT
    if verdict is None and _DENIED.search(said) and not is_affirmed and not _UNDECIDED.search(said):
        return REJECT
    return UNCLEAR


def parse_cut_yes_no(text: str) -> str:
    """The same for a reply that the token limit cut: a yes stands only where nothing has begun to follow it."""
    verdict = parse_yes_no(text)
    is_bare = len(_words(_plain(text)).split()) <= 1
    return verdict if verdict == REJECT or (verdict == ACCEPT and is_bare) else CUT


def compare_with_transcript(think: str | None, transcript: str) -> str:
    """
    Whether a trace claims exactly the sounds that the checker lists, in the same order.

    Args:
        think (`str`, *optional*): The reasoning of the trace.
        transcript (`str`): What the checker says that it hears.

    Returns:
        `str`: `accept` or `reject`; `no_reasoning` or `no_claims` where the trace is at fault, `refused` or `unclear` where
        the transcript is.
    """
    if think is None:
        return NO_REASONING
    claimed = heard_sounds(think)
    if claimed is None:
        return NO_CLAIMS
    said = _without_reasoning(unicodedata.normalize("NFKC", transcript))
    if _REFUSED.search(_plain(said)):
        return REFUSED
    heard = heard_sounds(said)
    if heard is None or _HEDGED_TRANSCRIPT.search(said.lower()):
        return UNCLEAR
    return ACCEPT if claimed == heard else REJECT
