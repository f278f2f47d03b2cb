"""
The method of the paper, in the order in which it works.

- `prompts.py`: fill in the prompts for teacher, checker and student; their texts are the files of `prompt_texts/`
- `question_writing.py`: the questions that a teacher writes about a silent video: types, form of a reply, strict reading
- `question_filters.py`: the filters that drop such a question
- `answers.py`: find the answer in an output and grade it; `answer_reading/` holds the parts
- `verdicts.py`: turn a checker's reply into accept or reject; `verdict_reading/` holds the parts
- `claims.py`: the claims of a trace, one by one, and the verdict that follows from theirs
- `audio_contribution.py`: whether a question needs its clip, or is answered right without it
- `selection.py`: the filters that accept or drop a question, the ablation arms and the funnel
- `ledger.py`: read a ledger row by row and join it with its verdicts
- `rewards.py`: the rewards of GRPO
- `rubrics.py`: score reasoning by a rubric: what a judge is asked, and how its replies make one score
"""
