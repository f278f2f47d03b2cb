"""Everything wrong at once: files as they lie on real disks, annotations as no tool should write them, commands mistyped."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sightsound.data.audio import decode_audio, load_clip
from sightsound.data.clips import MediaError, MediaFolder
from sightsound.data.parquet import open_dataset
from sightsound.data.schema import BUILD_OUTCOMES
from tests.support.avqa import annotation, ledger
from tests.support.clips import pitch_hz, tone
from tests.support.tiny import REPO


TIME_LIMIT_S = 120  # of one command; a FIFO or a loop of links that is read hangs for ever
GOOD = "06GyG4-wONQ_000006"
HZ, DURATION_S = 440.0, 0.5  # of the clips, unless a case says otherwise


def clip_name(case: str, start_s: int = 6) -> str:
    """`eight_khz` -> `eight_khz___000006`: eleven characters, as of YouTube."""
    return f"{case:_<11.11}_{start_s:06d}"


def write_movie(path: Path, layout: str = "mono", rate: int = 44_100, duration_s: float = DURATION_S, **movflags: str) -> Path:
    """H.264 whose frames stand at uneven times, and AAC of any channel layout, the same tone in every channel."""
    import av

    with av.open(str(path), "w", options=movflags) as container:
        video = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "threads": "1"})
        (video.width, video.height), video.pix_fmt = (64, 48), "yuv420p"
        audio = container.add_stream("aac", rate=rate)
        audio.layout = layout
        ticks = [tick for tick in range(round(duration_s * 30)) if tick % 7 in (0, 1, 4)]
        samples = tone(HZ, rate, duration_s)
        for start in range(0, len(samples) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(np.tile(samples[start : start + 1024], (audio.channels, 1)), "fltp", layout)
            frame.sample_rate = rate
            container.mux(audio.encode(frame))
            while ticks and ticks[0] * rate <= start * 30:
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), ticks[0] % 256, np.uint8), format="rgb24")
                picture.pts, picture.time_base = ticks.pop(0), Fraction(1, 30)
                container.mux(video.encode(picture))
        container.mux(audio.encode())
        container.mux(video.encode())
    return path


def write_adts(path: Path, parts: list[np.ndarray]) -> Path:
    """Bare AAC frames at 44.1 kHz, without a header that tells their number."""
    import av

    samples = np.concatenate(parts)
    with av.open(str(path), "w", format="adts") as container:
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for start in range(0, len(samples) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024].copy(), "fltp", "mono")
            frame.sample_rate = 44_100
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


# What becomes of a good annotation when its clip is like this.
CLIPS = {
    "good": "built",
    "eight_khz": "built",
    "rate_48_khz": "built",
    "five_dot_1": "built",
    "uneven_fps": "built",
    "audio_0": "built",
    "two_tracks": "built",
    "short": "built",
    "UPPER": "built",
    "link_out": "built",
    "linked_dir": "built",
    "odd_folder": "built",
    "truncated": "corrupt_media",
    "cut_index_1": "corrupt_media",
    "zero_bytes": "corrupt_media",
    "text": "corrupt_media",
    "odd_broken": "corrupt_media",
    "no_audio": "no_audio",
    "unreadable": "corrupt_media" if os.geteuid() else "built",  # root reads everything
    "dangling": "missing_media",
    "link_to_self": "missing_media",
    "folder": "missing_media",
    "fifo": "missing_media",
    "outside": "missing_media",
}
# A whole video is named by its id alone: start second, outcome.
WHOLE_VIDEOS = {
    "cut_at_1_s": (1, "built"),
    "ends_before": (7, "too_short"),
    "no_length": (11, "built"),
    "no_length_2": (15, "too_short"),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_clip) -> Path:
    """
    `clips/` with one file per case, and beside it what links lead to.

    Links are followed, out of the folder as well: people who keep one copy of a dataset show it to programs as folders of
    links (the Hub's cache is one), and made those links themselves. An annotation cannot make any, and its own `../` or
    absolute path is refused. Only a link back to a folder that holds the clips is left alone: it is a loop.
    """
    import av

    folder = tmp_path_factory.mktemp("bad-input")
    clips, elsewhere = folder / "clips", folder / "elsewhere"
    for name in ("clips", "elsewhere/deep"):
        (folder / name).mkdir(parents=True)

    def path(case: str, suffix: str = ".mp4") -> Path:
        return clips / (clip_name(case) + suffix)

    short = {"duration_s": DURATION_S}
    whole = write_clip(clips / f"{GOOD}.mp4", **short)
    write_clip(path("eight_khz"), [(HZ, 8_000, 1)], **short)
    write_clip(path("rate_48_khz"), [(HZ, 48_000, 2)], **short)
    write_movie(path("five_dot_1"), "5.1")
    write_movie(path("uneven_fps"), duration_s=2.0)
    write_clip(path("audio_0"), audio_first=True, **short)
    write_clip(path("two_tracks"), [(HZ, 44_100, 2), (1000.0, 22_050, 1)], **short)
    write_clip(path("short", ".wav"), fps=0, duration_s=0.3)
    shutil.copy(whole, path("UPPER", ".MP4"))
    path("truncated").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    index_first = write_movie(folder / "index_first.mp4", duration_s=2.0, movflags="faststart").read_bytes()
    path("cut_index_1").write_bytes(index_first[: len(index_first) // 2])
    path("zero_bytes").touch()
    path("text").write_text("<html>video unavailable</html>\n" * 99)
    write_clip(path("no_audio"), tracks=[], **short)
    shutil.copy(whole, path("unreadable"))
    path("unreadable").chmod(0)

    path("link_out").symlink_to(shutil.copy(whole, elsewhere / "5f3a"))  # a blob of the Hub's cache has no extension
    shutil.copy(whole, elsewhere / "deep" / path("linked_dir").name)
    (clips / "linked").symlink_to(elsewhere)
    shutil.copy(whole, folder / path("outside").name)
    for link, target in (("loop", clips), ("up", ".."), ("root", "/")):
        (clips / link).symlink_to(target)
    (elsewhere / "back").symlink_to(clips)
    path("dangling").symlink_to(folder / "gone.mp4")
    path("link_to_self").symlink_to(path("link_to_self"))
    path("folder").mkdir()
    (path("folder") / "notes.txt").touch()
    os.mkfifo(path("fifo"))
    odd = Path(os.fsdecode(os.fsencode(clips) + b"/\xff\n"))  # no UTF-8, and a line's end
    odd.mkdir()
    shutil.copy(whole, odd / path("odd_folder").name)
    (odd / path("odd_broken").name).touch()

    write_clip(clips / "cut_at_1_s_.mkv", duration_s=3.0, fps=2)
    write_clip(clips / "ends_before.mkv", duration_s=3.0, fps=2)
    # From the bit rate of the noise ffmpeg guesses that these 14 s are over before the 11th.
    noise = np.random.default_rng(0).uniform(-1, 1, 2 * 44_100).astype(np.float32)
    write_adts(clips / "no_length__.aac", [noise, tone(0, 44_100, 8.0), tone(HZ, 44_100, 4.0)])
    shutil.copy(clips / "no_length__.aac", clips / "no_length_2.aac")
    with av.open(str(clips / "no_length__.aac")) as guessed:
        assert guessed.duration / av.time_base < 11
    return clips


JSON_VALUES = {"number": 7, "fraction": 1.5, "list": [], "object": {}, "null": None, "text": "text", "true": True}
# What each of these values becomes in each field, where it is not "built".
REFUSED = {
    "id": {kind: "bad_annotation" for kind in JSON_VALUES if kind not in ("number", "text")},
    "video_name": {kind: "missing_media" if kind == "text" else "bad_annotation" for kind in JSON_VALUES},
    "question_text": {kind: "bad_annotation" for kind in JSON_VALUES if kind != "text"},
    "multi_choice": dict.fromkeys(JSON_VALUES, "wrong_choice_count"),
    "answer": dict.fromkeys(JSON_VALUES, "answer_out_of_range"),
    "video_id": {},
    "question_relation": {kind: "bad_annotation" for kind in JSON_VALUES if kind not in ("text", "null")},
    "question_type": {kind: "bad_annotation" for kind in JSON_VALUES if kind not in ("text", "null")},
}
FOUR = ["dog", "bell", "siren", "drum"]
DEEP = json.loads("[" * 900 + "]" * 900)


def cases() -> dict[str, tuple[object, str]]:
    """Case -> its annotation and the outcome that it ends in."""
    rows: dict[str, tuple[object, str]] = {}

    def add(case: str, outcome: str, name: str = GOOD, **fields: object) -> None:
        rows[case] = (annotation(1000 + len(rows), name, **fields), outcome)

    for case, outcome in CLIPS.items():
        add(case, outcome, GOOD if case == "good" else clip_name(case))
    for case, (start_s, outcome) in WHOLE_VIDEOS.items():
        add(case, outcome, clip_name(case, start_s))
    for kind, value in JSON_VALUES.items():
        rows[f"a row that is {kind}"] = (value, "bad_annotation")
        for field, refused in REFUSED.items():
            add(f"{field} is {kind}", refused.get(kind, "built"), **{field: value})
    for field in ("id", "video_name", "question_text", "multi_choice", "answer"):
        rows[f"no {field}"] = ({k: v for k, v in annotation(1000 + len(rows), GOOD).items() if k != field}, "bad_annotation")
    for name in (f"../{GOOD}", "../../../../../etc/passwd", "/etc/passwd", f"/{GOOD[1:]}", f"clips/../{GOOD}", f"..\\{GOOD}"):
        add(f"name {name}", "bad_annotation", name)
    for name in (f"{GOOD}\n", f"\n{GOOD}", "06GyG4-wONQ\0000006", f"{GOOD}\0", "", "C:\\clips\\a.mp4", "clips/"):
        add(f"name {name!r}", "bad_annotation", name)
    for name in (f"clips/{GOOD}", f"{GOOD}.mp4", f"clips\\{GOOD}.MP4", f"./{GOOD}"):
        add(f"name {name}", "built", name)
    for name in ("06GyG4-wONQ_" + "\u0660" * 5 + "\u0666", f"elsewhere/{GOOD}", "etc/passwd", f"{GOOD}.txt"):
        add(f"name {name}", "missing_media", name)
    add("duplicate id", "duplicate_id", id=1000)
    add("duplicate id as text", "duplicate_id", id="1000")
    add("huge id", "built", id=10**400)
    add("huge text id", "bad_annotation", id="9" * 10**6)
    add("long question", "bad_annotation", question_text="why? " * 200_000)
    add("lone surrogate", "bad_annotation", question_text="which \ud83d sounds?")
    add("lone surrogate in a name", "bad_annotation", "06GyG4-wON\udc00_000006")
    add("lone surrogate in a choice", "bad_annotation", multi_choice=["\udfff", *FOUR[1:]])
    add("lone surrogate in a type", "bad_annotation", question_type="\udfff")
    add("control characters", "built", question_text="what\0\r\n\x1b[31m?")
    add("blank choice", "bad_annotation", multi_choice=[" \t", *FOUR[1:]])
    add("nested choice", "bad_annotation", multi_choice=[["dog"], *FOUR[1:]])
    add("null choice", "bad_annotation", multi_choice=[None, *FOUR[1:]])
    add("true choice", "bad_annotation", multi_choice=[True, *FOUR[1:]])
    add("number choices", "built", multi_choice=[1, 2.5, -3, 10**30])
    add("five choices", "wrong_choice_count", multi_choice=[*FOUR, "none"])
    add("a million choices", "wrong_choice_count", multi_choice=["a"] * 10**6)
    for value in (1.0, float("nan"), float("inf"), False, -1, 4, 10**400, "1"):
        add(f"answer {str(value)[:9]!r}", "answer_out_of_range", answer=value)
    for field in ("id", "video_name", "question_text", "multi_choice", "answer"):
        add(f"deep {field}", REFUSED[field]["list"], **{field: DEEP})
    return rows


def run_builder(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "dataset_builders" / "avqa_audio.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S)


@pytest.fixture(scope="module")
def built(clips) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = clips.parent
    text = json.dumps([row for row, _ in cases().values()])
    (folder / "train_qa.json").write_text(text, encoding="utf-8-sig")  # with a byte order mark, as some editors write it
    flags = ("--train_annotations", "train_qa.json", "--media_dir", "clips", "--output_dir", "out", "--num_proc", "1")
    return folder, run_builder(folder, *flags)


def test_every_kind_of_bad_input_ends_in_its_outcome_and_nothing_is_lost(built):
    folder, done = built
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    message = dict(zip(cases(), ledger(folder), strict=True))
    assert {case: entry["outcome"] for case, entry in message.items()} == {case: out for case, (_, out) in cases().items()}
    assert {entry["outcome"] for entry in message.values()} <= BUILD_OUTCOMES.keys()
    assert max(len(entry["detail"] or "") for entry in message.values()) < 400
    assert message["huge id"]["id"] == "1" + "0" * 299 + "...", "the ledger keeps it short"
    rows = open_dataset(str(folder / "out"), "train")
    whole_id = str(10**400)
    assert rows["id"][:] == [
        whole_id if case == "huge id" else entry["id"] for case, entry in message.items() if entry["outcome"] == "built"
    ]


def test_every_good_row_sounds_as_it_should(built):
    folder, _ = built
    outcomes = {case: outcome for case, (_, outcome) in cases().items()}
    named = [case for case, outcome in outcomes.items() if outcome == "built"]
    expected_s = {"short": 0.3, "uneven_fps": 2.0, "cut_at_1_s": 2.0, "no_length": 3.0}
    for case, row in zip(named, open_dataset(str(folder / "out"), "train"), strict=True):
        heard = decode_audio(row["audio"])
        # AAC works in blocks of 1,024 samples and adds up to two of them.
        blocks_s = 0.26 if case == "eight_khz" else 0.1
        assert heard.duration_s == row["duration_s"] == pytest.approx(expected_s.get(case, DURATION_S), abs=blocks_s), case
        assert pitch_hz(heard.waveform) == pytest.approx(HZ, abs=2), case
        quarter = len(heard.waveform) // 4  # away from the edges, where AAC rings
        loudness = float(np.sqrt(np.mean(heard.waveform[quarter:-quarter] ** 2)))
        channels = 5 / 6 if case == "five_dot_1" else 1  # its sixth is for low frequencies, and no 440 Hz pass
        assert loudness == pytest.approx(channels * 0.5 / 2**0.5, rel=0.05), case


def test_a_link_back_to_a_folder_that_holds_the_clips_is_not_followed(clips):
    media = MediaFolder(str(clips))
    assert not media.candidates(clip_name("outside"))
    for case, file in (("good", clips / f"{GOOD}.mp4"), ("linked_dir", clips / "linked" / "deep" / "linked_dir__000006.mp4")):
        clip = next(iter(media.candidates(GOOD if case == "good" else clip_name(case))), None)
        assert clip is not None
        assert clip.path == str(file)


def test_a_cut_off_mp4_is_never_a_shorter_clip(tmp_path):
    content = write_movie(tmp_path / "whole.mp4", duration_s=3.0, movflags="faststart").read_bytes()
    whole = len(load_clip(str(tmp_path / "whole.mp4")))
    assert content.index(b"moov") < content.index(b"mdat"), "the kind that can be opened without its end"
    cut = tmp_path / "cut.mp4"
    for part in range(1, 100):
        cut.write_bytes(content[: len(content) * part // 100])
        try:
            samples = len(load_clip(str(cut)))
        except MediaError as error:
            assert error.outcome in ("corrupt_media", "no_audio")
        else:
            assert samples > whole - 8_000, f"{part} % of the file"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    for name in ("clips", "folder.json", "traces"):
        (folder / name).mkdir()
    (folder / "good.json").write_text(json.dumps([annotation(1, GOOD)]))
    (folder / "object.json").write_text('{"1": {}}')
    (folder / "empty.json").write_text("[]")
    (folder / "cut.json").write_text('[{"id": 1, "video_na')
    (folder / "nothing.json").touch()
    (folder / "latin.json").write_bytes(b'["\xe9"]')
    (folder / "file").touch()
    (folder / "traces" / "stage.json").write_text('{"settings": {"teacher": "scripted"}, "complete": true}')
    return folder


# All write to one folder: what one mistake leaves there must not keep the next command out of it.
MISTAKES = {
    "annotations are an object": (
        {"train_annotations": "object.json"},
        "object.json: expected a list of annotations as in AVQA",
    ),
    "no annotations in the list": ({"train_annotations": "empty.json"}, "empty.json holds no annotations"),
    "cut JSON": ({"train_annotations": "cut.json"}, "cut.json is not JSON that can be read"),
    "empty file": ({"train_annotations": "nothing.json"}, "nothing.json is not JSON that can be read"),
    "not UTF-8": ({"train_annotations": "latin.json"}, "latin.json is not JSON that can be read"),
    "annotations are a folder": ({"train_annotations": "folder.json"}, "folder.json cannot be read"),
    "no such annotations": ({"train_annotations": "none.json"}, "none.json does not exist"),
    "a second split is bad": ({"validation_annotations": "object.json"}, "object.json: expected a list of annotations"),
    "no such media folder": ({"media_dir": "nowhere"}, "--media_dir nowhere is not a folder"),
    "media folder is a file": ({"media_dir": "file"}, "--media_dir file is not a folder"),
    "output is a file": ({"output_dir": "file"}, "--output_dir file cannot be created"),
    "output is under a file": ({"output_dir": "file/out"}, "--output_dir file/out cannot be created"),
    "output of another stage": ({"output_dir": "traces"}, "traces holds the output of another stage"),
    "limit": ({"limit": "0"}, "argument --limit: expected at least 1, found 0"),
    "where to publish": ({"push_to_hub": "avqa-audio"}, "--push_to_hub avqa-audio: expected ORG/NAME"),
    "an unknown flag": ({"medai_dir": "clips"}, "unrecognized arguments: --medai_dir clips"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(case, folder):
    changed, message = MISTAKES[case]
    given = {"train_annotations": "good.json", "media_dir": "clips", "output_dir": "out"} | changed
    done = run_builder(folder, *(part for name, value in given.items() for part in (f"--{name}", value)))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    if (folder / "out" / "stage.json").exists():
        assert json.loads((folder / "out" / "stage.json").read_text())["settings"] is None


def test_other_settings_are_refused(built):
    folder, _ = built
    flags = ("--train_annotations", "train_qa.json", "--media_dir", "clips", "--output_dir", "out", "--limit", "1")
    done = run_builder(folder, *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "out was started with other settings (limit: None then, 1 now)" in done.stderr


def test_a_build_without_any_row_leaves_nothing_that_another_could_mix_with(folder):
    flags = ("--train_annotations", "good.json", "--media_dir", "clips", "--output_dir", "no_row", "--num_proc", "1")
    done = run_builder(folder, *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no row could be built from 1 annotations (1 missing_media)")
    assert sorted(path.name for path in (folder / "no_row").iterdir()) == [".lock", "ledger.parquet", "stage.json"]
