"""
What is shown of finished runs.

- `finished_runs.py`: find runs and read their results and predictions
- `sections.py`: tables and sentences of a report
- `paper_tables.py`: the paper's tables with our figures (rows in `tables/*.yaml`)
- `figures.py`: PNG figures
- `embedded_clips.py`: the clips inside a page of traces and answers
"""
