"""
The method of the paper, in the order in which it works.

- `prompts.py`: what teacher, checker and student are asked
- `answers.py` and `answer_reading/`: find the answer in an output
- `verdicts.py`: find accept or reject in a checker's reply
- `selection.py`: the filters, the ablation arms and the funnel
- `rewards.py`: the rewards of GRPO
"""
