"""
The protocol of SightSound-R1's paper as an `evaluate` metric: an option letter first, else the most similar choice.

    metric = evaluate.load("evaluation/metrics/paper_protocol")
    metric.compute(predictions=["<answer>(B)</answer>"], references=[1], choices=[["dog", "bell", "drum", "siren"]])

`sightsound.method.answers` extracts and matches the answer. It also grades the student's completions and the teacher's traces.
"""

from collections import Counter

import datasets
import evaluate

from sightsound.method.answers import extract_answer_texts, is_correct, match_choice


_DESCRIPTION = "Accuracy on multiple choice: an option letter, else the choice that the answer's text is most similar to."
_CITATION = """\
@article{sightsound2025,
  title={{SightSound-R1}: Cross-modal reasoning distillation from vision to audio language models},
  journal={arXiv preprint arXiv:2509.15661},
  year={2025}
}
"""
_INPUTS = """
Args:
    predictions (`list[str]`): Outputs as the model wrote them; the answer is extracted here. An empty output is unanswered.
    references (`list[int]`): Index of the right choice.
    choices (`list[list[str]]`): All choices of each question, in the order in which they were asked.
Returns:
    accuracy (`float`): Percent of all questions.
    unanswered (`float`): Percent of outputs that are similar to no choice. They count as wrong in the accuracy.
    matched_by (`dict[str, int]`): Number of answers matched by `letter`, `choice_text`, `similarity` and `none`.
    correct (`list[bool]`): Whether each output is right.
Raises:
    `ValueError`: There are no predictions, one is None, or a reference is no index of a choice.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class PaperProtocol(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.Value("int32"),
            "choices": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
            reference_urls=["https://arxiv.org/abs/2509.15661"],
        )

    def _compute(
        self, predictions: list[str], references: list[int], choices: list[list[str]]
    ) -> dict[str, float | dict[str, int] | list[bool]]:
        texts = extract_answer_texts(predictions)
        answers = [match_choice(text, options) for text, options in zip(texts, choices, strict=True)]
        for reference, options in zip(references, choices, strict=True):
            if not 0 <= reference < len(options):
                raise ValueError(f"reference {reference} is no index of a choice: there are {len(options)}, counted from 0")
        correct = [is_correct(*row) for row in zip(answers, references, choices, strict=True)]
        return {
            "accuracy": 100 * sum(correct) / len(correct),
            "unanswered": 100 * sum(answer.index is None for answer in answers) / len(answers),
            "matched_by": dict(Counter(answer.matched_by for answer in answers)),
            "correct": correct,
        }
