"""
Exact match on MUSIC-AVQA over its closed vocabulary of 42 answers, as an `evaluate` metric.

    metric = evaluate.load("evaluation/metrics/music_avqa")
    metric.compute(predictions=["<answer>Acoustic guitar.</answer>"], references=["acoustic_guitar"])

The rule itself is `decide` in `sightsound/benchmarks/music_avqa.py`. `evaluate` runs a copy of this file in another folder and
reads its imports line by line. So the file imports installed packages only, one module a line.
"""

import datasets
import evaluate

from sightsound.benchmarks.music_avqa import decide, word_of
from sightsound.method.answers import extract_answer_texts


_DESCRIPTION = "Accuracy on MUSIC-AVQA: the extracted answer is the right one of the 42 possible answers."
_CITATION = """\
@inproceedings{li2022learning,
  title={Learning to answer questions in dynamic audio-visual scenarios},
  author={Li, Guangyao and Wei, Yake and Tian, Yapeng and Xu, Chenliang and Wen, Ji-Rong and Hu, Di},
  booktitle={Proceedings of the IEEE/CVF conference on computer vision and pattern recognition},
  year={2022}
}
"""
_INPUTS = """
Args:
    predictions (`list[str]`): Outputs as the model wrote them; the answer is extracted here. An empty output is unanswered.
    references (`list[str]`): The right answers, of the vocabulary; "acoustic guitar" is also accepted.
Returns:
    accuracy (`float`): Percent of all questions.
    unanswered (`float`): Percent of outputs whose answer is none of the 42. They count as wrong in the accuracy.
    correct (`list[bool]`): Whether each output is right.
Raises:
    `ValueError`: There are no predictions, one is None, or a reference is none of the 42.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MusicAvqa(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
            reference_urls=["https://github.com/GeWu-Lab/MUSIC-AVQA", "https://arxiv.org/abs/2203.14072"],
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | list[bool]]:
        texts = extract_answer_texts(predictions)
        for reference in set(references):
            if word_of(reference) is None:
                raise ValueError(f"reference {reference!r} is none of the 42 answers, such as 'acoustic_guitar' and 'two'")
        decisions = [decide(text, reference) for text, reference in zip(texts, references, strict=True)]
        return {
            "accuracy": 100 * decisions.count(True) / len(decisions),
            "unanswered": 100 * decisions.count(None) / len(decisions),
            "correct": [bool(decision) for decision in decisions],
        }
