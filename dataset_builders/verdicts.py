r"""
Audio-grounded fact verification: a checker that hears accepts or rejects each trace (paper, section 3.2).

    python dataset_builders/verdicts.py --dataset avqa-audio --split train --traces traces \
        --checker Qwen/Qwen2.5-Omni-7B --base_url http://localhost:8002/v1 --output_dir verdicts

The checker is a model in this process, or one behind an OpenAI-compatible server that takes audio, such as `vllm serve
Qwen/Qwen2.5-Omni-7B --port 8002 --generation-config vllm`. The paper's checker, gpt-4o-audio-preview, is shut down; its
successors at OpenAI are gpt-audio and gpt-audio-1.5. Other servers want other requests: `--request_field
max_completion_tokens=64 --omit_field max_tokens`. The checker is looked up at the server's `/v1/models` before the first
request, also by `--dry_run`.

Two modes. `yes_no`, the paper's: the checker is asked, per trace, whether every sound that the trace claims is heard;
anything but a clear yes or no is asked again with another seed, at most `--num_retries` times. `transcript`: the checker lists
what it hears, once per clip, and code compares that list with the sounds that each trace claims ("I hear a dog, then a bell.").

A trace that gets neither `accept` nor `reject` has the reason as its verdict: `no_reasoning`, `no_claims` (no such sentence),
`unclear`, `refused`, `cut`, or what became of the request. It is not accepted.

A `--checker` that recipes/verifier.py trained answers with a probability per trace instead, and accepts from its own threshold
on: `verdict_mode` is then recorded as `verifier`, and `verdict_text` says the probability ("p=0.9312").

One row per question, the traces file with its verdicts filled in, and every question in `ledger.parquet`.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import parquet, schema
from sightsound.data.audio import decode_audio
from sightsound.data.kinds import CLIPS, TRACES, open_input
from sightsound.data.sources import shown_source
from sightsound.engines import make_engine
from sightsound.engines.base import ChatRequest, Engine, Sampling
from sightsound.engines.cost import dry_run
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.openai_batch import BATCHES_FILE
from sightsound.engines.request_fields import RequestFieldArguments, RequestOptions, options_of, recorded
from sightsound.engines.runner import run_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.hub.inputs import pin_datasets
from sightsound.method.prompts import CHECKER_TRANSCRIPT, CHECKER_YES_NO, PROMPT_VERSION
from sightsound.method.selection import (
    ACCEPT,
    CUT,
    NO_CLAIMS,
    NO_REASONING,
    REJECT,
    UNCLEAR,
    Funnel,
    TraceRow,
    counted,
    lacking_verdicts,
    trace_outcome,
)
from sightsound.method.verdicts import compare_with_transcript, parse_cut_yes_no, parse_yes_no
from sightsound.models.sources import pin_model
from sightsound.scale.executors import SCALE_FIELDS, ScaleArguments, for_rank
from sightsound.scale.ranks import Result, collect, finish, open_stage, write_results
from sightsound.stage import Journal, fingerprint
from sightsound.training.verifier import VERIFIER_MODE, VerifierEngine, parse_probability, read_verifier


YES_NO_MODE, TRANSCRIPT_MODE = "yes_no", "transcript"

# Why a text is not a complete answer, by its finish reason.
UNFINISHED = {"length": CUT, "refusal": schema.REFUSED, "content_filter": schema.REFUSED}


@dataclass
class VerdictsArguments(ScaleArguments, RequestFieldArguments):
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    traces: str = field(metadata={"help": "output of traces.py"})
    checker: str = field(metadata={"help": "an audio model or a verifier: folder or Hub id, or a model's name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write the verdicts"})
    split: str = field(default="train", metadata={"help": "split of the dataset that was traced"})
    base_url: list[str] | None = field(default=None, metadata={"help": "OpenAI-compatible server; several are replicas"})
    verdict_mode: str = field(default=YES_NO_MODE, metadata={"help": "how to check", "choices": [YES_NO_MODE, TRANSCRIPT_MODE]})
    num_retries: int = field(default=2, metadata={"help": "how often an unclear yes/no is asked again", "minimum": 0})
    max_tokens: int = field(default=64, metadata={"help": "per verdict or transcript", "minimum": 1})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=16, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    request_timeout_s: float = field(
        default=600.0, metadata={"help": "a request that --base_url does not answer for so long is made again", "minimum": 1}
    )
    batch_api: bool = field(
        default=False, metadata={"help": "ask through the Batch API of --base_url: half the price, within a day"}
    )
    seed: int = field(default=0, metadata={"help": "of the repeated questions"})
    limit: int | None = field(default=None, metadata={"help": "first questions only, to train a verifier on", "minimum": 1})
    dry_run: bool = field(default=False, metadata={"help": "say what the run would cost, from a sample, and stop"})

    def options(self) -> RequestOptions:
        return options_of(self, self.base_url, ("max_tokens", "seed"))


# Key of a request -> the id of its question, and the text that goes with the clip.
Asked = dict[str, tuple[str, str]]


def first_asked(rows: Iterable[TraceRow], mode: str) -> Asked:
    """What the checker is asked about these questions, before any question has to be asked again."""
    if mode == TRANSCRIPT_MODE:
        return {row["id"]: (row["id"], CHECKER_TRANSCRIPT) for row in rows if _has_reasoning(row)}
    thinks = {
        f"{row['id']}/{i}": (row["id"], trace["think"])
        for row in rows
        for i, trace in enumerate(row["traces"])
        if trace["think"] is not None
    }
    if mode == VERIFIER_MODE:
        return thinks
    return {f"{key}#0": (row_id, CHECKER_YES_NO.format(think=think)) for key, (row_id, think) in thinks.items()}


def _has_reasoning(row: TraceRow) -> bool:
    return any(trace["think"] is not None for trace in row["traces"])


class Checker:
    """Asks an engine about clips of the dataset and keeps what was answered."""

    def __init__(self, engine: Engine, run: "CheckerRun", journal: Journal):
        self._engine, self._run, self._journal = engine, run, journal

    def ask(self, asked: Asked, sampling: Sampling, description: str) -> None:
        """Make the requests that are not journaled yet."""

        def build(key: str) -> ChatRequest:
            return self._run.build(key, *asked[key], self._engine.window_s)

        def block_of(key: str) -> int:
            return self._run.block_of(asked[key][0])

        def clip_of(key: str) -> str:
            return asked[key][0]

        is_part = self._run.is_part
        run_requests(self._engine, list(asked), build, sampling, self._journal, description, clip_of, block_of, is_part)

    def reply(self, key: str) -> tuple[str | None, str | None]:
        """The checker's reply, None if there is none; and why it is not a complete answer, None if it is one."""
        entry = self._journal[key]
        if "outcome" in entry:
            return None, entry["outcome"]
        (completion,) = entry["completions"]
        return completion["text"], UNFINISHED.get(completion["finish_reason"])


def verify_transcript(rows: list[TraceRow], checker: Checker, args: VerdictsArguments) -> None:
    """Fill in verdicts by comparing claims with one transcript per clip."""
    checker.ask(first_asked(rows, TRANSCRIPT_MODE), Sampling(1, 0.0, args.max_tokens, args.seed), "transcripts")
    for row in rows:
        said, problem = checker.reply(row["id"]) if _has_reasoning(row) else (None, NO_REASONING)
        for trace in row["traces"]:
            verdict = NO_REASONING if trace["think"] is None else problem
            trace |= {"verdict": verdict or compare_with_transcript(trace["think"], said or ""), "verdict_text": said}


def verify_yes_no(rows: list[TraceRow], checker: Checker, args: VerdictsArguments) -> None:
    """Fill in verdicts by asking about every trace; the first question is greedy, repeated ones are sampled."""
    traces = {f"{row['id']}/{i}": trace for row in rows for i, trace in enumerate(row["traces"])}
    for trace in traces.values():
        trace |= {"verdict": NO_REASONING, "verdict_text": None}
    asked = first_asked(rows, YES_NO_MODE)
    for attempt in range(args.num_retries + 1):
        sampling = Sampling(1, 0.0 if attempt == 0 else 1.0, args.max_tokens, args.seed + attempt)
        checker.ask(asked, sampling, f"verdicts (attempt {attempt + 1})")
        again: Asked = {}
        for key, question in asked.items():
            name, (said, problem) = key.rpartition("#")[0], checker.reply(key)
            verdict = parse_cut_yes_no(said or "") if problem == CUT else problem or parse_yes_no(said or "")
            traces[name] |= {"verdict": verdict, "verdict_text": said}
            if said is not None and verdict not in (ACCEPT, REJECT):
                again[f"{name}#{attempt + 1}"] = question
        asked = again
        if not asked:
            break


def verify_by_probability(rows: list[TraceRow], checker: Checker, args: VerdictsArguments, threshold: float) -> None:
    """Fill in verdicts by what a verifier makes of every trace."""
    checker.ask(first_asked(rows, VERIFIER_MODE), Sampling(1, 0.0, 1, args.seed), "verdicts")
    for row in rows:
        for i, trace in enumerate(row["traces"]):
            said, problem = (None, NO_REASONING) if trace["think"] is None else checker.reply(f"{row['id']}/{i}")
            p = parse_probability(said or "")
            verdict = UNCLEAR if p is None else ACCEPT if p >= threshold else REJECT
            trace |= {"verdict": problem or verdict, "verdict_text": said}


class CheckerRun:
    """The traces of a run, the clips that they are about, and how the checker is asked about some of them."""

    def __init__(self, args: VerdictsArguments, verifier: dict[str, Any] | None, checker_commit: str | None = None):
        self._args, self._verifier, self._checker_commit = args, verifier, checker_commit
        traces = open_input(args.traces, "train", TRACES)
        self._traces = traces.select(range(min(len(traces), args.limit or len(traces))))
        dataset = open_input(args.dataset, args.split, CLIPS)
        self._audio = parquet.AudioById(dataset)
        clips = self._traces.select_columns(["id", "media_sha256"])
        parquet.check_same_clips(clips, dataset, f"split '{args.split}' of {args.dataset}")
        self.ids: list[str] = list(self._traces["id"])
        self.is_part = args.rank is not None
        self._position = {row_id: i for i, row_id in enumerate(self.ids)}

    def block_of(self, row_id: str) -> int:
        """Questions whose requests may share a call of an engine in this process; a rank has whole blocks."""
        return self._position[row_id] // self._args.batch_size

    def build(self, key: str, row_id: str, text: str, window_s: float | None) -> ChatRequest:
        heard = decode_audio(self._audio[row_id], window_s)
        return ChatRequest(key, text, audio=heard.waveform, note={"heard_s": heard.heard_s})

    def estimate(self) -> str:
        """What `--dry_run` says."""
        args = self._args
        asked = first_asked(self._traces, args.verdict_mode)
        window_s = OpenAIEngine.window_s if args.base_url else None
        notes = []
        if args.verdict_mode == YES_NO_MODE:
            notes.append(f"What is unclear is asked again, up to {args.num_retries} times: not counted here.")
        if args.batch_api:
            notes.append("Prices are those of single requests: OpenAI takes half of them for batches.")

        def build(key: str) -> ChatRequest:
            return self.build(key, *asked[key], window_s)

        sampling = Sampling(1, 0.0, args.max_tokens, args.seed)
        return dry_run(list(asked), build, sampling, args.checker, args.base_url, args.output_dir, notes)

    def judge(self, ids: Sequence[str], journal_file: Path) -> Iterator[Result]:
        """All traces of `ids` get their verdict; then, as they are read, the rows of the ledger."""
        args = self._args
        rows: list[TraceRow] = [self._traces[self._position[row_id]] for row_id in ids]
        with closing(Journal(journal_file)) as journal:
            if self._verifier is not None:
                engine: Engine = VerifierEngine(args.checker, self._verifier, args.batch_size, self._checker_commit)
                verify_by_probability(rows, Checker(engine, self, journal), args, self._verifier["threshold"])
            else:
                urls = [for_rank(url, args) for url in args.base_url or []]
                sampling = Sampling(1, 0.0, args.max_tokens, args.seed)
                engine = make_engine(
                    args.checker,
                    urls,
                    args.batch_size,
                    args.concurrency,
                    sampling,
                    args.request_timeout_s,
                    batches=batches_file(args),
                    options=args.options(),
                    revision=self._checker_commit,
                )
                verify = verify_yes_no if args.verdict_mode == YES_NO_MODE else verify_transcript
                verify(rows, Checker(engine, self, journal), args)
        # Seconds of the clip that the checker was given; or what was seen where it gave no reply.
        heard_s: dict[str, float | None] = {}
        unread: dict[str, Any] = {}
        drawn: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # sampling of each attempt: greedy first
        for key, entry in journal.entries.items():
            row_id = key if key in self._position else key.rpartition("/")[0]
            heard_s.setdefault(row_id, entry.get("heard_s"))
            if "sampling" in entry and entry["sampling"] not in drawn[row_id]:
                drawn[row_id].append(entry["sampling"])
            if "detail" in entry:
                unread[row_id] = entry["detail"]
        made = {"checker_revision": engine.revision, "verdict_mode": args.verdict_mode}
        provenance = {"checker": shown_source(args.checker), **made}

        def judged(row: TraceRow) -> Result:
            outcome = trace_outcome(row["traces"]) if row["traces"] else {}
            lacking = ", ".join(f"{count} {reason}" for reason, count in lacking_verdicts(row["traces"]).items())
            detail = ": ".join(part for part in (lacking, unread.get(row["id"])) if part) if lacking else None
            of_row: dict[str, Any] = {"checker_heard_s": heard_s.get(row["id"]), "checker_sampling": None}
            if row["id"] in drawn:
                of_row["checker_sampling"] = json.dumps(drawn[row["id"]])
            return row | provenance | outcome | of_row, detail

        return map(judged, rows)


def main() -> None:
    args = parse_arguments(VerdictsArguments, __doc__)
    args.options()
    pin_datasets(args, ["dataset", "traces"], args.output_dir)
    commit = None if args.base_url else pin_model("checker", args.checker, args.output_dir)
    verifier = None if args.base_url else read_verifier(args.checker, commit)
    if verifier is not None:
        args.verdict_mode = VERIFIER_MODE
    if args.dry_run:
        print(CheckerRun(args, verifier, commit).estimate())
        return
    batches_file(args)
    with open_stage(args, args.output_dir, settings_of(args, commit)) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        checked = CheckerRun(args, verifier, commit)
        align = 1 if args.base_url else args.batch_size
        results = collect(args, args.output_dir, stage, checked.ids, align, checked.judge)
        if results is None:
            return
        data = stage.path / "data" / "train-00000-of-00001.parquet"
        funnel = write_results(results, data, stage.path / "ledger.parquet")
        write_dataset_card(
            stage.path, f"# Teacher traces with verdicts ({args.verdict_mode})\n", {"default": {"train": "data/*.parquet"}}
        )
        print(summary(funnel, args.max_tokens))
        if warning := warning_of_no_verdict(funnel):
            print(warning, file=sys.stderr)
        (stage.path / BATCHES_FILE).unlink(missing_ok=True)
        finish(stage)


def summary(funnel: Funnel, max_tokens: int) -> str:
    """How many traces have which verdict, and the remedy where they have none."""
    lines = [f"{funnel.verdicts.total()} traces: {counted(funnel.verdicts)}"]
    if set(funnel.verdicts) <= {NO_REASONING}:
        lines.append("The checker was asked nothing: no trace has reasoning inside <think></think>.")
    if funnel.verdicts[CUT]:
        lines.append(f"{funnel.verdicts[CUT]} replies were cut: give a larger --max_tokens (now {max_tokens}).")
    return "\n".join(lines)


def warning_of_no_verdict(funnel: Funnel) -> str | None:
    """What to print where the checker was asked and not one trace got `accept` or `reject`; None otherwise."""
    reasons = Counter({reason: count for reason, count in funnel.verdicts.items() if reason != NO_REASONING})
    if not reasons or ACCEPT in reasons or REJECT in reasons:
        return None
    reason = reasons.most_common(1)[0][0]
    remedy = {
        UNCLEAR: "the checker says neither yes nor no: choose another --checker or --verdict_mode",
        schema.REFUSED: "the checker refuses: choose another --checker; the column verdict_text and ledger.parquet say how",
        CUT: "raise --max_tokens",
        NO_CLAIMS: "the traces name no sounds in the form that is compared: choose --verdict_mode yes_no",
    }.get(str(reason), "ledger.parquet says what was seen: mend the --checker or its server")
    return (
        f"warning: not one of {funnel.verdicts.total()} traces was accepted or rejected, mostly for the reason {reason}; "
        f"{remedy}; delete the folder and start again"
    )


def batches_file(args: VerdictsArguments) -> Path | None:
    """
    What records the batches of this run; None where it makes single requests.

    Raises:
        `InputError`: The flags do not go with batches, or with those that were submitted.
    """
    path = Path(args.output_dir) / BATCHES_FILE
    if args.batch_api and (len(args.base_url or []) != 1 or args.num_tasks > 1 or args.rank is not None):
        raise InputError("--batch_api needs one --base_url, and no --num_tasks: the work is all at the server")
    if path.is_file() and path.stat().st_size and not args.batch_api:
        raise InputError(f"{path} records batches that are paid for; give --batch_api, or delete it to ask without them")
    return path if args.batch_api else None


def settings_of(args: VerdictsArguments, checker_commit: str | None = None) -> dict[str, Any]:
    """What a rerun has to share: all that decides a verdict. Which servers give it, and in how many ranks, does not."""
    ignored = [*SCALE_FIELDS, "output_dir", "base_url", "concurrency", "request_timeout_s", "dry_run", "batch_api"]
    if args.base_url:
        ignored.append("batch_size")
    settings = {name: value for name, value in asdict(args).items() if name not in ignored}
    settings |= {"prompt_version": PROMPT_VERSION, "engine": "server" if args.base_url else "in process"}
    settings |= {"model_commit": checker_commit, **recorded(args)}
    return settings | {name: fingerprint(settings[name]) for name in ("dataset", "traces", "checker")}


if __name__ == "__main__":
    run(main)
