"""One way of writing for all answers: without Markdown, LaTeX and curly quotes, and with Chinese cues in English."""

import re


# A letter in bold, quotes or back-ticks is as good as one in brackets.
_MARKED_LETTER = re.compile(r"(?<![\w*_`\"'$])[*_`\"'$]{1,6}[(\[]?([A-Za-z])[)\]]?[.:]?[*_`\"'$]{1,6}(?![\w*_`\"'$])")
_MARKDOWN = re.compile(r"\*+|`+|\"|(?<![^\W_])_+|_+(?![^\W_])|(?m:^[ \t]{0,8}(?:#{1,6}[ \t]+|>[ \t]?|[-•–][ \t]+(?=\S)))")
# The question mark of full width stays: it says nothing of doubt after a single choice.
_MARKS = str.maketrans("‘’“”„＂「」『』《》：（）【】。，；、", '\'\'"""""""""":()[].,;,')
_MARKS |= {ord("。"): ". ", ord("，"): ", "}
_FULL_WIDTH = {0xFEE0 + ord(letter): letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"}
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]{2,12}\s{0,3}\{([^{}]{0,300})\}")
_LATEX_SPACE = re.compile(r"\\[ ,;:!()\[\]]|\$")
_UNCLOSED_LETTER = re.compile(r"(?<![^\s:])[(\[{]\s?[A-Za-z]$")

_CHINESE = re.compile(r"[一-鿿]")
_CHINESE_EDGE = re.compile(r"(?<=[一-鿿])(?=[A-Za-z(\[\"])|(?<=[A-Za-z)\]\"])(?=[一-鿿])")
_BEFORE_CHOICE = r"\s{0,3}:?\s{0,3}"
# What models that were trained on Chinese mix into English answers. A denial comes before what it denies.
_CHINESE_CUES = [
    (re.compile(pattern), english)
    for pattern, english in (
        (r"而不是|而非", " rather than "),
        (r"(?:答案|选项)\s?(?:不是|不为|并非|不可能是)", " the answer is not "),
        (r"不是|不为|并非|不选择?|不应选|不可能是|排除|除了", " not "),
        (r"可能是?|也许是?|大概是?|或许是?", " maybe "),
        (r"或者?是?|还是", " or "),
        (r"[和与及]", " and "),
        (r"因为|由于", " because "),
        (r"(?:答案|选项|结论)\s?(?:应该|应当|应)?[是为选]?" + _BEFORE_CHOICE + r"(?=[A-Za-z(\[\"])", " the answer is "),
        (r"[应我]?该?[会要]?选(?:择|项)?的?[是为]?" + _BEFORE_CHOICE + r"(?=[A-Za-z(\[\"])", " the answer is "),
        (r"我?(?:认为|觉得)(?:应该)?是?", " I think it is "),
        (r"所以|因此|综上", " so "),
    )
]


def without_marks(text: str) -> str:
    """The text in one way of writing. Most texts are in it and come back as they are."""
    if "\\" in text:
        text = plain_latex(text)
    if not text.isascii():
        text = _without_full_width(text)
    return _MARKDOWN.sub("", _MARKED_LETTER.sub(r"(\1)", text)).strip()


def closed(text: str) -> str:
    """A bracket around a last letter that was cut, or left open, is closed."""
    return f"{text})" if text[-1:].isalpha() and _UNCLOSED_LETTER.search(text[-4:]) else text


def plain_latex(text: str) -> str:
    """`\\text{B}` is B; dollars and spaces of formulas go."""
    for _ in range(3):
        text = _LATEX_COMMAND.sub(r"\1", text)
    return _LATEX_SPACE.sub(" ", text)


def _without_full_width(text: str) -> str:
    text = text.translate(_MARKS | _FULL_WIDTH)
    if not _CHINESE.search(text):
        return text
    text = _CHINESE_EDGE.sub(" ", text)
    for cue, english in _CHINESE_CUES:
        text = cue.sub(english, text)
    return text
