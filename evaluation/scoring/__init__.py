"""
From outputs to figures.

- `prediction_files.py`: read a file of predictions, of `evaluation run` or another tool
- `predictions.py`: match its outputs to the benchmark's questions
- `protocols.py`: decide whether an output is right, wrong or unanswered
- `accuracy.py`: accuracy, breakdowns and controls of a run
- `audio_use.py`: the gain over each control, and the statement that opens a report
- `paired_runs.py`: compare two runs question by question
- `rubric_scores.py`: which reasoning a judge is asked about, and the figures of its scores
- `statistics.py`: intervals, standard errors and tests
"""
