"""Replies of a teacher that was asked for one question, and the outcome that each gets."""

import json

from sightsound.data import schema
from sightsound.method import question_writing as writing
from tests.support.segments import question, reply


GOOD = reply(question(1))
# Replies of one question that are not read, by the outcome that they get.
MALFORMED = {
    writing.NOT_JSON: [
        "",
        "   \n",
        "I'm sorry, I cannot see the video.",
        "Question: What is heard?\nA. dog\nB. cat\nC. owl\nD. cow\nAnswer: A",
        GOOD[:-2],  # without its end
        GOOD.replace('"]', '",]'),  # a trailing comma
        GOOD.replace('"', "'"),
        GOOD.replace('{"type"', '{/* one */ "type"'),
        f"Here it is: {GOOD}",
        f"{GOOD} I hope that this helps.",
        GOOD + GOOD,
        f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
        GOOD.replace('"which"', "NaN"),
        GOOD.replace('"type": "which"', '"type": "which", "type": "first"'),  # the same key twice
        "[" * 100_000,
        "[" * 5_000 + "]" * 5_000,
        '{"questions": ' + "9" * 10_000 + "}",  # Python converts no integer of so many digits
        GOOD.replace("What", "W" * 200_000),
        "<think>" + GOOD,  # still thinking
        "\x00" + GOOD,
        GOOD.replace("What", "W\nhat"),  # a raw line break inside a text
    ],
    writing.WRONG_FORM: [
        "null",
        "[]",
        "{}",
        '"text"',
        json.dumps([question(1)]),  # the list without its object
        json.dumps(question(1)),
        json.dumps({"questions": question(1)}),
        json.dumps({"questions": [question(1)], "note": "three more follow"}),
        json.dumps({"question": [question(1)]}),
        reply("What is heard?"),
        reply(None),
        reply([question(1)]),
        reply({name: value for name, value in question(1).items() if name != "answer"}),
        reply(question(1, explanation="it barks")),
        reply(question(1, question=None)),
        reply(question(1, question={"text": "What is heard?"})),
        reply(question(1, choices={"A": "a dog", "B": "rain", "C": "a bell", "D": "an owl"})),
        reply(question(1, choices="a dog, rain, a bell, an owl")),
        reply(question(1, choices=[1, 2, 3, 4])),
        reply(question(1, choices=["a dog", None, "rain", "a bell"])),
        reply(question(1, answer=0)),
        reply(question(1, answer=True)),
        reply(question(1, answer=["a dog"])),
        reply(question(1, answer=None)),
        reply(question(1, type=3)),
    ],
    writing.UNKNOWN_TYPE: [reply(question(1, type="colour")), reply(question(1, type="Which")), reply(question(1, type=""))],
    writing.BAD_TEXT: [
        reply(question(1, question="")),
        reply(question(1, question=" ?! ")),
        reply(question(1, question="What is heard? " * 40)),
        reply(question(1, choices=["a dog", " ", "rain", "a bell"], answer="a dog")),
        reply(question(1, choices=["a dog", "...", "rain", "a bell"], answer="a dog")),
        reply(question(1, choices=["a dog", "x" * 300, "rain", "a bell"], answer="a dog")),
        reply(question(1, question="What is \ud83d heard?")),
        reply(question(1, question="What is \ufffd heard?")),
        reply(question(1, question="What is \x07 heard?")),
    ],
    schema.WRONG_CHOICE_COUNT: [
        reply(question(1, choices=[], answer="a dog")),
        reply(question(1, choices=["a dog", "rain", "a bell"], answer="a dog")),
        reply(question(1, choices=["a dog", "rain", "a bell", "an owl", "a cow"], answer="a dog")),
    ],
    schema.ANSWER_NOT_A_CHOICE: [
        reply(question(1, answer="a cat")),
        reply(question(1, answer="")),
        reply(question(1, answer="E")),
        reply(question(1, answer="B. a bell of 1")),  # letter and text of two choices
        reply(question(1, answer="two dogs and heavy rain")),
    ],
    writing.MISSING_QUESTION: [reply()],
}
