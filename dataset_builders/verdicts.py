"""
Audio-grounded fact verification: a checker that hears accepts or rejects each trace (paper, section 3.2).

    python dataset_builders/verdicts.py --dataset avqa-audio --split train --traces traces \
        --checker gpt-4o-audio-preview --base_url https://api.openai.com/v1 --output_dir verdicts

Two modes. `yes_no`, the paper's: the checker is asked, per trace, whether every sound that the trace claims is heard;
anything but a clear yes or no is `invalid`, asked again with another seed, at most `--num_retries` times. `transcript`: the
checker lists what it hears, once per clip, and code compares that list with the sounds that each trace claims ("I hear a
dog, then a bell."); a trace without such a sentence is `invalid`. Invalid traces are not accepted.

One row per question, the traces file with its verdicts filled in, and every question in `ledger.parquet`.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field

from sightsound import schema
from sightsound.chat import ChatRequest, Engine, Sampling, make_engine, run_requests
from sightsound.cli import parse_arguments, run
from sightsound.corpus import ACCEPT, INVALID, REJECT, TraceRow, trace_outcome
from sightsound.hub import write_dataset_card
from sightsound.journal import JOURNAL_FILE, Journal, Stage, fingerprint
from sightsound.media import decode_audio
from sightsound.prompts import CHECKER_TRANSCRIPT, CHECKER_YES_NO, PROMPT_VERSION, heard_sounds


YES_NO_MODE, TRANSCRIPT_MODE = "yes_no", "transcript"

# The first word decides and must be yes or no: "Yes.", "**No**, there is no dog". One followed by the other ("Yes and no",
# "yes/no", a checker that repeats the question) decides nothing.
_YES_NO = re.compile(r"^\W*(yes|no)\b(?!\W+(?:(?:and|or)\s+)?(?!\1\b)(?:yes|no)\b)", re.IGNORECASE)


@dataclass
class VerdictsArguments:
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    traces: str = field(metadata={"help": "output of traces.py"})
    checker: str = field(metadata={"help": "an audio model: folder or Hub id, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write the verdicts"})
    split: str = field(default="train", metadata={"help": "split of the dataset that was traced"})
    base_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible server"})
    verdict_mode: str = field(default=YES_NO_MODE, metadata={"help": "how to check", "choices": [YES_NO_MODE, TRANSCRIPT_MODE]})
    num_retries: int = field(default=2, metadata={"help": "how often an unclear yes/no is asked again", "minimum": 0})
    max_tokens: int = field(default=64, metadata={"help": "per verdict or transcript", "minimum": 1})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=16, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    seed: int = field(default=0, metadata={"help": "of the repeated questions"})


def parse_yes_no(text: str) -> str:
    """`accept`, `reject`, or `invalid` for anything but a clear yes or no."""
    found = _YES_NO.match(text)
    return INVALID if found is None else ACCEPT if found.group(1).lower() == "yes" else REJECT


def compare_with_transcript(think: str | None, transcript: str) -> str:
    """Whether a trace claims exactly the sounds that the checker lists, in the same order."""
    claimed, heard = heard_sounds(think or ""), heard_sounds(transcript)
    if claimed is None or heard is None:
        return INVALID
    return ACCEPT if claimed == heard else REJECT


class Checker:
    """Asks the engine about clips of the dataset and keeps what was answered."""

    def __init__(self, engine: Engine, audio: schema.AudioById, journal: Journal):
        self.engine = engine
        self.journal = journal
        self._audio = audio

    def ask(self, texts: dict[str, tuple[str, str]], sampling: Sampling, description: str) -> None:
        """
        Make the requests that are not journaled yet.

        Args:
            texts (`dict`): Key of a request to the id of its clip and the text that goes with it.
        """

        def build(key: str) -> ChatRequest:
            row_id, text = texts[key]
            heard = decode_audio(self._audio[row_id], self.engine.window_s)
            return ChatRequest(key, text, audio=heard.waveform, note={"heard_s": heard.heard_s})

        run_requests(self.engine, list(texts), build, sampling, self.journal, description)

    def answer(self, key: str) -> str:
        """What the checker said, or "" where the clip could not be read."""
        completions = self.journal[key].get("completions")
        return completions[0]["text"] if completions else ""

    def heard_s(self, keys: list[str]) -> float | None:
        """Seconds of the clip that the checker was given."""
        return next(
            (self.journal[key]["heard_s"] for key in keys if key in self.journal and "heard_s" in self.journal[key]),
            None,
        )


def verify_transcript(rows: list[TraceRow], checker: Checker, args: VerdictsArguments) -> None:
    """Fill in verdicts by comparing claims with one transcript per clip."""
    asked = {row["id"]: (row["id"], CHECKER_TRANSCRIPT) for row in rows if row["traces"]}
    checker.ask(asked, Sampling(1, 0.0, args.max_tokens, args.seed), "transcripts")
    for row in rows:
        if row["id"] not in asked:
            continue
        said = checker.answer(row["id"])
        row["checker_heard_s"] = checker.heard_s([row["id"]])
        for trace in row["traces"]:
            trace |= {"verdict": compare_with_transcript(trace["think"], said), "verdict_text": said}


def verify_yes_no(rows: list[TraceRow], checker: Checker, args: VerdictsArguments) -> None:
    """Fill in verdicts by asking about every trace; the first question is greedy, repeated ones are sampled."""
    traces = {f"{row['id']}/{i}": (row["id"], trace) for row in rows for i, trace in enumerate(row["traces"])}
    for trace in (trace for _, trace in traces.values() if trace["think"] is None):
        trace |= {"verdict": INVALID, "verdict_text": None}
    open_keys = [key for key, (_, trace) in traces.items() if trace["think"] is not None]
    keys_of: dict[str, list[str]] = {row["id"]: [] for row in rows}
    for attempt in range(args.num_retries + 1):
        asked = {}
        for key in open_keys:
            row_id, trace = traces[key]
            asked[f"{key}#{attempt}"] = (row_id, CHECKER_YES_NO.format(think=trace["think"]))
            keys_of[row_id].append(f"{key}#{attempt}")
        sampling = Sampling(1, 0.0 if attempt == 0 else 1.0, args.max_tokens, args.seed + attempt)
        checker.ask(asked, sampling, f"verdicts (attempt {attempt + 1})")
        for key in open_keys:
            said = checker.answer(f"{key}#{attempt}")
            traces[key][1].update({"verdict": parse_yes_no(said), "verdict_text": said})
        open_keys = [key for key in open_keys if traces[key][1]["verdict"] == INVALID]
        if not open_keys:
            break
    for row in rows:
        row["checker_heard_s"] = checker.heard_s(keys_of[row["id"]])


def main() -> None:
    args = parse_arguments(VerdictsArguments, __doc__)
    ignored = ("output_dir", "batch_size" if args.base_url else "concurrency")
    settings = {k: v for k, v in asdict(args).items() if k not in ignored} | {"prompt_version": PROMPT_VERSION}
    settings |= {name: fingerprint(settings[name]) for name in ("dataset", "traces", "checker")}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        rows = list(schema.open_dataset(args.traces, "train"))
        dataset = schema.open_dataset(args.dataset, args.split)
        audio = schema.AudioById(dataset)
        schema.check_same_clips(rows, dataset, f"split '{args.split}' of {args.dataset}")
        engine = make_engine(
            args.checker, args.base_url, args.batch_size, args.concurrency, Sampling(1, 0.0, args.max_tokens, 0)
        )
        journal = Journal(stage.path / JOURNAL_FILE)
        verify = verify_yes_no if args.verdict_mode == YES_NO_MODE else verify_transcript
        verify(rows, Checker(engine, audio, journal), args)
        provenance = {"checker": args.checker, "checker_revision": engine.revision, "verdict_mode": args.verdict_mode}
        for row in rows:
            row |= provenance | (trace_outcome(row["traces"]) if row["traces"] else {})
        schema.write_parquet(rows, schema.traces_features(), stage.path / "data" / "train-00000-of-00001.parquet")
        # A clip that could not be read has no verdict: its traces are invalid, and the ledger says why.
        unread = {key.rsplit("/", 1)[0]: journal[key]["detail"] for key in journal if "detail" in journal[key]}
        entries = [{"id": r["id"], "outcome": r["outcome"], "detail": unread.get(r["id"])} for r in rows]
        schema.write_ledger(entries, stage.path / "ledger.parquet")
        write_dataset_card(
            stage.path, f"# Teacher traces with verdicts ({args.verdict_mode})\n", {"default": {"train": "data/*.parquet"}}
        )
        journal.close()
        verdicts = Counter(trace["verdict"] for row in rows for trace in row["traces"])
        print(f"{sum(verdicts.values())} traces: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common()))
        stage.finish()


if __name__ == "__main__":
    run(main)
