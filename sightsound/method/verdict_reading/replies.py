"""
The parts of a checker's reply: its words without reasoning and markup, the patterns of what it states, and what may follow.

All patterns match lower-cased text and run in linear time, since replies come from other people's models.
"""

import re
import unicodedata

from sightsound.method.answer_reading.sections import THINKING_TAGS
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


_REASONING_OPEN = re.compile(rf"<(?:{THINKING_TAGS})\w*>", re.IGNORECASE)
_REASONING_CLOSE = re.compile(rf"</(?:{THINKING_TAGS})\w*>", re.IGNORECASE)
# A tag that holds the verdict becomes words; every other tag only ends a line.
_VERDICT_TAG = re.compile(r"<(?:final[_ ]?)?(?:answer|verdict|conclusion|result|decision|judge?ment)>|\\boxed\{")
_TAG = re.compile(r"</?[\w|/ ]{1,40}>|\\(?:text|textbf|mathrm|mathbf)\{")
_MARKUP = re.compile(r'["`*#>{}\[\]()$]+')
_QUOTING = re.compile(r"(?<!\w)'|'(?!\w)")  # not an apostrophe

# Some checkers repeat the question (`prompt_texts/checker_yes_no.txt`) before they answer it.
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
OBJECTION = re.compile(
    rf"\b(?:{'|'.join((NEGATIONS, EXCEPTIONS, PARTS, DOUBTS, FAULTS_OF_TRACES))})\b"
    r"|-ish\b|\byes (?:or|for|to|about|regarding|concerning|when|where|with|in the case)\b"
    r"|\byes\W+(?:the )?(?:first|second|third|last)\b|\byes\W+(?:as )?(?:for|to|regarding|concerning|about|when|where)\b"
    r"|\byes\W*\.\.|\d ?/ ?\d|(?<!100)(?<!100 )%|\?|[❌✗✘👎🚫]"
)
# A word in another alphabet may take a yes back, and no list here would show it.
FOREIGN_LETTER = re.compile(r"[^\W\d_a-z]")

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
CONCLUSION = re.compile(
    r"(?:\b(?:answer|verdict|conclusion|result|decision|judge?ment|response)(?: (?:to|for|of) [^.:;?\n]{1,80}?)?"
    r"(?: is| would be| should be| must be| has to be| ?:| =)[\s:]*(?:therefore |thus |then |a clear |clearly |simply |a )?"
    r"|\b(?:therefore|thus|hence|so|consequently|accordingly|overall|finally|ultimately|in conclusion|in short|in summary"
    r"|to conclude|to summari[sz]e|i (?:have to )?(?:say|answer|conclude))[,:]?\s+(?:it is |it's )?(?:a )?)" + _VERDICT_WORD
)
# A verdict that begins a sentence, a line or what follows a label ("Dog: yes").
STATED = re.compile(
    r"(?:^|[.!;:?\n]|(?<=\s)[-–—](?=[\s-]))[\W_]{0,9}"
    r"(?:(?:sure|right|well|oh|okay|ok|hmm*|wait|actually|unfortunately|sadly|sorry)[,.!:]? )?" + _VERDICT_WORD
)

_ALL = r"(?:all|every|everything|each|both)"
_ADVERBS = r"(?:(?:also|indeed|clearly|really|actually|all|both|definitely|certainly|in fact|easily|very|quite|well|fully) )*"
# A whole reply in other words: "All of them are heard.", "I can confirm that every sound is present."
AFFIRMED = re.compile(
    rf"\b{_ALL}\b[^.;\n]{{0,120}}?\b(?:is|are|was|were|be)(?: \w+){{0,2}}? {SENSED}\b"
    rf"|\bi (?:can |could |do )?{_ADVERBS}(?:hear|heard|confirm|detect|perceive) (?:that )?{_ALL}\b"
    r"|\b(?:listener|claims?|descriptions?|statements?|account|caption) (?:is|are)"
    rf" {_ADVERBS}(?:correct|right|accurate|true|confirmed|supported)\b"
    r"|\b(?:audio|clip|recording) (?:matches|supports|confirms)\b|\b(?:claims?|sounds?|descriptions?) (?:all )?match\b"
    r"|\bi agree\b(?! to)"
)
# A whole reply in other words: "There is no bell.", "The bell cannot be heard."
DENIED = re.compile(
    r"\bthere(?:'s no| (?:is|are|was|were)(?:n't| not?))\b|\b(?:cannot|can't|can not|could not|couldn't)(?: \w+)? be heard\b"
    r"|\b(?:is|are|was|were)(?:n't| not)(?: \w+)? (?:heard|audible|present|there|real)\b"
    r"|\b(?:is|are) (?:missing|absent|inaudible|hallucinated)\b"
    r"|\b(?:i|we) (?:(?:do|did|can|could)(?:n't| not)|cannot) (?:\w+ )?(?:hear|detect)\b"
    r"|^\W*no (?!doubt|idea|problem|worries|clue|way|sounds? (?:is|are)|hallucin)\w+(?: \w+){0,3}? (?:is|are|can be|was|were)\b"
    r"|\b(?:listener|claims?|descriptions?|statements?) (?:is|are) (?:\w+ )?"
    r"(?:wrong|incorrect|inaccurate|false|not (?:right|correct|accurate|true))\b"
)
UNDECIDED = re.compile(
    r"\b(?:unsure|uncertain|unclear|not (?:\w+ )?(?:sure|certain)|maybe|perhaps|hard to|difficult to"
    r"|(?:cannot|can't|could not|couldn't) (?:tell|determine|decide|say|judge|verify|confirm))\b|\?"
)

# Clauses that may follow a yes. Each says who hears it, that a sound is there, when it comes, or what is in the clip.
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
# A clause about the question, the listener or the conversation is no description of the clip.
_TALK = re.compile(
    r"\b(?:listener|user|you|your|we|us|me|my|please|question|prompt|task|claim\w*|mention\w*|wrote|writ\w+|said|says?|ask\w*"
    r"|answer\w*|check\w*|help|continue|ready|understand|will|shall|let)\b"
)

_CANNOT = r"(?:cannot|can't|can not|unable to|not able to|not capable of|(?:do not|don't) have the (?:ability|capability) to)"
REFUSAL = re.compile(
    rf"\b{_CANNOT} (?:\w+ )?(?:directly )?(?:listen\w*|hear\w*|process\w*|analy[sz]\w+|access\w*|play\w*|open|perceive|evaluate"
    rf"|verify)(?: to)? {SOUND_FILE}(?! (?:of|that))\b|\b{_CANNOT} (?:listen(?:ing)?\b(?! for)|(?:assist|help|comply)\b"
    rf"|(?:do|answer|fulfil|provide|discuss|continue)(?: with)? (?:that|this|it)\b)|{REFUSALS}"
)

HEDGED_TRANSCRIPT = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|may be|could be|unsure|uncertain|not sure|unclear|something like|sounds like)"
    r"\b|\?"
)


def folded(text: str) -> str:
    """The text in lower case, with straight quotes and plain spaces. Tags stay."""
    straight = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return straight.lower().replace("_", " ").strip()


def without_reasoning(text: str) -> str:
    """The reply after its reasoning; empty where the reasoning does not end or nothing follows it."""
    opened = _REASONING_OPEN.search(text)
    if opened is not None and re.search(r"\w", text[: opened.start()]):
        return text  # the reply came first, and what follows may take it back
    ends = [found.end() for found in _REASONING_CLOSE.finditer(text)]
    if not ends:
        return "" if opened is not None else text
    return text[ends[-1] :]


def words_of_reply(text: str) -> str:
    """A reply without its reasoning, tags and markup, and without what it repeats of the question."""
    words = _TAG.sub("\n", _VERDICT_TAG.sub("\nanswer: ", without_reasoning(text)))
    # First the double negations: an empty list is one of their signs.
    words = _AFFIRMING.sub(" ", words.replace('"', ""))
    words = _QUOTING.sub(" ", _MARKUP.sub(" ", words))
    words = _ECHOED_INSTRUCTION.sub(" ", _ECHOED_QUESTION.sub(" ", words))
    return re.sub(r"[^\S\n]+", " ", words).strip()


def _describes(clause: str) -> bool:
    """Whether a clause after a yes only describes the clip: which sounds are heard, when and by whom."""
    clause = _LINK.sub("", clause.strip(" \t:'-–—"))
    if not clause or clause.endswith(":") or _AGREES.fullmatch(clause) or _THERE.match(clause) or AFFIRMED.search(clause):
        return True
    if _HEARS.match(clause) or re.match(rf"{_ALL}\b(?! \w+s? (?:claim|mention))", clause):
        return True
    if _TALK.search(clause) or re.search(r"\b(?:has|have|had|what|which|who|whatever)\b", clause):
        return False
    if _THINGS.fullmatch(clause) or (clause.startswith("there ") and _SOUNDS.search(clause)):
        return True
    linked = [_THERE.match(clause, found.end()) is not None for found in _COPULA.finditer(clause)]
    return all(linked) if linked else _SUBJECT.match(clause) is not None and _SOUNDS.search(clause) is not None


def is_description(text: str) -> bool:
    """Whether what follows a yes only describes the clip, clause by clause."""
    for line in text.split("\n"):
        *labels, rest = line.split(":")  # "Reasoning: ...", "1. Dog: heard"
        if any(len(label.split()) > 6 for label in labels) or not all(map(_describes, _CLAUSE_END.split(rest))):
            return False
    return True
