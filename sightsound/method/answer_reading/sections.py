"""
Separate the reasoning of an output from the section with its answer.

Models mark both in many ways: `<think>`, `<REASONING>`, `[THINK]`, `<answer>`, `<Conclusion>`, `<C> B </C>`, `\\boxed{B}`,
JSON, or not at all. So a tag is recognised by the words in its name, not by a list of names.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from sightsound.method.answer_reading.marks import plain_latex


_THINK = re.compile(r"<think>(.*?)</think>", re.IGNORECASE | re.DOTALL)

# A name of up to four words, and attributes. Every repetition is bounded, so that a text full of "<" takes linear time.
_TAG = re.compile(r"<(/?)([A-Za-z]{1,24}(?:[ _-][A-Za-z]{1,24}){0,3})\s{0,3}/?(?:[\s=:][^<>]{0,80})?>")
# Special tokens of chat templates, where decoding did not skip them: <|im_end|>, </s>.
_SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<(?:eos|bos|pad|end_of_turn)>")
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]{0,40}<\|message\|>")
# Tags in other brackets.
_OTHER_BRACKETS = re.compile(r"\[(/?(?:think|answer))\]|◁(/?\w{1,20})▷", re.IGNORECASE)
# A tag whose name has one of these holds thinking in a checker's reply too (`verdict_reading/replies.py`). The further names
# below hold reasoning about an answer; in a reply they may take a yes back.
THINKING_TAGS = r"think|thought|reason|rational|analy[sz]|reflect|scratch"
_REASONING = re.compile(
    THINKING_TAGS + r"|caption|summar|plan|expla[in]|descri|observ|percep|cot\b"
    r"|deliberat|evidence|justif|verif|review|listen|transcri|context|monolog|compar|hypothes|consider|eliminat|notes?\b"
    r"|draft|critique|check|steps?\b|inner|process|chain"
)
_ANSWER = re.compile(r"answer|conclu|^(?:final|result|response|reply|output|choice|option|selection|verdict|decision)|solution")
# These tags follow an answer as often as they precede it. So when one is cut, the text before it may still be the answer.
_AFTERWARDS = re.compile(r"expla[in]|justif|rational|evidence")
_HTML = frozenset("biuaspq")

_BOXED = re.compile(r"\\?\bboxed\s{0,3}\{")
_JSON = re.compile(
    r"[{,]\s{0,20}[\"']?(?:[a-z]{1,12}[_ ])?(?:answer|choice|option|prediction|conclusion)[\"']?\s{0,3}:\s{0,3}"
    r"(?:\"((?:[^\"\\]|\\.){0,400})(?:\"|$)|'([^']{0,400})'|([^,{}\"'\[\]\n]{1,80}))",
    re.IGNORECASE,
)
_ONE_LETTER = re.compile(r"\W{0,4}[A-Za-z]\W{0,4}")


class _Tag(NamedTuple):
    start: int
    end: int
    closes: bool
    name: str
    kind: str


@lru_cache(maxsize=1024)
def _kind(name: str) -> str:
    """`answer`, `reasoning`, `letter` or, for all others, `markup`."""
    if len(name) == 1:
        return "letter"
    folded = name.casefold().replace("_", " ").replace("-", " ")
    if _ANSWER.search(folded):
        return "answer"
    return "reasoning" if _REASONING.search(folded) else "markup"


def extract_think(output: str) -> str | None:
    """The reasoning inside `<think></think>`; None when there is none or it was cut."""
    found = _THINK.search(output)
    return found.group(1).strip() if found else None


def extract_answer_text(output: str) -> str:
    """
    The part of an output with the answer: the last answer tag, else the text after the reasoning, else the whole output.

    Reasoning that does not end has no answer, even if it names a choice: the result is empty.
    """
    text = output.strip()
    if text.endswith("</answer>"):  # the format that the project's prompts ask for
        content = text[text.rfind("<answer>") + 8 : -9] if "<answer>" in text else ""
        if content and "<" not in content and "{" not in content and (content := content.strip()):
            return content
    if "<" in text or "◁" in text or "[/" in text or "[THINK]" in text:
        text = _outside_reasoning(text)
    if "boxed" in text:
        text = _boxed(text)
    if "{" in text and (found := list(_JSON.finditer(text))):
        text = next(value for value in found[-1].groups() if value is not None)
    return text.strip()


def _boxed(text: str) -> str:
    """The content of the last `\\boxed{}` without LaTeX commands; an unclosed one extends to the end."""
    found = list(_BOXED.finditer(text))
    if not found:
        return text
    start = end = found[-1].end()
    depth = 1
    for end in range(start, min(len(text), start + 1000)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            break
    else:
        end = len(text)
    return plain_latex(text[start:end]) if text[start:end].strip() else text


def _outside_reasoning(text: str) -> str:
    if "<|channel|>" in text:
        *_, last = _FINAL_CHANNEL.split(text)
        text = "<think>" if last is text else last
    text = _OTHER_BRACKETS.sub(lambda found: f"<{found.group(1) or found.group(2)}>", _SPECIAL.sub(" ", text))
    tags = [_Tag(m.start(), m.end(), bool(m.group(1)), m.group(2), _kind(m.group(2))) for m in _TAG.finditer(text)]
    if not tags:
        return text
    opened: list[_Tag] = []  # reasoning tags that are still open
    outer, inner = list[_Tag](), list[_Tag]()  # opening answer tags, outside and inside of reasoning
    kept = list[tuple[int, int]]()  # text outside of reasoning
    letters = list[_Tag]()
    since = 0
    for tag in tags:
        if tag.kind == "reasoning" and not tag.closes:
            if not opened:
                kept.append((since, tag.start))
            opened.append(tag)
        elif tag.kind == "reasoning":
            names = [one.name.casefold() for one in opened]
            if tag.name.casefold() in names:
                del opened[names.index(tag.name.casefold()) :]
            elif opened:
                continue
            else:  # the chat template wrote the opening tag: everything so far was reasoning
                inner += outer
                outer, kept, letters = [], [], []
            if not opened:
                since = tag.end
        elif tag.kind == "answer" and not tag.closes:
            (inner if opened else outer).append(tag)
        elif tag.kind == "letter" and not opened:
            letters.append(tag)
    if not opened:
        kept.append((since, len(text)))
    if (content := _last_content(text, outer, tags)) is not None:
        return content
    if opened:
        at_end = [tag for tag in inner if tag.start > opened[-1].start and not text[_content_end(text, tag, tags)[1] :].strip()]
        if (content := _last_content(text, at_end, tags)) is not None:
            return content
        return _without_tags(text, kept) if _AFTERWARDS.search(opened[0].name.casefold()) else ""
    if letters and (content := _in_letter_tag(text, letters)):
        return content
    if rest := _without_tags(text, kept).strip():
        return rest
    return _last_content(text, inner, tags) or ""


def _without_tags(text: str, kept: list[tuple[int, int]]) -> str:
    return " ".join(_TAG.sub(_letter_or_space, text[start:end]) for start, end in kept)


def _letter_or_space(tag: re.Match[str]) -> str:
    name, text = tag.group(2), tag.string
    if text[: tag.start()].endswith("<") and text.startswith(">", tag.end()) and _kind(name) == "markup":
        return tag.group(0)  # the title of a work: "<<Lenin in 1918>>"
    return f"({name})" if len(name) == 1 and not tag.group(1) and name not in _HTML else "" if len(name) == 1 else "\n"


def _content_end(text: str, tag: _Tag, tags: list[_Tag]) -> tuple[int, int]:
    """Where the content of an opening answer tag ends, and where the text after it begins."""
    for other in tags:
        if other.start >= tag.end and (other.kind in ("answer", "reasoning")):
            return other.start, other.end if other.closes else other.start
    return len(text), len(text)


def _last_content(text: str, opening: list[_Tag], tags: list[_Tag]) -> str | None:
    """The last answer that is not empty, from tags called answer if there are any; None without answer tags."""
    if not opening:
        return None
    named = [tag for tag in opening if "answer" in tag.name.casefold()] or opening
    for tag in reversed(named[-20:]):
        start, end = tag.end, _content_end(text, tag, tags)[0]
        letters = [other for other in tags if other.kind == "letter" and start <= other.start < end]
        content = _in_letter_tag(text[:end], letters) if letters else ""
        content = content or _without_tags(text, [(start, end)]).strip()
        if content:
            return content
        if any(other.kind == "reasoning" and other.start < tag.start for other in tags if other.start > named[0].start):
            break  # the model went on reasoning and was cut
    return ""


def _in_letter_tag(text: str, letters: list[_Tag]) -> str:
    """B of `<C> B </C>`, and the letter itself of a lone `<B>`; empty where the letter is only markup, as in `<b>bold</b>`."""
    opening = [tag for tag in letters if not tag.closes]
    if not opening:
        return ""
    last = opening[-1]
    closing = next((tag for tag in letters if tag.closes and tag.start >= last.end and tag.name == last.name), None)
    content = text[last.end : closing.start if closing else len(text)].strip()
    if not content:
        return f"({last.name})" if not text[: last.start].strip() or last.name not in _HTML else ""
    if _ONE_LETTER.fullmatch(content) or (closing and last.name not in _HTML):
        return content
    return ""
