"""Scored questions, made by hand."""

from evaluation.scoring.protocols import Decision


def question(number: int, gold: int, **fields) -> dict:
    labels = {"question_type": "Which", "question_relation": "Both", "difficulty": "easy", "sub_category": "", "in_paper": True}
    choices = ["dog", "bell"]
    asked = {"id": str(number), "video_id": f"clip-{number}", "choices": choices, "answer": gold, "answer_text": choices[gold]}
    return asked | labels | fields


ROWS = [
    question(0, 0),
    question(1, 0, question_type="Where"),
    question(2, 0, question_relation="Sound"),
    question(3, 1, question_relation="Sound"),
]


DECISIONS = [Decision(True, "letter"), Decision(False, "letter"), Decision(False, "none"), Decision(True, "similarity")]


CLIPS = [row["video_id"] for row in ROWS]
