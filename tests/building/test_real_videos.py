"""Real videos, and a film of 40 minutes made of them: what is found, and that sound and picture are in step."""

import numpy as np
import pytest

from sightsound.data.audio import decode_audio, load_clip
from sightsound.data.frames import load_frames
from tests.support.tiny import read_ledger, read_rows, run_script
from tests.support.videos import concatenate


FILES = ("mdn_bug_no_audio_stream.mp4", "mdn_flower_silent_track.webm", "mdn_stream_of_water.mp4", "mdn_stream_of_water.webm")


@pytest.mark.slow
def test_real_videos_and_a_film_of_40_minutes(real_data, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in FILES:
        (tmp_path / "videos" / name).symlink_to(real_data / "video" / name)
    pieces = [real_data / "video" / f"tears_of_steel_{i}.webm" for i in range(6)]
    film = concatenate(tmp_path / "videos" / "film.webm", [pieces[i % 6] for i in range(240)])
    done = run_script(
        "dataset_builders/videos.py",
        source=tmp_path / "videos",
        output_dir=tmp_path / "out",
        segments_per_video=3,
        num_proc=1,
    )
    assert done.returncode == 0, done.stderr
    found = {(entry["kind"], entry["id"]): entry["outcome"] for entry in read_ledger(tmp_path / "out")}
    assert found == {
        ("video", "film"): "built",
        ("segment", "film_000400"): "built",
        ("segment", "film_001200"): "built",
        ("segment", "film_002000"): "built",
        ("video", "mdn_bug_no_audio_stream"): "no_audio",
        ("video", "mdn_flower_silent_track"): "no_segment",
        ("segment", "mdn_flower_silent_track_000000"): "silent",
        ("video", "mdn_stream_of_water-mp4"): "built",
        ("segment", "mdn_stream_of_water-mp4_000000"): "built",
        ("video", "mdn_stream_of_water-webm"): "no_segment",
        ("segment", "mdn_stream_of_water-webm_000000"): "same_sound",
    }
    for row in read_rows(tmp_path / "out"):
        if row["video_id"] != "film":
            continue
        sound = load_clip(str(film), start_s=row["start_s"], max_duration_s=10.0)
        assert np.abs(decode_audio(row["audio"]).waveform - sound.clip(-1, 1)).max() < 1e-4
        cut = str(tmp_path / "out" / "segments" / f"{row['segment']}.mp4")
        assert np.corrcoef(load_clip(cut)[: len(sound)], sound[: len(load_clip(cut))])[0, 1] > 0.95, "AAC, and not shifted"
        # 60 pictures a part, so that a picture of the small video is at most one of them early or late.
        film_pictures, cut_pictures = (
            load_frames(*given).pixels for given in ((str(film), 60, 9000, row["start_s"], 10.0), (cut, 60, 9000))
        )
        apart = np.array([[np.abs(a.astype(float) - b).mean() for b in film_pictures] for a in cut_pictures])
        nearest = apart.argmin(axis=1) - np.arange(60)
        assert abs(np.median(nearest)) <= 1 and np.median(apart.min(axis=1)) < 8
