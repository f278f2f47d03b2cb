r"""
Claims against whole traces on the miniature, whose truth is known: rows kept, false claims left, teacher's tokens, accuracy.

    python recipes/miniature/compare_claims.py --run outputs/miniature/seed-0 --seed 0

`recipes/miniature/claims.sh` makes what it reads. With `--equal_cost` it prints only for how many questions the claims cost the
teacher as many tokens as the whole traces of all questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightsound.building.miniature_world import NAMES, clip_generator, draw_scene
from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.parquet import read_parquet
from sightsound.data.statistics import wilson_interval
from sightsound.hub.cards import markdown_table
from sightsound.method.claims import looked_up
from sightsound.method.prompts import REWRITE_PROMPT, TEACHER_PROMPT, heard_sounds, question_text
from sightsound.method.selection import select
from sightsound.method.verdicts import ACCEPT, REJECT


VIDEO_TOKENS = 12  # of six frames of 56 x 56 pixels


@dataclass
class CompareArguments:
    run: str = field(metadata={"help": "folder of a seed of the demo, with `claims/` in it"})
    seed: int = field(default=0, metadata={"help": "seed of its world"})
    equal_cost: bool = field(default=False, metadata={"help": "print the number of questions of equal cost, and stop"})


def read_verdicts(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "data").glob("*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no verdicts; run recipes/miniature/claims.sh")
    return list(read_parquet(files))


def tokens_of_teacher(rows: list[dict[str, Any]], tokenizer: Any) -> tuple[int, int]:
    """Tokens that the teacher read and wrote for the traces, and for those that it wrote again."""

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    traces = rewritten = 0
    for row in rows:
        prompt = question_text(row["question"], row["choices"], TEACHER_PROMPT)
        traces += count(prompt) + VIDEO_TOKENS + sum(count(trace["text"]) for trace in row["traces"])
        again = {trace["rewritten"]["text"] for trace in row["traces"] if trace["rewritten"]}
        empty = question_text(row["question"], row["choices"], REWRITE_PROMPT, claims="")
        # The notes are as long as the list of sounds of what was written from them.
        rewritten += sum(count(empty) + count(", then ".join(heard_sounds(text) or [])) + count(text) for text in again)
    return traces, rewritten


def claims_left(rows: list[dict[str, Any]], arm: str, seed: int) -> Iterator[bool]:
    """Of each sound that the rows of an arm claim, whether it is false."""
    for row in select(rows, arm):
        scene = draw_scene(clip_generator(seed, "train", int(row["id"])), traps=True)
        verdicts = looked_up(heard_sounds(row["completion"]) or [], [NAMES[kind] for kind in scene.sounds])
        yield from (verdict == REJECT for verdict in verdicts)


def with_interval(part: int, whole: int) -> str:
    low, high = wilson_interval(part, whole)
    return f"{100 * part / max(1, whole):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    args = parse_arguments(CompareArguments, __doc__)
    from transformers import AutoTokenizer

    folder = Path(args.run)
    rows = read_verdicts(folder / "claims" / "verdicts")
    traces, rewritten = tokens_of_teacher(rows, AutoTokenizer.from_pretrained(folder / "models" / "teacher" / "model"))
    equal = len(rows) * traces // (traces + rewritten)
    if args.equal_cost:
        print(equal)
        return
    table = []
    for name, arm, used in (("whole traces", "tts_agfv", rows), ("claims", "tts_claims", rows[:equal])):
        selected, wrong = select(used, arm), list(claims_left(used, arm, args.seed))
        evaluation = (folder / "evaluation" if used is rows else folder / "claims" / "evaluation") / f"sft-{arm}"
        results = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))["results"]["none"]
        accuracy = f"{results['accuracy']:.1f} [{results['low']:.1f}, {results['high']:.1f}]"
        questions = {row["id"] for row in selected}
        cells = [name, len(used), len(questions), len(selected), with_interval(sum(wrong), len(wrong)), accuracy]
        table.append(cells)
    head = ["", "questions asked", "questions kept", "rows", "false claims left, %", "accuracy"]
    again = [trace["rewritten"] for row in rows for trace in row["traces"] if trace["rewritten"]]
    accepted = sum(new["verdict"] == ACCEPT for new in again)
    print("\n".join(markdown_table(head, table)))
    print(f"\nWritten again: {len(again)} traces, {accepted} of them accepted. Teacher's tokens: {traces:,} + {rewritten:,}.")


if __name__ == "__main__":
    run(main)
