r"""
Audio-grounded fact verification: a checker hears the clip and accepts or rejects each trace (paper, section 3.2).

    python dataset_builders/verdicts.py --dataset avqa-audio --split train --traces traces \
        --checker gpt-audio --base_url https://api.openai.com/v1 --output_dir verdicts

The checker is a model in this process, or one behind an OpenAI-compatible server that takes audio, such as `vllm serve MODEL
--port 8002 --generation-config vllm`; `recipes/run.sh` names one that you can serve. The paper's checker, gpt-4o-audio-preview,
is shut down; its successors at OpenAI are gpt-audio and gpt-audio-1.5. Some servers need other fields in a request:
`--request_field max_completion_tokens=64 --omit_field max_tokens`. Before the first request, and by `--dry_run`, the checker is
looked up at the server's `/v1/models`.

`--verdict_mode` has four values (a trained verifier is a fifth way, see below):

- `yes_no`, the paper's: one request per trace asks whether every sound that the trace claims is heard. A reply that is neither
  a clear yes nor a clear no is requested again with another seed, at most `--num_retries` times.
- `transcript`: one request per clip. The checker lists what it hears, and code compares that list with the sounds that each
  trace claims ("I hear a dog, then a bell.").
- `claims`: one request per claim of a clip's traces. A trace with a false claim is rejected, and its `claims` say which.
- `transcript_claims`: as `transcript`, and `claims` say which of the sounds that a trace lists are in the checker's list.

With `--rewriter MODEL`, normally the teacher, the modes of claims have a rejected trace written again from its true claims,
without the clip: reasoning and answer. The new trace is verified like the old one and kept beside it, in `rewritten`. The arm
`tts_claims` trains on those that were accepted too, all other arms on the traces as they were.

A trace that gets neither `accept` nor `reject` has the reason as its verdict: `no_reasoning`, `no_claims` (no such sentence),
`unclear`, `refused`, `cut`, or the outcome of the request. It is not accepted.

A `--checker` that recipes/verifier.py trained gives a probability per trace instead, and accepts from its own threshold on.
`verdict_mode` is then recorded as `verifier`, and `verdict_text` holds the probability ("p=0.9312").

The output has one row per question: the traces with their verdicts. `ledger.parquet` has every question with its outcome.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import parquet
from sightsound.data.audio import decode_audio
from sightsound.data.kinds import CLIPS, TRACES, open_input
from sightsound.data.sources import shown_source
from sightsound.engines import make_engine
from sightsound.engines.base import ChatRequest, Engine, EngineFlags, Sampling
from sightsound.engines.checker import (
    Checker,
    CheckerRecord,
    Questions,
    claim_questions,
    records_of,
    verify_by_probability,
    verify_claims,
    verify_transcript,
    verify_transcript_claims,
    verify_yes_no,
)
from sightsound.engines.claim_rewriting import (
    Rewriter,
    is_rewriting,
    verify_rewritten_claims,
    verify_rewritten_transcript,
)
from sightsound.engines.cost import dry_run
from sightsound.engines.diagnosis import summary_of_verdicts, warning_of_no_verdict
from sightsound.engines.openai_batch import BATCHES_FILE
from sightsound.engines.request_fields import RequestFieldArguments, RequestOptions, options_of, settings_of_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.hub.inputs import pin_datasets
from sightsound.method.audio_contribution import contributions_of, known_contribution
from sightsound.method.prompts import (
    CHECKER_CLAIM,
    CHECKER_TRANSCRIPT,
    CHECKER_YES_NO,
    REWRITE_PROMPT,
    Prompt,
    choose_prompt,
)
from sightsound.method.selection import TraceRow, lacking_verdicts, trace_outcome
from sightsound.method.verdicts import verdict_of_probability
from sightsound.models.loading import clip_facts
from sightsound.models.origins import served_window_s
from sightsound.models.sources import pin_model
from sightsound.scale.executors import ScaleArguments, for_rank
from sightsound.scale.ranks import Result, collect, finish, open_stage, write_results
from sightsound.stage import Journal, fingerprint
from sightsound.training.verifier import VERIFIER_MODE, VerifierEngine, parse_probability, read_verifier


YES_NO_MODE, TRANSCRIPT_MODE, CLAIMS_MODE, TRANSCRIPT_CLAIMS_MODE = "yes_no", "transcript", "claims", "transcript_claims"
MODES = (YES_NO_MODE, TRANSCRIPT_MODE, CLAIMS_MODE, TRANSCRIPT_CLAIMS_MODE)
OF_CLAIMS = (CLAIMS_MODE, TRANSCRIPT_CLAIMS_MODE)


@dataclass
class VerdictsArguments(ScaleArguments, RequestFieldArguments):
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    traces: str = field(metadata={"help": "output of traces.py"})
    checker: str = field(metadata={"help": "an audio model or a verifier: folder or Hub id, or a model's name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write the verdicts"})
    split: str = field(default="train", metadata={"help": "split of the dataset that was traced"})
    base_url: list[str] | None = field(default=None, metadata={"help": "OpenAI-compatible server; several are replicas"})
    verdict_mode: str = field(default=YES_NO_MODE, metadata={"help": "how to check", "choices": list(MODES)})
    rewriter: str | None = field(
        default=None,
        metadata={"help": "model that writes rejected traces again from their true claims"},
    )
    rewriter_base_url: list[str] | None = field(default=None, metadata={"help": "server of --rewriter"})
    rewriter_max_tokens: int = field(default=512, metadata={"help": "maximum tokens of a trace of --rewriter", "minimum": 1})
    num_retries: int = field(default=2, metadata={"help": "how often an unclear yes/no is requested again", "minimum": 0})
    max_tokens: int = field(default=64, metadata={"help": "maximum tokens of a verdict or a transcript", "minimum": 1})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=16, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    request_timeout_s: float = field(
        default=600.0, metadata={"help": "a request that --base_url does not answer for so long is made again", "minimum": 1}
    )
    batch_api: bool = field(default=False, metadata={"help": "use the Batch API of --base_url: half the price, within a day"})
    prompt_file: str | None = field(
        default=None,
        metadata={"help": "another prompt: a text file, for yes_no with the field {think}; replies are read as those to ours"},
    )
    seed: int = field(default=0, metadata={"help": "random seed for the repeated requests"})
    limit: int | None = field(default=None, metadata={"help": "first questions only, to train a verifier on", "minimum": 1})
    dry_run: bool = field(default=False, metadata={"help": "print what the run would cost, from a sample, and stop"})

    def options(self) -> RequestOptions:
        return options_of(self, self.base_url, ("max_tokens", "seed"))

    @cached_property
    def chosen_prompt(self) -> Prompt:
        if self.verdict_mode in (TRANSCRIPT_MODE, TRANSCRIPT_CLAIMS_MODE):
            return choose_prompt(self.prompt_file, CHECKER_TRANSCRIPT, ())
        if self.verdict_mode == VERIFIER_MODE and self.prompt_file is not None:
            raise InputError(f"a verifier has the prompt that it was trained with; leave out --prompt_file {self.prompt_file}")
        if self.verdict_mode == CLAIMS_MODE:
            return choose_prompt(self.prompt_file, CHECKER_CLAIM, ("claim",))
        return choose_prompt(self.prompt_file, CHECKER_YES_NO, ("think",))

    def check_rewriter(self) -> None:
        """
        Raises:
            `InputError`: The flags of the rewriter do not go together.
        """
        if self.rewriter is None and self.rewriter_base_url:
            raise InputError("--rewriter_base_url is the server of --rewriter; give that model's name as well")
        if self.rewriter is not None and self.verdict_mode not in OF_CLAIMS:
            expected = " or ".join(OF_CLAIMS)
            raise InputError(f"--rewriter is for --verdict_mode {expected}, not {self.verdict_mode}; leave one out")
        options_of(RequestFieldArguments(), self.rewriter_base_url, ())


def questions_of(rows: Iterable[TraceRow], mode: str, prompt: str = "") -> Questions:
    """The first requests about these rows. Traces without reasoning, or without claims, get none."""
    if mode == CLAIMS_MODE:
        return claim_questions(rows, prompt)
    thinks = {
        f"{row['id']}/{i}": (row["id"], trace["think"])
        for row in rows
        for i, trace in enumerate(row["traces"])
        if trace["think"] is not None
    }
    if mode == VERIFIER_MODE:
        return thinks
    if mode in (TRANSCRIPT_MODE, TRANSCRIPT_CLAIMS_MODE):
        return {row_id: (row_id, prompt.format()) for row_id, _ in thinks.values()}
    return {f"{key}#0": (row_id, prompt.format(think=think)) for key, (row_id, think) in thinks.items()}


def to_row(row: TraceRow, record: CheckerRecord, provenance: dict[str, Any], prompt: Prompt) -> Result:
    """A question with its verdicts and what the journal holds about it -> one row of the ledger, and its detail."""
    outcome = trace_outcome(row["traces"]) if row["traces"] else {}
    lacking = ", ".join(f"{count} {reason}" for reason, count in lacking_verdicts(row["traces"]).items())
    detail = ": ".join(part for part in (lacking, record.detail) if part) if lacking else None
    sampling = json.dumps(record.sampling) if record.sampling else None
    checked: dict[str, Any] = {"checker_heard_s": record.heard_s, "checker_sampling": sampling}
    if prompt.sha256:  # the column holds the teacher's prompt: the checker's goes beside it
        checked["prompt_version"] = f"{row['prompt_version']}, checker {prompt.version}"
    return row | provenance | outcome | checked, detail


class CheckerRun:
    """The traces of a run and their clips."""

    def __init__(
        self,
        args: VerdictsArguments,
        verifier: dict[str, Any] | None,
        checker_commit: str | None = None,
        rewriter_commit: str | None = None,
    ):
        self._args, self._verifier, self._checker_commit = args, verifier, checker_commit
        self._rewriter_commit = rewriter_commit
        traces = open_input(args.traces, "train", TRACES)
        self._traces = traces.select(range(min(len(traces), args.limit or len(traces))))
        dataset = open_input(args.dataset, args.split, CLIPS)
        self._audio, self._contributions = parquet.AudioById(dataset), contributions_of(dataset)
        self._video_questions = dict(zip(dataset["id"], dataset["video_question"], strict=True)) if args.rewriter else {}
        clips = self._traces.select_columns(["id", "media_sha256"])
        parquet.check_same_clips(clips, dataset, f"split '{args.split}' of {args.dataset}")
        self.ids: list[str] = list(self._traces["id"])
        self._position = {row_id: i for i, row_id in enumerate(self.ids)}
        self._sampling = Sampling(1, 0.0, args.max_tokens, args.seed)

    def block_of(self, row_id: str) -> int:
        """Only questions of one block share a call of an engine in this process, and a rank has whole blocks."""
        return self._position[row_id] // self._args.batch_size

    def build(self, key: str, row_id: str, text: str, window_s: float | None) -> ChatRequest:
        heard = decode_audio(self._audio[row_id], window_s)
        return ChatRequest(key, text, audio=heard.waveform, note={"heard_s": heard.heard_s})

    def questions(self, rows: Iterable[TraceRow]) -> Questions:
        return questions_of(rows, self._args.verdict_mode, self._args.chosen_prompt.text)

    def estimate(self) -> str:
        """What `--dry_run` prints."""
        args, questions = self._args, self.questions(self._traces)
        window_s, count_audio = (
            (served_window_s(args.checker), None) if args.base_url else clip_facts(args.checker, self._checker_commit)
        )
        notes = []
        if args.verdict_mode in (YES_NO_MODE, CLAIMS_MODE):
            notes.append(f"Unclear replies are requested again, up to {args.num_retries} times: not counted here.")
        if args.rewriter is not None:
            notes.append(f"{args.rewriter} gets a request for each set of true claims of a rejected trace: not counted here.")
        if args.batch_api:
            notes.append("Prices are those of single requests: OpenAI takes half of them for batches.")
        return dry_run(
            list(questions),
            lambda key: self.build(key, *questions[key], window_s),
            self._sampling,
            model=args.checker,
            base_url=args.base_url,
            output_dir=args.output_dir,
            count_audio=count_audio,
            notes=notes,
        )

    def verify(self, ids: Sequence[str], journal_file: Path) -> Iterator[Result]:
        """Give all traces of these questions their verdicts; then yield the rows of the ledger."""
        args = self._args
        rows: list[TraceRow] = [self._traces[self._position[row_id]] for row_id in ids]
        questions, sampling = self.questions(rows), self._sampling
        rewriter_revision = None
        engine = self._open_engine()
        with closing(Journal(journal_file)) as journal:
            checker = Checker(engine, journal, self.build, self.block_of, is_part=args.rank is not None)
            if self._verifier is not None:
                threshold = self._verifier["threshold"]
                verify_by_probability(
                    rows,
                    checker,
                    questions,
                    replace(sampling, max_tokens=1),
                    verdict_of=lambda text: verdict_of_probability(parse_probability(text), threshold),
                )
            elif args.verdict_mode in OF_CLAIMS:
                rewriter_revision = self._verify_claims(rows, checker, questions)
            elif args.verdict_mode == YES_NO_MODE:
                verify_yes_no(rows, checker, questions, sampling, num_retries=args.num_retries)
            else:
                verify_transcript(rows, checker, questions, sampling)
        asked = {key: entry for key, entry in journal.entries.items() if not is_rewriting(key)}
        records = records_of(asked, self._position)
        provenance: dict[str, str | None] = {"checker": shown_source(args.checker), "checker_revision": engine.revision}
        provenance |= {"verdict_mode": args.verdict_mode, "rewriter_revision": rewriter_revision}
        provenance |= {"rewriter": shown_source(args.rewriter) if args.rewriter else None}
        return (
            to_row(
                row | known_contribution(self._contributions.get(row["id"], {}), row),
                records.get(row["id"], CheckerRecord()),
                provenance,
                args.chosen_prompt,
            )
            for row in rows
        )

    def _verify_claims(self, rows: list[TraceRow], checker: Checker, questions: Questions) -> str | None:
        """Verify traces claim by claim, and have rejected ones written again; returns the revision of the rewriter."""
        args, prompt, sampling = self._args, self._args.chosen_prompt.text, self._sampling
        verdicts: dict[str, str] = {}
        if args.verdict_mode == CLAIMS_MODE:
            verdicts = verify_claims(rows, checker, prompt, sampling, num_retries=args.num_retries)
        else:
            verify_transcript_claims(rows, checker, questions, sampling)
        if args.rewriter is None:
            return None
        rewriter = self._open_rewriter()
        rewriter.rewrite(rows, checker.journal, is_part=checker.is_part)
        if args.verdict_mode == CLAIMS_MODE:
            verify_rewritten_claims(rows, checker, verdicts, prompt, sampling, num_retries=args.num_retries)
        else:
            verify_rewritten_transcript(rows)
        return rewriter.engine.revision

    def _open_rewriter(self) -> Rewriter:
        args = self._args
        sampling = Sampling(1, 0.0, args.rewriter_max_tokens, args.seed)
        flags = EngineFlags(
            model=str(args.rewriter),
            sampling=sampling,
            base_url=[for_rank(url, args) for url in args.rewriter_base_url or []],
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            timeout_s=args.request_timeout_s,
            revision=self._rewriter_commit,
        )
        return Rewriter(make_engine(flags), REWRITE_PROMPT, sampling, self._video_questions.__getitem__, self.block_of)

    def _open_engine(self) -> Engine:
        args = self._args
        if self._verifier is not None:
            return VerifierEngine(args.checker, self._verifier, args.batch_size, self._checker_commit)
        flags = EngineFlags(
            model=args.checker,
            sampling=self._sampling,
            base_url=[for_rank(url, args) for url in args.base_url or []],
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            timeout_s=args.request_timeout_s,
            batches=batches_file(args),
            options=args.options(),
            revision=self._checker_commit,
        )
        return make_engine(flags)


def batches_file(args: VerdictsArguments) -> Path | None:
    """
    The file that records the batches of this run; None where it makes single requests.

    Raises:
        `InputError`: The flags do not go with batches, or batches were submitted without these flags.
    """
    path = Path(args.output_dir) / BATCHES_FILE
    if args.batch_api and (len(args.base_url or []) != 1 or args.num_tasks > 1 or args.rank is not None):
        raise InputError("--batch_api needs one --base_url, and no --num_tasks: all the work is done at the server")
    if path.is_file() and path.stat().st_size and not args.batch_api:
        raise InputError(f"{path} records batches that are paid for; give --batch_api, or delete it to make single requests")
    return path if args.batch_api else None


def settings_of(
    args: VerdictsArguments, checker_commit: str | None = None, rewriter_commit: str | None = None
) -> dict[str, Any]:
    """What a rerun has to share: every flag and input that decides a verdict."""
    of_rewriter = ["rewriter", "rewriter_base_url", "rewriter_max_tokens"]
    settings = settings_of_requests(args, ["batch_api", *of_rewriter], model_commit=checker_commit)
    if args.rewriter is not None:
        rewriter = args.rewriter if args.rewriter_base_url else fingerprint(args.rewriter)
        settings |= {"rewriter": rewriter, "rewriter_commit": rewriter_commit, "rewriter_max_tokens": args.rewriter_max_tokens}
    return settings | {name: fingerprint(settings[name]) for name in ("dataset", "traces", "checker")}


def main() -> None:
    args = parse_arguments(VerdictsArguments, __doc__)
    args.options()
    args.check_rewriter()
    pin_datasets(args, ["dataset", "traces"], args.output_dir)
    commit = None if args.base_url else pin_model("checker", args.checker, args.output_dir)
    in_process = args.rewriter is not None and not args.rewriter_base_url
    rewriter_commit = pin_model("rewriter", str(args.rewriter), args.output_dir) if in_process else None
    verifier = None if args.base_url else read_verifier(args.checker, commit)
    if verifier is not None:
        args.verdict_mode = VERIFIER_MODE
        args.check_rewriter()
    if args.dry_run:
        print(CheckerRun(args, verifier, commit).estimate())
        return
    batches_file(args)
    with open_stage(args, args.output_dir, settings_of(args, commit, rewriter_commit)) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        checker_run = CheckerRun(args, verifier, commit, rewriter_commit)
        align = 1 if args.base_url and (args.rewriter is None or args.rewriter_base_url) else args.batch_size
        results = collect(args, args.output_dir, stage, checker_run.ids, align, checker_run.verify)
        if results is None:
            return
        data = stage.path / "data" / "train-00000-of-00001.parquet"
        funnel = write_results(results, data, stage.path / "ledger.parquet")
        write_dataset_card(
            stage.path, f"# Teacher traces with verdicts ({args.verdict_mode})\n", {"default": {"train": "data/*.parquet"}}
        )
        print(summary_of_verdicts(funnel, args.max_tokens))
        if warning := warning_of_no_verdict(funnel):
            print(warning, file=sys.stderr)
        (stage.path / BATCHES_FILE).unlink(missing_ok=True)
        finish(stage)


if __name__ == "__main__":
    run(main)
