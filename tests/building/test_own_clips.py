"""One's own clips and questions: any file name, other forms of the file, answers that cannot be meant, splits that overlap."""

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from dataset_builders import avqa_audio, traces
from sightsound.benchmarks.avqa import check_answers, to_row
from sightsound.cli import InputError
from sightsound.data.annotations import read_annotations
from sightsound.data.clips import MediaError, MediaFolder, sha256_of, video_name
from sightsound.data.frames import frames_of_row
from tests.support import tiny
from tests.support.avqa import annotation
from tests.support.card_rules import validate
from tests.support.tiny import REPO


OFFICIAL = "AVQA's train_qa.json"
# Of the media folder `own clips`; each of them is empty, but for its name.
FILES = [
    "Big Bell (take 2).mp4",
    "v1.2 final.MOV",
    unicodedata.normalize("NFD", "Frösche im Teich.webm"),
    "kitchen/pan.mp4",
    "garden/pan.mp4",
    "both.mp4",
    "both.wav",
    "dog_barking.mp4",
    "犬の声.WAV",
    "007.Mkv",
    "deep/er/still.flac",
    "it's 100% & more.mp4",
    "clip.mp4.webm",
]
FOUND = {
    "Big Bell (take 2)": "Big Bell (take 2).mp4",
    "v1.2 final": "v1.2 final.MOV",
    "v1.2 final.mov": "v1.2 final.MOV",
    "Frösche im Teich": unicodedata.normalize("NFD", "Frösche im Teich.webm"),
    unicodedata.normalize("NFD", "Frösche im Teich.webm"): unicodedata.normalize("NFD", "Frösche im Teich.webm"),
    "kitchen/pan": "kitchen/pan.mp4",
    "kitchen\\pan.mp4": "kitchen/pan.mp4",
    "own clips/garden/pan.mp4": "garden/pan.mp4",
    "./garden/pan": "garden/pan.mp4",
    "pan": "garden/pan.mp4",
    "both": "both.mp4",
    "both.wav": "both.wav",
    "dog_barking": "dog_barking.mp4",
    "犬の声": "犬の声.WAV",
    "007": "007.Mkv",
    "007.mp4": "007.Mkv",
    "still": "deep/er/still.flac",
    "er/still": "deep/er/still.flac",
    "it's 100% & more": "it's 100% & more.mp4",
    "clip.mp4": "clip.mp4.webm",
    "Pan": None,
    "attic/pan": None,
    "v1": None,
    "07": None,
}


@pytest.fixture
def own_clips(tmp_path) -> MediaFolder:
    for file in FILES:
        (tmp_path / "own clips" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own clips" / file).touch()
    return MediaFolder(str(tmp_path / "own clips"))


@pytest.mark.parametrize("name", FOUND)
def test_any_file_name_is_a_clips_name_and_is_found_again_from_the_row(name, own_clips):
    row = to_row(annotation(1, name))
    assert (row["video_id"], row["start_s"]) == (name, 0.0)
    for looked_up in (row["video_name"], video_name(row | {"duration_s": 31.0})):
        clip = next(iter(own_clips.candidates(looked_up)), None)
        expected = None if FOUND[name] is None else str(Path(own_clips.root) / FOUND[name])
        assert (clip and clip.path, clip and clip.max_duration_s) == (expected, None), "taken whole"


def test_a_name_that_fits_avqas_pattern_stays_avqas(tmp_path):
    (tmp_path / "06GyG4-wONQ.mp4").touch()
    row = to_row(annotation(1, "06GyG4-wONQ_000006"))
    assert (row["video_id"], row["start_s"]) == ("06GyG4-wONQ", 6.0)
    clip = next(iter(MediaFolder(str(tmp_path)).candidates(row["video_name"])), None)
    assert clip is not None and (clip.start_s, clip.max_duration_s) == (6.0, 10.0)


@pytest.mark.parametrize("name", ["holiday_vid_202401.ogg", "holiday_vid_202401.MP4", "06GyG4-wONQ_000006.mp4"])
def test_a_name_with_an_extension_is_a_files_whatever_it_looks_like(name, tmp_path):
    (tmp_path / name).touch()
    (tmp_path / f"{name[:11]}.mp4").touch()  # what AVQA's pattern would be cut from
    row = to_row(annotation(1, name))
    assert (row["video_id"], row["start_s"], row["video_name"]) == (name, 0.0, name)
    for duration_s in (3.0, 31.0):
        found = MediaFolder(str(tmp_path)).candidates(video_name(row | {"duration_s": duration_s}))
        assert [(Path(clip.path).name, clip.max_duration_s) for clip in found] == [(name, None)]


def test_files_of_one_name_in_two_folders_are_told(own_clips):
    clip = next(iter(own_clips.candidates("pan")), None)
    assert clip is not None
    assert own_clips.namesakes("pan", clip) == [str(Path(own_clips.root) / "kitchen" / "pan.mp4")]
    assert own_clips.namesakes("garden/pan", clip) == []
    assert [Path(clip.path).name for clip in own_clips.candidates("both")] == ["both.mp4", "both.wav"]
    assert len(own_clips.candidates("pan")) == 1, "the other file of that name may be about something else"


def build(folder: Path, monkeypatch, *flags: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(REPO / "dataset_builders" / "avqa_audio.py"), *flags, "--num_proc", "1"])
    avqa_audio.main()


NAMES = {"bell": "Big Bell (take 2)", "frogs": "Frösche", "pan": "kitchen/pan.mp4", "avqa": "06GyG4-wONQ_000006"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_clip) -> Path:
    clips = tmp_path_factory.mktemp("own") / "clips"
    write_clip(clips / "Big Bell (take 2).MP4", duration_s=11.0, fps=2)
    write_clip(clips / unicodedata.normalize("NFD", "Frösche.mkv"), duration_s=0.6)
    write_clip(clips / "kitchen" / "pan.mp4", duration_s=0.7)
    write_clip(clips / "06GyG4-wONQ_000006.mp4", duration_s=0.6)
    return clips


def test_own_clips_are_built_and_the_card_says_what_they_are(clips, monkeypatch, capsys):
    folder = clips.parent
    rows = [annotation(i, NAMES[name]) for i, name in enumerate(("bell", "frogs", "pan"))]
    (folder / "train.json").write_text(json.dumps({"data": rows}))
    (folder / "val.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in (rows[1], annotation(9, NAMES["frogs"], answer=2)))
    )
    files = ("--train_annotations", "train.json", "--validation_annotations", "val.jsonl")
    build(folder, monkeypatch, *files, "--media_dir", "clips", "--output_dir", "out")
    out, err = capsys.readouterr()
    leak = "split validation shares 1 of its 1 clips, and 2 of its 2 questions, with split train (first: id 1, Frösche)"
    assert f"warning: {leak}" in err and "1 ids occur in both split train and split validation" in out
    ledger = tiny.read_ledger(folder / "out")
    assert [(entry["id"], entry["split"]) for entry in ledger] == [(i, "train") for i in "012"] + [
        (i, "validation") for i in "19"
    ]
    built = tiny.read_rows(folder / "out")
    assert [(row["video_id"], row["start_s"], round(row["duration_s"])) for row in built] == [
        ("Big Bell (take 2)", 0.0, 11),
        ("Frösche", 0.0, 1),
        ("kitchen/pan.mp4", 0.0, 1),
    ]
    card = (folder / "out" / "README.md").read_text()
    assert validate(card, "dataset") == ([], [])
    assert leak in card and "counted from 0" in card
    assert "The 3 rows" not in card and "The 5 rows are about other clips, chosen by the people who built this dataset" in card
    assert "0.6 to 11.0 s" in card
    for untrue in ("YouTube", "10 s", "extended|other-avqa", "avqa-states-none", "The audio variant of AVQA"):
        assert untrue not in card, untrue
    media, arguments = MediaFolder("clips"), traces.TracesArguments("", "clips", "", "", num_frames=4)
    frames = [frames_of_row(row, media, arguments.num_frames, arguments.max_pixels) for row in built]
    assert [round(len(each.pixels) / each.fps) for each in frames] == [11, 1, 1], "the teacher sees the whole clip"


def test_letters_of_choices_are_taken_off_and_the_build_says_so(clips, monkeypatch, tmp_path, capsys):
    lettered = ["A. Dog", "B. Rooster", "C. Siren", "D. Drum"]
    rows = [annotation(i, NAMES["pan"], multi_choice=lettered) for i in range(2)]
    rows.append(annotation(2, NAMES["pan"], multi_choice=["A. Dog", "Rooster", "Siren", "Drum"]))
    (tmp_path / "train.json").write_text(json.dumps([*rows, {"id": 3}]))
    build(tmp_path, monkeypatch, "--train_annotations", "train.json", "--media_dir", str(clips), "--output_dir", "out")
    message = "the choices of 2 questions began with their letters (A, B, ...), which were removed"
    assert capsys.readouterr().out.count(message) == 1
    built = tiny.read_rows(tmp_path / "out")
    assert [row["choices"][:2] for row in built] == [["Dog", "Rooster"], ["Dog", "Rooster"], ["A. Dog", "Rooster"]]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the annotation's. In 2 annotations all choices began with their letters" in card


def test_a_finished_build_says_what_is_in_it(clips, monkeypatch, tmp_path, capsys):
    (tmp_path / "train.json").write_text(json.dumps([annotation(1, NAMES["pan"]), annotation(2, "later")]))
    flags = ("--train_annotations", "train.json", "--media_dir", str(clips), "--output_dir", "out")
    build(tmp_path, monkeypatch, *flags)
    capsys.readouterr()
    build(tmp_path, monkeypatch, *flags)
    message = "out is complete: 1 of 2 annotations built, 1 missing_media; delete the folder to build again\n"
    assert capsys.readouterr().out == message


def test_the_help_says_which_fields_are_needed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["avqa_audio.py", "--help"])
    with pytest.raises(SystemExit):
        avqa_audio.main()
    message = " ".join(capsys.readouterr().out.split("options:")[0].split())
    for line in (
        "An annotation needs",
        "`id`, a number or a text",
        "`question_text`;",
        "`multi_choice`, exactly four choices",
        "counted from 0: 0 to 3",
        "other fields are ignored",
        'every "video" in lower case becomes "audio"',
    ):
        assert line in message


def test_clips_of_both_kinds_are_told_apart_on_the_card(clips, monkeypatch):
    folder = clips.parent
    rows = [annotation(1, NAMES["avqa"]), annotation(2, NAMES["frogs"]), annotation(3, NAMES["avqa"])]
    (folder / "mixed.json").write_text(json.dumps(rows))
    build(folder, monkeypatch, "--train_annotations", "mixed.json", "--media_dir", "clips", "--output_dir", "mixed")
    card = (folder / "mixed" / "README.md").read_text()
    assert "2 of its rows are about clips with AVQA's names, and 1 about other files, which are not AVQA's" in card
    assert "AVQA states no licence" in card and "The licence of the other clips" in card
    assert validate(card, "dataset") == ([], [])
    assert "What the splits share" not in card


def test_the_teacher_sees_the_file_that_the_sound_is_from(tmp_path, write_clip):
    for name, fps in (("06GyG4-wONQ.mp4", 4), ("06GyG4-wONQ_0.mp4", 8)):
        write_clip(tmp_path / name, duration_s=1.0, fps=fps)
    media, arguments = MediaFolder(str(tmp_path)), traces.TracesArguments("", "", "", "", num_frames=16)
    row = {"video_id": "06GyG4-wONQ", "start_s": 0.0, "duration_s": 1.0}
    for name, count in (("06GyG4-wONQ.mp4", 4), ("06GyG4-wONQ_0.mp4", 8)):
        digest = sha256_of(str(tmp_path / name))
        assert (
            len(frames_of_row(row | {"media_sha256": digest}, media, arguments.num_frames, arguments.max_pixels).pixels)
            == count
        )
    (tmp_path / "06GyG4-wONQ_0.mp4").write_bytes(b"broken")
    write_clip(tmp_path / "06GyG4-wONQ_0.wav", fps=0)
    assert len(frames_of_row(row | {"media_sha256": ""}, media, arguments.num_frames, arguments.max_pixels).pixels) == 4, (
        "a broken one gives way"
    )
    (tmp_path / "06GyG4-wONQ.mp4").unlink()
    media = MediaFolder(str(tmp_path))
    with pytest.raises(MediaError, match="cannot be opened"):
        frames_of_row(row | {"media_sha256": ""}, media, arguments.num_frames, arguments.max_pixels)


FOUR = ["dog", "bell", "siren", "drum"]
ANSWERS = {
    "from 1": ([1, 2, 4, 3, 1], "answers that seem to count from 1: of 5 none is 0, and 1 are the number of choices"),
    "letters": (["B", "(a)"], "found the letter 'B': write 1"),
    "texts": (["siren", "dog"], "found the choice's text 'siren': write 2"),
    "numbers as text": (["0", "1"], "found the text '0'"),
    "other texts": (["a cat", "dog"], "found the text 'a cat'"),
    "null": ([None], "found None"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_that_cannot_be_meant_are_told_with_a_remedy_that_fits(case, clips, monkeypatch, tmp_path, capsys):
    answers, message = ANSWERS[case]
    rows = [annotation(i, NAMES["pan"], multi_choice=FOUR, answer=answer) for i, answer in enumerate(answers)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(InputError) as raised:
        build(tmp_path, monkeypatch, "--train_annotations", "train.json", "--media_dir", str(clips), "--output_dir", "out")
    line = str(raised.value)
    assert message in line and "0" in line and "\n" not in line
    assert "media_dir" not in line and "clips" not in line
    assert "correct the answers in train.json" in line or "subtract 1 from every answer" in line
    assert not (tmp_path / "out" / "data").exists()


def test_many_answers_without_a_0_are_warned_of(capsys):
    def check(answers: list[int]) -> str:
        check_answers("train.json", [annotation(i, "a", multi_choice=FOUR, answer=answer) for i, answer in enumerate(answers)])
        return capsys.readouterr().err

    assert check([1, 2, 3] * 4 + [1, 2]) == "warning: train.json: none of 14 answers is 0; answers count from 0\n"
    assert "none of 5 answers is 0" in check([1, 3, 2, 1, 9]), "a mistake in one row does not hide it"
    assert check([1, 2, 3, 1]) == "" and check([1, 2, 3, 0, 1, 2]) == ""


@pytest.mark.parametrize("answers", [[0, 1, 4], [1, 1, 2], [4], [1, 2, 7, 4]])
def test_a_mistake_in_one_row_is_not_taken_for_a_file_that_counts_from_1(answers):
    check_answers("train.json", [annotation(i, "a", multi_choice=FOUR, answer=answer) for i, answer in enumerate(answers)])


def test_the_first_reason_is_on_the_screen_and_the_remedy_is_about_it(clips, monkeypatch, tmp_path):
    cases = {
        "no clip": (
            annotation(1, "nowhere"),
            "no clip named nowhere.*; --media_dir {clips} holds 4 audio and video files",
        ),
        "no text": (
            annotation(1, "a", question_text=""),
            "is not in the format of AVQA's train_qa.json; first: train, id 1: ",
        ),
        "other fields": (
            {"id": 1, "choices": FOUR},
            "lacks video_name, question_text, multi_choice, answer; its fields are id",
        ),
        "choices": (annotation(1, "a", multi_choice=FOUR[:2]), "expected 4 choices, found ['dog', 'bell']; correct train.json"),
    }
    for i, (row, message) in enumerate(cases.values()):
        (tmp_path / "train.json").write_text(json.dumps([row]))
        flags = ("--train_annotations", "train.json", "--media_dir", str(clips), "--output_dir", f"out{i}")
        with pytest.raises(InputError) as raised:
            build(tmp_path, monkeypatch, *flags)
        assert message.format(clips=clips) in str(raised.value)


def test_a_list_in_an_object_and_json_lines_are_read(tmp_path):
    rows = [{"id": 1}, {"id": 2}]
    lines = "\n".join(map(json.dumps, rows))
    texts = {
        "list.json": json.dumps(rows),
        "under_a_key.json": json.dumps({"version": "1", "data": rows, "tags": ["a"]}, indent=1),
        "lines.jsonl": f"\ufeff{lines}\n\n",
        "lines.json": lines,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_annotations(str(tmp_path / name), OFFICIAL) == rows, name
    (tmp_path / "one.jsonl").write_text('{"id": 1, "multi_choice": ["a"]}')
    assert read_annotations(str(tmp_path / "one.jsonl"), OFFICIAL) == [{"id": 1, "multi_choice": ["a"]}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"1": {}, "2": {}}',
            "expected a list of annotations as in AVQA's .*, found an object with the keys '1', '2'",
        ),
        ('{"a": [{}], "b": [{}]}', "found an object with the keys 'a', 'b'"),
        ('{"a": []}', "holds no annotations"),
        ('"text"', "expected a list of annotations as in AVQA's train_qa.json, found str"),
        ('{"id": 1}\n{"id": 2', "is not JSON that can be read"),
    ],
)
def test_a_file_of_another_shape_is_told_what_is_expected(text, message, tmp_path):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_annotations(str(tmp_path / "train.json"), OFFICIAL)
