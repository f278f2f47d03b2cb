"""
MMAU's official rule as an `evaluate` metric.

    metric = evaluate.load("evaluation/metrics/mmau_official")
    metric.compute(predictions=["The answer is Man."], references=["Man"], choices=[["Man", "Woman", "Child", "Robot"]])

The rule itself is `decide` in `sightsound/benchmarks/mmau.py`. `evaluate` runs a copy of this file in another folder and reads
its imports line by line. So the file imports installed packages only, one module a line.
"""

import datasets
import evaluate

from sightsound.benchmarks.mmau import decide, words
from sightsound.method.answers import extract_answer_texts


_DESCRIPTION = "Accuracy on MMAU by the official rule: all words of the answer, none that only other choices hold."
_CITATION = """\
@article{sakshi2024mmau,
  title={{MMAU}: A massive multi-task audio understanding and reasoning benchmark},
  author={Sakshi, S and Tyagi, Utkarsh and Kumar, Sonal and Seth, Ashish and Selvakumar, Ramaneswaran and Nieto, Oriol and
    Duraiswami, Ramani and Ghosh, Sreyan and Manocha, Dinesh},
  journal={arXiv preprint arXiv:2410.19168},
  year={2024}
}
"""
_INPUTS = """
Args:
    predictions (`list[str]`): Outputs as the model wrote them; the answer is extracted here. An empty output is unanswered.
    references (`list[str]`): The text of the right choice.
    choices (`list[list[str]]`): All choices of each question.
Returns:
    accuracy (`float`): Percent of all questions.
    unanswered (`float`): Percent of outputs whose answer holds no word. They count as wrong in the accuracy.
    correct (`list[bool]`): Whether each output is right.
Raises:
    `ValueError`: There are no predictions, one is None, or a reference is none of its choices.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MmauOfficial(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.Value("string"),
            "choices": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
            reference_urls=["https://github.com/Sakshi113/MMAU", "https://arxiv.org/abs/2410.19168"],
        )

    def _compute(
        self, predictions: list[str], references: list[str], choices: list[list[str]]
    ) -> dict[str, float | list[bool]]:
        texts = extract_answer_texts(predictions)
        for reference, options in zip(references, choices, strict=True):
            if words(reference) not in map(words, options):
                raise ValueError(f"reference {reference!r} is none of the choices {options!r}")
        decisions = [decide(*row) for row in zip(texts, references, choices, strict=True)]
        return {
            "accuracy": 100 * decisions.count(True) / len(decisions),
            "unanswered": 100 * decisions.count(None) / len(decisions),
            "correct": [bool(decision) for decision in decisions],
        }
