"""The ledger as files: read row by row, and joined with its verdicts. That of a real run does not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sightsound.cli import InputError
from sightsound.data.kinds import TRACES, check_kind
from sightsound.data.parquet import data_files, parquet_schema, read_parquet
from sightsound.data.sources import split_revision
from sightsound.method.selection import TraceRow


def stream_rows(source: str, columns: Sequence[str] | None = None, *, may_be_corpus: bool = False) -> Iterator[TraceRow]:
    """
    The rows of a traces or verdicts folder (or Hub dataset), in order, a row group in memory at a time.

    The files are those that `load_dataset` would read. It is not used because it first copies them into its cache; its
    streaming takes four times as long, and its memory grows with every row group.

    Args:
        source (`str`): Output of `traces.py` or `verdicts.py`.
        columns (`Sequence[str]`, *optional*): Only these.
        may_be_corpus (`bool`): Of a source that has a config `traces`, as `cot_corpus.py` writes it, read that.

    Raises:
        `InputError`: There is no such dataset.
    """
    import pyarrow as pa
    from datasets import Features, get_dataset_config_names

    name, revision = split_revision(source)
    try:
        has_traces = may_be_corpus and "traces" in get_dataset_config_names(name, revision=revision)
        files = data_files(source, "traces" if has_traces else None)["train"]
        found = Features.from_arrow_schema(parquet_schema(files[0]))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        message = f"cannot open split 'train' of {source} ({reason}); expected a dataset folder or a Hub dataset id"
        raise InputError(message) from error
    check_kind(found, source, TRACES)
    return read_parquet(files, columns)


def join_verdicts(traces: Iterable[TraceRow], verdicts: Iterable[TraceRow], unjoined: Unjoined) -> Iterator[TraceRow]:
    """
    Every traced question, with its verdicts where it has any.

    Both sides are read once. Their questions are in the same order; verdicts may lack some of them.

    Args:
        unjoined (`Unjoined`): Filled in. Call its `check` after the last row has been read.
    """
    remaining = iter(verdicts)
    verified = next(remaining, None)
    for row in traces:
        if verified is None or verified["id"] != row["id"]:
            yield row
            continue
        if [trace["text"] for trace in row["traces"]] != [trace["text"] for trace in verified["traces"]]:
            unjoined.stale.append(row["id"])
        yield verified
        verified = next(remaining, None)
    if verified is not None:
        unjoined.foreign = [verified["id"], *(row["id"] for row in remaining)]


@dataclass
class Unjoined:
    """Questions whose verdicts cannot be used: `stale` ones are about other traces, `foreign` ones were not traced."""

    stale: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def check(self, verdicts: str) -> None:
        """
        Raises:
            `InputError`: There is one.
        """
        if self.stale:
            found = f"{len(self.stale)} questions (first: {self.stale[0]}) have verdicts on other traces"
            raise InputError(f"{found}; run verdicts.py on these")
        if self.foreign:
            found = f"{len(self.foreign)} verdicts (first: {self.foreign[0]}) are on no question of the traces, or not in their"
            raise InputError(f"{found} order; is {verdicts} the output of verdicts.py on them?")
