"""
How long scoring takes: 10,000 outputs under the official and the paper's protocol, beside one pass of a plain token matcher.

    python -m tests.benchmarks.scoring_speed --annotations mmau-test-mini.json

The outputs are ten runs over MMAU's 1,000 questions, of the kinds that models write: with and without reasoning, letters,
choices, sentences, texts that are near a choice or none, and nothing. The plain matcher splits the raw output, the answer and
every choice into words and compares sets, with nothing kept from one output to the next. Scoring starts with empty caches.
Prints one line of JSON, in CPU seconds; fails when scoring takes longer than the plain pass.
"""

import json
import random
import re
import sys
import time
from dataclasses import dataclass, field

from evaluation.benchmarks import Row, read_annotations
from evaluation.scoring.protocols import decide_all, protocols_of
from sightsound.benchmarks import mmau
from sightsound.cli import parse_arguments, run
from sightsound.data.schema import LETTERS
from sightsound.method.answer_reading.choices import _stem, form, forms_of, root_of


NUM_RUNS = 10
MAX_RATIO = 1.0
# As long as a short trace of a teacher or a student: 60 words and three choices.
REASONING = (
    "I hear {0} at first, close to the microphone, and then something that could be {1}. The question asks which of the "
    "choices fits what is heard best, so I compare them one by one. The beginning is short and bright, the middle is quieter, "
    "and the end fades away. It does not sound like {2}, so I choose what is left."
)


@dataclass
class SpeedArguments:
    annotations: str = field(metadata={"help": "mmau-test-mini.json"})
    repeats: int = field(default=3, metadata={"help": "the fastest counts", "minimum": 1})
    reasoning: float = field(default=0.5, metadata={"help": "share of outputs with reasoning before the answer"})
    seed: int = field(default=0, metadata={"help": "of the outputs"})


def write(row: Row, other: Row, reasoning: float, rng: random.Random) -> str:
    """What a model may have written to a question."""
    index = rng.randrange(len(row["choices"]))
    letter, choice = LETTERS[index], row["choices"][index]
    near = rng.choice((choice[:-1], f"{choice}s", choice.split()[-1], rng.choice(other["choices"])))
    lettered = (letter, f"({letter}) {choice}", f"{letter}. {choice}")
    forms = (*lettered, choice, choice, choice, f"The answer is {choice}.", near, "")
    answer = rng.choice(forms)
    if rng.random() >= reasoning:
        return answer
    heard = [rng.choice(row["choices"]) for _ in range(3)]
    return f"<think>{REASONING.format(*heard)}</think><answer>{answer}</answer>"


def plain_pass(outputs: list[str], rows: list[Row]) -> int:
    """How many outputs a matcher without any care for time accepts."""

    def tokens(text: str) -> set[str]:
        return set(re.findall(r"\b\w+\b", text.lower()))

    accepted = 0
    for output, row in zip(outputs, rows, strict=True):
        said, wanted, others = tokens(output), tokens(row["answer_text"]), set()
        for choice in row["choices"]:
            others |= tokens(choice) - wanted
        accepted += bool(said) and wanted <= said and not others & said
    return accepted


def main() -> None:
    args = parse_arguments(SpeedArguments, __doc__)
    questions, _ = read_annotations("mmau", args.annotations, allow_unpinned=False)
    rng = random.Random(args.seed)
    rows = questions * NUM_RUNS
    outputs = [write(row, rng.choice(rows), args.reasoning, rng) for row in rows]
    plain_s, scored_s = [], []
    for _ in range(args.repeats):
        start = time.process_time()
        plain_pass(outputs, rows)
        for cache in (forms_of, form, _stem, root_of, mmau._expected):
            cache.cache_clear()
        middle = time.process_time()
        decide_all("mmau", protocols_of("mmau"), outputs, rows)
        plain_s.append(middle - start)
        scored_s.append(time.process_time() - middle)
    message = {"predictions": len(outputs), "plain_s": min(plain_s), "scored_s": min(scored_s)}
    message |= {"ratio": min(scored_s) / min(plain_s)}
    print(json.dumps(message))
    if message["ratio"] > MAX_RATIO:
        sys.exit(f"scoring takes {message['ratio']:.2f} times as long as a plain token matcher")


if __name__ == "__main__":
    run(main)
