"""
The method of the paper, in the order in which it works.

- `prompts.py`: the prompts of teacher, checker and student; their texts are in `prompt_texts/`
- `answers.py`: find the answer in an output and grade it; `answer_reading/` has its parts
- `verdicts.py`: find accept or reject in a checker's reply; `verdict_reading/` has its parts
- `selection.py`: the filters, the ablation arms and the funnel
- `ledger.py`: read the traces, and join them with their verdicts
- `rewards.py`: the rewards of GRPO
"""
