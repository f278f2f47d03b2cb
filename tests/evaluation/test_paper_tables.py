"""The paper's tables: every figure as the paper has it, and our runs beside them."""

import re

import pytest

from evaluation.report import main, with_unique_names
from evaluation.reporting.finished_runs import FinishedRun
from evaluation.reporting.paper_tables import (
    TABLES,
    Row,
    conflicts,
    difference,
    load_table,
    match,
    row_of,
    table_lines,
)
from evaluation.running.requests import AUDIO, AUDIO_VIDEO, METHODS, VIDEO
from sightsound.benchmarks import benchmark_names
from sightsound.cli import InputError
from tests.support.questions import question
from tests.support.runs import MMAU_OUTPUTS, MMAU_ROWS, MUSIC_ROWS, is_png, results_on, write_results
from tests.support.tiny import REPO


def figures_of(row: Row) -> list[float | None]:
    return list(row.paper.values())


def rows_in_the_paper(text: str, heading: str) -> list[tuple[str, str, list[float | None]]]:
    """The lines of a table: tab-separated, from its heading to the next line that is none of it; sections have no figures."""
    lines = text[text.index(heading) :].splitlines()[1:]
    rows = []
    for line in lines:
        cells = line.split("\t")
        if len(cells) < 3:
            if rows:
                break
            continue
        figures = [None if cell == "—" else float(cell) for cell in cells[2:] if re.fullmatch(r"—|\d+\.\d", cell)]
        if figures:
            rows.append((cells[0], cells[1], figures))
    return rows


@pytest.mark.parametrize(
    ("name", "heading", "count"), [("table1", "Models\tMethod\tAccuracy", 14), ("table2", "Baselines:", 10)]
)
def test_every_figure_is_the_papers(real_data, name, heading, count):
    paper = real_data.parent / "paper.txt"
    if not paper.is_file():
        pytest.skip("the paper's text is not here")
    rows = load_table(name).rows
    found = rows_in_the_paper(paper.read_text(), heading)
    assert len(found) == count
    assert [(row.label, figures_of(row)) for row in rows] == [(label, figures) for _, label, figures in found]
    for row, (model, _, _) in zip(rows, found, strict=True):
        assert model.startswith(row.name) or (model, row.name) == ("—", "Audio-Thinker")


# Of all figures of a column, in the order of the table's columns.
SUMS = {
    "table1": [1135.8],
    "table2": [643.6, 516.3, 563.5, 574.1, 474.6, 482.1, 467.6, 464.3, 463.6],
}


@pytest.mark.parametrize("name", TABLES)
def test_the_figures_are_what_they_were(name):
    columns = zip(*map(figures_of, load_table(name).rows), strict=True)
    assert [round(sum(figure for figure in column if figure is not None), 1) for column in columns] == SUMS[name]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_says_how_it_is_run(name):
    table = load_table(name)
    assert len({row.key for row in table.rows}) == len(table.rows)
    for column in table.columns:
        assert column.benchmark in benchmark_names() and column.paper in table.rows[0].paper
    for row in table.rows:
        assert row.modality in (AUDIO, VIDEO, AUDIO_VIDEO)
        assert (row.by is None) == (row.model is not None) == (row.method in METHODS), row.key
        if row.recipe:  # the key is the arm of recipes/qwen2_audio_7b/run.sh
            recipe = REPO / row.recipe
            assert recipe.is_file() and recipe.stem == row.key.replace("-", "_", 1)


def test_the_papers_mmau_figures_are_counts_over_our_number_of_questions():
    """So its questions are as many per type as ours; Audio-Thinker's are not its own."""
    table = load_table("table2")
    for row in (row for row in table.rows if row.by is None):
        for column in table.columns[:4]:
            possible = {round(100 * count / column.n, 1) for count in range(column.n + 1)}
            assert row.paper[column.paper] in possible, (row.key, column.title)


def test_the_papers_music_avqa_average_is_not_over_its_four_types():
    """As the table's note says; why ours stands beside it in both ways."""
    kinds = ("Temp", "Comp", "Cnt", "Exist")
    rows = [row for row in load_table("table2").rows if row.by is None]
    below = [row.key for row in rows if row.paper["MUSIC-AVQA Avg."] < min(row.paper[kind] for kind in kinds)]
    assert below == ["sft-label", "grpo-label", "grpo-tts_agfv"]


def test_the_interval_of_a_difference():
    """Newcombe 1998, table II, method 10: 56/70 less 48/80 has [0.0524, 0.3339], 9/10 less 3/10 has [0.1705, 0.8090]."""
    ours = {"accuracy": 80.0, "n": 70, "error": None}
    assert difference(ours, 60.0, 80) == pytest.approx((20.0, 5.24, 33.39), abs=0.01)
    assert difference({"accuracy": 90.0, "n": 10, "error": None}, 30.0, 10) == pytest.approx((60.0, 17.05, 80.90), abs=0.01)


def test_questions_that_share_clips_count_for_fewer():
    """Four times the variance: a quarter of the questions, ours and the paper's. Less than that of single ones: all of them."""
    error = 100 * (0.6 * 0.4 / 400) ** 0.5
    single = difference({"accuracy": 60.0, "n": 400, "error": error}, 50.0, 800)
    assert single == pytest.approx(difference({"accuracy": 60.0, "n": 400, "error": None}, 50.0, 800))
    assert difference({"accuracy": 60.0, "n": 400, "error": 0.5 * error}, 50.0, 800) == pytest.approx(single)
    shared = difference({"accuracy": 60.0, "n": 400, "error": 2 * error}, 50.0, 800)
    assert shared == pytest.approx(difference({"accuracy": 60.0, "n": 100, "error": None}, 50.0, 200))
    unknown = difference({"accuracy": 60.0, "n": 400, "error": None}, 50.0, None)
    assert unknown == difference({"accuracy": 60.0, "n": 400, "error": None}, 50.0, 400)


def on_mmau(**more) -> dict:
    return results_on("mmau", MMAU_ROWS, MMAU_OUTPUTS, **more)


@pytest.mark.parametrize(
    ("run", "key"),
    [
        ({"model": "Qwen/Qwen2-Audio-7B-Instruct", "method": "audio/direct"}, "base-direct"),
        ({"model": "/models/Qwen2-Audio-7B-Instruct", "method": "audio/direct"}, "base-direct"),
        ({"model": "Qwen2-Audio-7B-Instruct", "method": "audio/direct"}, "base-direct"),
        ({"model": "someone/Qwen2-Audio-7B-Instruct", "method": "audio/direct"}, None),
        ({"model": "Qwen/Qwen2-Audio-7B-Instruct", "method": "audio/cot"}, None),
        ({"model": "Qwen/Qwen2-Audio-7B-Instruct", "method": "video/direct"}, None),
        ({"model": "out/sft-tts_agfv/model", "method": "audio/cot"}, "sft-tts_agfv"),
        ({"model": "sft-tts_agfv/model", "method": "audio/cot"}, "sft-tts_agfv"),
        ({"model": "sft-tts_agfv/model", "method": "audio/direct"}, None),
        ({"model": "sft-tts_agfv/model", "method": "video/cot"}, None),
        ({"model": "sft-label/model", "method": "audio/direct"}, "sft-label"),
        ({"model": "sft-tts_agfv/model", "method": "audio/cot", "arm": "mine"}, None),
        ({"model": "out/sft-tts_agfv/model", "arm": "grpo-label"}, "grpo-label"),
        ({"model": "someone/else", "arm": "base-direct"}, "base-direct"),
        ({"model": "someone/else", "arm": "audio-thinker-sft"}, None),
    ],
)
def test_a_run_finds_its_row(run, key):
    row = row_of(load_table("table2"), on_mmau(**run))
    assert (row and row.key) == key


def test_a_run_on_another_benchmark_is_in_no_row():
    run = results_on("avqa", [question(0, 0)], ["A"], arm="base-direct")
    assert row_of(load_table("table2"), run) is None
    assert row_of(load_table("table1"), run).key == "base-direct"


def test_two_runs_for_one_place_stand_in_none(tmp_path):
    """A report says so and has all else; a table alone is refused."""
    unnamed = on_mmau(model="Qwen/Qwen2-Audio-7B-Instruct", method="audio/direct")
    runs = [on_mmau(arm="base-direct"), unnamed, on_mmau(arm="sft-cot")]
    assert set(match(load_table("table2"), runs)) == {"sft-cot"}
    assert set(match(load_table("table2"), [runs[0], unnamed | {"seed": 1}])["base-direct"]) == {0, 1}
    folders = [write_results(tmp_path / str(i), run) for i, run in enumerate(runs)]
    message = "Several runs fit row 'base-direct' on mmau with seed 0: 0, 1. Give one of them"
    with pytest.raises(InputError, match=message):
        main(["--table", "table2", "--runs", *folders])
    main(["--runs", *folders, "--output_dir", str(tmp_path / "out")])
    assert message in (tmp_path / "out" / "report.md").read_text()


def test_two_runs_of_one_model_are_told_by_how_it_was_asked():
    """Whether both have a name of their own or neither has: in no case are there two for one row."""
    for named in (True, False):
        asked = {"a": "audio/cot", "b": "audio/direct"}
        more = [{"method": method, **({"arm": arm} if named else {})} for arm, method in asked.items()]
        runs = [on_mmau(model="sft-tts_agfv/model", **each) for each in more]
        assert conflicts(load_table("table2"), [FinishedRun("there", run) for run in runs]) == []
        assert set(match(load_table("table2"), runs)) == (set() if named else {"sft-tts_agfv"})


def test_avqas_figure_says_how_many_questions_it_is_about():
    run = results_on("avqa", [question(i, 0) for i in range(4)], ["A"] * 4, arm="base-direct")
    assert any("100.0 [51.0, 100.0] (n=4)" in line for line in lines_of("table1", run))


def lines_of(name: str, *runs: dict) -> list[str]:
    return table_lines(load_table(name), [FinishedRun(f"run-{i}", run) for i, run in enumerate(runs)])


@pytest.mark.parametrize(
    ("split", "limit", "message"),
    [
        ("test", 4, "base-direct (seed 0) on avqa: split test, 4 questions (--limit)"),
        ("test", None, "base-direct (seed 0) on avqa: split test, 4 questions"),
        (None, 4, "base-direct (seed 0) on avqa: split validation, 4 questions (--limit)"),
        ("validation", 5, None),
        (None, None, None),
    ],
)
def test_a_table_says_which_questions_are_not_the_benchmarks(split, limit, message):
    settings = {"split": split, "limit": limit, "arm": "base-direct"}
    run = results_on("avqa", [question(i, 0) for i in range(4)], ["A"] * 4, arm="base-direct", settings=settings)
    found = [line.strip() for line in lines_of("table1", run) if "Of another split" in line]
    assert found == ([f"Of another split, or of a part of one: {message}."] if message else [])


def test_a_run_whose_name_in_the_report_says_more_keeps_its_row():
    settings = {"split": None, "limit": 4, "arm": "base-direct"}
    run = results_on("avqa", [question(i, 0) for i in range(4)], ["A"] * 4, arm="base-direct", settings=settings)
    (named,) = with_unique_names([FinishedRun("run", run)])
    assert named.results["arm"] == "base-direct with --limit 4"
    assert any("100.0 [51.0, 100.0] (n=4)" in line for line in table_lines(load_table("table1"), [named]))


def test_a_table_names_the_runs_in_none_of_its_rows():
    avqa = results_on("avqa", [question(0, 0)], ["A"], arm="sft-cto")
    runs = [on_mmau(arm="sft-cto"), on_mmau(arm="sft-cto", seed=1), on_mmau(arm="mine"), on_mmau(arm="sft-cot"), avqa]
    assert "\nIn no row: sft-cto on mmau, mine on mmau." in lines_of("table2", *runs)
    assert "\nIn no row: sft-cto." in lines_of("table1", *runs)
    assert not any("In no row" in line for line in lines_of("table2", on_mmau(arm="sft-cot"), avqa))


def test_ours_stands_beside_the_papers_figures(tmp_path, capsys):
    """Nothing stands where nothing was run, and a run of a part of a benchmark says so."""
    music = results_on("music_avqa", MUSIC_ROWS, ["yes"] * 4 + ["no"], arm="sft-cot", seed=1)
    runs = [write_results(tmp_path / "a", on_mmau(arm="sft-cot")), write_results(tmp_path / "b", music)]
    main(["--table", "table2", "--runs", *runs, "--output_dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table2.md").read_text()
    assert capsys.readouterr().out == text
    assert is_png(tmp_path / "out" / "table2.png")
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| Qwen2-Audio-7B-Instruct | SFT | paper | 61.3 |"))
    mmau, difference_of_mmau, music_avqa, difference_of_music = (
        [c.strip() for c in x.split("|")[3:-1]] for x in lines[at + 1 : at + 5]
    )
    assert mmau[0] == "ours, seed 0" and mmau[4] == "75.0 [46.8, 91.1] (n=12 of 1,000)" and mmau[5:] == ["not run"] * 6
    assert difference_of_mmau[4].startswith("+22.7 [") and difference_of_mmau[5:] == ["–"] * 6
    assert music_avqa[9:] == ["100.0 [51.0, 100.0] (n=4 of 6,984)", "80.0 [37.6, 96.4] (n=5 of 9,129)"]
    assert difference_of_music[9].startswith("+44.9 [") and difference_of_music[10].startswith("+24.9 [")
    assert sum("not run" in line for line in lines) == 2 + 7, "the seven rows that nobody ran, and the halves of this one"
    thinker = next(i for i, line in enumerate(lines) if line.startswith("| Audio-Thinker | SFT"))
    assert "by Audio-Thinker, the paper's reference 22" in lines[thinker + 1]


def test_a_report_has_the_tables_that_its_runs_belong_to(tmp_path):
    main(["--runs", write_results(tmp_path / "run", on_mmau(arm="sft-cot")), "--output_dir", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "## The paper's Table 2" in text and "Table 1" not in text and "![table2](table2.png)" in text
    assert is_png(tmp_path / "table2.png")


def test_without_runs_there_are_the_papers_figures_alone():
    lines = table_lines(load_table("table1"), [])
    assert sum("| ours | not run |" in line for line in lines) == 14 and not any("difference" in line for line in lines[:-1])
