"""Bring all answers into one form: no Markdown, LaTeX or curly quotes, and Chinese, Japanese and Korean cues in English."""

import re


# A letter in bold, quotes or back-ticks counts like one in brackets.
_MARKED_LETTER = re.compile(r"(?<![\w*_`\"'$])[*_`\"'$]{1,6}[(\[]?([A-Za-z])[)\]]?[.:]?[*_`\"'$]{1,6}(?![\w*_`\"'$])")
_MARKDOWN = re.compile(r"\*+|`+|\"|(?<![^\W_])_+|_+(?![^\W_])|(?m:^[ \t]{0,8}(?:#{1,6}[ \t]+|>[ \t]?|[-•–][ \t]+(?=\S)))")
# The full-width question mark stays: after a single choice it does not express doubt.
_MARKS: dict[int, int | str] = {
    **str.maketrans("‘’“”„＂「」『』《》〈〉：（）【】［］；、", "''" + 12 * '"' + ":()[][];,"),
    **{0xFEE0 + code: code for code in (*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B))},  # of full width
    ord("→"): "=>",
    **dict.fromkeys(map(ord, "✅☑👉"), " "),
    ord("。"): ". ",
    ord("，"): ", ",
}
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]{2,12}\s{0,3}\{([^{}]{0,300})\}")
_LATEX_SPACE = re.compile(r"\\[ ,;:!()\[\]]|\$")
_UNCLOSED_LETTER = re.compile(r"(?<![^\s:])[(\[{]\s?[A-Za-z]$")

_CJK = re.compile(r"[぀-ヿ一-鿿가-힣]")
_CJK_EDGE = re.compile(r"(?<=[぀-ヿ一-鿿가-힣])(?=[A-Za-z(\[\"])|(?<=[A-Za-z)\]\"])(?=[぀-ヿ一-鿿가-힣])")
_BEFORE_CHOICE = r"\]?\s{0,3}:?\s{0,3}(?=[A-Za-z(\[\"])"
# Cues that models trained on Chinese, Japanese or Korean mix into English answers. The order matters: denials are replaced
# before the words that they deny.
_CJK_CUES = [
    (re.compile(pattern), english)
    for pattern, english in (
        (r"(?:最终|最可能|最佳|最合适|正确)的?(?=答案|选项)", ""),
        (r"(?<=[A-Za-z)\]\"])\s?是?(?:错误|错|不正确|不对)的?", " is wrong "),
        (r"(?<=[A-Za-z)\]\"])\s?是?(?:正确|对)的?(?:答案|选项)?", " is correct "),
        (r"而不是|而非", " rather than "),
        (r"(?:答案|选项)\s?(?:不是|不为|不选|并非|不可能是)", " the answer is not "),
        (r"不是|不为|并非|不选择?|不应选|不可能是|排除|除了", " not "),
        (r"可能是?|也许是?|大概是?|或许是?", " maybe "),
        (r"(?:或者?|还是)[是选]?", " or "),
        (r"[和与及]", " and "),
        (r"因为|由于", " because "),
        (r"(?:答案|结论)\s?(?:应该|应当|应)?[是为选]?" + _BEFORE_CHOICE, " the answer is "),
        (r"(?:答え|正解|解答)は" + _BEFORE_CHOICE, " the answer is "),
        (r"(?:정답|답)[은는]?" + _BEFORE_CHOICE, " the answer is "),
        (r"选项(?=\s?[A-Za-z(\[\"])", " option "),
        (r"[应我故]?该?[会要]?选(?:择|项)?的?[是为]?" + _BEFORE_CHOICE, " the answer is "),
        (r"应该?[是为]" + _BEFORE_CHOICE, " the answer is "),
        (r"我?(?:认为|觉得)(?:应该)?是?|[这那它]是", " I think it is "),
        (r"所以|因此|综上", " so "),
    )
]


def without_marks(text: str) -> str:
    """The text in this form. Most texts are in it already and come back unchanged."""
    if "\\" in text:
        text = plain_latex(text)
    if not text.isascii():
        text = _without_full_width(text)
    return _MARKDOWN.sub("", _MARKED_LETTER.sub(r"(\1)", text)).strip()


def closed(text: str) -> str:
    """The text with the bracket closed that an answer such as "(B" left open."""
    return f"{text})" if text[-1:].isalpha() and _UNCLOSED_LETTER.search(text[-4:]) else text


def plain_latex(text: str) -> str:
    """`\\text{B}` becomes B; the dollars and spaces of formulas are removed."""
    for _ in range(3):
        text = _LATEX_COMMAND.sub(r"\1", text)
    return _LATEX_SPACE.sub(" ", text)


def _without_full_width(text: str) -> str:
    text = text.translate(_MARKS)
    if not _CJK.search(text):
        return text
    text = _CJK_EDGE.sub(" ", text)
    for cue, english in _CJK_CUES:
        text = cue.sub(english, text)
    return text
