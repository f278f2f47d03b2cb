"""
Write a question dataset again with its audio contribution: the same rows, other values in four columns.

Audio is copied as bytes, one row group in memory at a time. All splits are written, so that the result can be used in place of
the dataset; the labels are of one of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.building.blind_runs import CONDITIONS, BlindRun
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.kinds import CLIPS, check_kind
from sightsound.data.schema import CONTRIBUTION_COLUMNS
from sightsound.data.statistics import wilson_interval
from sightsound.hub.cards import as_json, dataset_info, markdown_table, provenance, render_card, write_dataset_card
from sightsound.hub.inputs import CARD, dataset_file
from sightsound.method.audio_contribution import (
    CONTRIBUTIONS,
    SILENT,
    TEXT_ONLY,
    UNKNOWN,
    WEAK_ABOVE,
    contribution_word,
    known_contribution,
)
from sightsound.stage import LEDGER_FILE


if TYPE_CHECKING:
    from datasets import Features

Row = dict[str, Any]

TITLE = "## Audio contribution"
_SECTION = re.compile(rf"^{TITLE}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_SAMPLE = re.compile(r"(?<=```json\n)\{\n.*?\n\}(?=\n```)", re.DOTALL)
_DETAIL = "audio contribution "  # begins what a ledger's detail says of a label
SHOWN = {TEXT_ONLY: "the question alone", SILENT: "silence"}


def files_of(source: str, split: str) -> dict[str, list[str]]:
    """
    The files of a question dataset by split, here or on the Hub.

    Raises:
        `InputError`: There is no such dataset or split, or it holds no questions about clips.
    """
    import pyarrow as pa
    from datasets import Features

    try:
        files = parquet.data_files(source)
        found = Features.from_arrow_schema(parquet.parquet_schema(files[split][0]))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "expected a dataset folder or a Hub dataset id, and one of its splits"
        raise InputError(f"cannot open split '{split}' of {source} ({reason}); {remedy}") from error
    check_kind(found, f"split '{split}' of {source}", CLIPS)
    return files


def features_with_labels(file: str | Path) -> Features:
    """The columns of a file, with those of the audio contribution; where it lacks them, they come last."""
    from datasets import Features

    found = Features.from_arrow_schema(parquet.parquet_schema(file))
    return Features({**found, **schema.contribution_features()})


def copy_labelled(file: str, target: Path, labels: Mapping[str, Row]) -> None:
    """
    Copy a file of questions. Rows with a label get it, and others keep theirs; all else is as it is in the file.

    Args:
        file (`str`): Here or on the Hub.
        target (`Path`): Written at once.
        labels (`Mapping`): By question id.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = features_with_labels(file).arrow_schema
    with parquet.replaced_when_complete(target) as temporary, pq.ParquetWriter(temporary, written) as writer:
        for table in parquet.read_tables(file):
            known = table.select([name for name in ("id", *CONTRIBUTION_COLUMNS) if name in table.column_names]).to_pylist()
            rows = [labels.get(row["id"]) or known_contribution(row) for row in known]
            columns = {name: pa.array([row[name] for row in rows], written.field(name).type) for name in CONTRIBUTION_COLUMNS}
            arrays = [columns[name] if name in columns else table[name] for name in written.names]
            writer.write_table(pa.table(arrays, names=written.names).cast(written), row_group_size=max(1, len(table)))


def copy_all(files: Mapping[str, Sequence[str]], split: str, folder: Path, labels: Mapping[str, Row]) -> None:
    """Copy all files of a dataset. A file that a killed run has written is complete, and not written again."""
    from tqdm import tqdm

    copies = [
        (file, folder / "data" / f"{name}-{i:05d}-of-{len(paths):05d}.parquet", labels if name == split else {})
        for name, paths in files.items()
        for i, file in enumerate(paths)
    ]
    for file, target, of_split in tqdm(copies, "files", unit="file", disable=None):
        if not target.is_file():
            copy_labelled(file, target, of_split)


def write_ledger(source: str, split: str, folder: Path, labels: Mapping[str, Row]) -> None:
    """
    Write `ledger.parquet`: that of the dataset, where the detail of a labelled question says its label.

    A dataset without a ledger gets one of its rows.
    """
    from datasets import Features

    ledger, target = dataset_file(source, LEDGER_FILE), folder / LEDGER_FILE
    features = schema.build_ledger_features()
    if ledger is not None:
        features = Features.from_arrow_schema(parquet.parquet_schema(ledger))
    rows = _rows_as_entries(folder) if ledger is None else parquet.read_parquet([ledger])

    def entries() -> Iterator[Row]:
        for entry in rows:
            label = labels.get(entry["id"]) if entry.get("split", split) == split else None
            is_built = entry["outcome"] == schema.BUILT
            yield entry | {"detail": _detail(entry["detail"], label)} if label and is_built else entry

    parquet.write_parquet(entries(), features, target)


def _rows_as_entries(folder: Path) -> Iterator[Row]:
    for file in sorted((folder / "data").glob("*.parquet")):
        for row in parquet.read_parquet([file], ["id"]):
            yield {"id": row["id"], "outcome": schema.BUILT, "detail": None, "split": file.name.split("-")[0]}


def _detail(detail: str | None, label: Row) -> str:
    kept = [part for part in (detail or "").split("; ") if part and not part.startswith(_DETAIL)]
    shares = [
        f"{round(label[f'{condition}_correct'] * label['blind_tries'])} of {label['blind_tries']} right with {SHOWN[condition]}"
        for condition in CONDITIONS
        if label[f"{condition}_correct"] is not None
    ]
    return parquet.storable("; ".join([*kept, f"{_DETAIL}{label['audio_contribution']}: {', '.join(shares)}"]))


def count_words(folder: Path, split: str) -> Counter[str]:
    """How many questions of a split have which audio contribution."""
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return Counter(contribution_word(row) for row in parquet.read_parquet(files, ["audio_contribution"]))


def shares_table(counts: Counter[str]) -> str:
    """Strong, weak and unknown questions with their shares of those that were tried, as a Markdown table."""
    tried = counts.total() - counts[UNKNOWN]
    rows = []
    for word in CONTRIBUTIONS:
        share = ["", ""]
        if tried and word != UNKNOWN:
            low, high = wilson_interval(counts[word], tried)
            share = [f"{100 * counts[word] / tried:.1f} %", f"{100 * low:.1f}-{100 * high:.1f} %"]
        rows.append([f"`{word}`", counts[word], *share])
    return "\n".join(markdown_table(["audio contribution", "questions", "of those tried", "95 % interval"], rows))


def runs_table(runs: Sequence[BlindRun]) -> str:
    """Who answered without the clips, and how often that was right, as a Markdown table."""
    head = ["model", "revision", "asked with", "seed", "dataset", *(f"right with {SHOWN[name]}" for name in CONDITIONS)]
    rows = []
    for run in runs:
        answers = [list(run.is_right.get(condition, {}).values()) for condition in CONDITIONS]
        rights = [f"{100 * sum(each) / len(each):.1f} % of {len(each)}" if each else "not asked" for each in answers]
        by = run.made_by
        asked = [f"`{by['method']}`", by["seed"], f"`{by['dataset']}`"]
        rows.append([f"`{by['model']}`", by["model_revision"], *asked, *rights])
    return "\n".join(markdown_table(head, rows))


def write_card(source: str, files: Mapping[str, Sequence[str]], split: str, folder: Path, runs: Sequence[BlindRun]) -> None:
    """
    Write the README.md: the dataset's own, with a section on the audio contribution before its others.

    Args:
        source (`str`): The dataset that was labelled.
        files (`Mapping`): Its files by split.
        split (`str`): The split that was labelled.
        folder (`Path`): Holds data and ledger already.
        runs (`Sequence[BlindRun]`): What the labels are from.
    """
    from huggingface_hub import DatasetCard

    card = dataset_file(source, CARD)
    loaded = DatasetCard.load(card) if card is not None else None
    front: Row = loaded.data.to_dict() if loaded is not None else {}
    kept = {name: value for name, value in front.items() if name not in ("configs", "dataset_info")}
    body = loaded.text.lstrip("\n") if loaded is not None else f"# {folder.resolve().name}\n"
    section = render_card(
        "audio_contribution.md",
        title=TITLE,
        split=split,
        shares=shares_table(count_words(folder, split)),
        runs=runs_table(runs),
        weak_above=f"{100 * WEAK_ABOVE:g} %",
        num_tries=len(runs),
        **provenance(),
    )
    body = _SECTION.sub("", body)
    begin, found, rest = body.partition("\n## ")
    text = f"{begin.rstrip()}\n\n{section.rstrip()}\n{found}{rest}"
    text = _SAMPLE.sub(lambda match: _with_label(match[0], folder, split), text, count=1)
    text = re.sub(r'load_dataset\("[^"]*"', f'load_dataset("{folder.resolve().name}"', text)
    configs = {"default": {name: f"data/{name}-*.parquet" for name in files}}
    features = features_with_labels(next(iter(sorted((folder / "data").glob(f"{split}-*.parquet")))))
    write_dataset_card(folder, text, configs, dataset_info=dataset_info(folder, configs, {"default": features}), **kept)


def _with_label(sample: str, folder: Path, split: str) -> str:
    """The row that a card shows, with its new label."""
    import json

    try:
        row = json.loads(sample)
    except ValueError:
        return sample
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    rows = parquet.read_parquet(files, ["id", *CONTRIBUTION_COLUMNS])
    label = next((each for each in rows if each["id"] == row.get("id")), None)
    return as_json(row | known_contribution(label)) if label is not None else sample
