"""Copies are found by sound and by picture, in other codecs too; other clips are not taken for copies."""

import itertools

import numpy as np
import pytest

from sightsound.building.near_duplicates import (
    MAX_PICTURE_DISTANCE,
    MAX_SOUND_DISTANCE,
    NUM_PICTURES,
    SHIFTS,
    Fingerprint,
    SeenSegments,
    dhash,
    sound_bits,
)
from sightsound.building.segments import CutSettings, Video, cut_video
from sightsound.data.parquet import read_parquet


PAIRS = [("mdn_rabbit.webm", "mdn_rabbit320.mp4"), ("mdn_stream_of_water.mp4", "mdn_stream_of_water.webm")]
OTHERS = ("mdn_friday_audio_first.mp4", "nasa_13013_two_av_pairs.mp4")


def noise(seed: int, duration_s: float = 10.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    length = round(duration_s * 16_000)
    return (random.standard_normal(length) * np.repeat(random.uniform(0, 0.3, length // 1600 + 1), 1600)[:length]).astype(
        np.float32
    )


def of(sound: np.ndarray, seed: int) -> Fingerprint:
    pictures = np.random.default_rng(seed).integers(0, 2**63, NUM_PICTURES, dtype=np.uint64)
    return Fingerprint(*sound_bits(sound), pictures)


def seen(*prints: Fingerprint) -> SeenSegments:
    segments = SeenSegments(10.0)
    for i, each in enumerate(prints):
        segments.add(str(i), each)
    return segments


def test_a_louder_shifted_and_noisy_copy_has_the_same_sound():
    sound = noise(1)
    segments = seen(*(of(noise(i), i) for i in range(100)))
    added = 0.02 * np.random.default_rng(7).standard_normal(len(sound))
    for copy in (sound, 3 * sound, sound + added, np.roll(sound, 1500), np.roll(sound, -2000)):
        assert segments.same_sound(of(copy, 1000))[0] == "1"
    assert segments.same_sound(of(noise(101), 0)) is None
    assert segments.same_sound(of(np.roll(sound, 48_000), 0)) is None, "another part of the same video is no copy"


@pytest.mark.parametrize("duration_s", [0.5, 1.0, 2.0, 10.0])
def test_short_sounds_are_not_taken_for_copies_by_chance(duration_s):
    segments = seen(*(of(noise(i, duration_s), i) for i in range(200)))
    assert [i for i in range(200, 230) if segments.same_sound(of(noise(i, duration_s), i))] == []


def test_silence_around_a_sound_does_not_make_it_a_copy():
    quiet = np.zeros(16_000 * 10, np.float32)
    first, second = quiet.copy(), quiet.copy()
    first[:16_000], second[:16_000] = noise(1, 1.0), noise(2, 1.0)
    assert seen(of(first, 1)).same_sound(of(second, 2)) is None
    assert seen(of(first, 1)).same_sound(of(quiet, 2)) is None


def test_pictures_are_compared_one_by_one_and_dark_ones_not_at_all():
    first = of(noise(1), 1)
    changed = Fingerprint(first.words, first.active, first.pictures ^ np.uint64(0b1101))
    assert seen(first).same_picture(changed) == ("0", 3.0)
    assert seen(first).same_picture(of(noise(1), 2)) is None
    dark = Fingerprint(first.words, first.active, np.zeros(NUM_PICTURES, np.uint64))
    assert seen(dark).same_picture(dark) is None
    assert dhash(np.tile(np.arange(9), (8, 1))) == 2**64 - 1


def test_fingerprints_survive_a_file():
    first = of(noise(1), 1)
    again = Fingerprint.from_bytes(*first.to_bytes())
    assert all((getattr(first, name) == getattr(again, name)).all() for name in ("words", "active", "pictures"))


def test_real_clips_and_their_copies_in_other_codecs_are_far_apart(real_data, tmp_path):
    prints = {}
    for name in (*itertools.chain(*PAIRS), *OTHERS):
        part = tmp_path / f"{name}.parquet"
        cut_video(Video(str(real_data / "video" / name), name, name, "", ""), CutSettings(10, 10, 1), part)
        [row] = [row for row in read_parquet([part]) if row["kind"] == "segment"]
        prints[name] = Fingerprint.from_bytes(row["sound"], row["pictures"])

    def distances(one: str, other: str) -> tuple[float, float]:
        compared = [seen(prints[one])._sound_distances(prints[other], shift)[0][0] for shift in SHIFTS]
        return float(min(compared)), float(np.bitwise_count(prints[one].pictures ^ prints[other].pictures).mean())

    copies = [distances(*pair) for pair in PAIRS]
    pairs = [pair for pair in itertools.combinations(prints, 2) if pair not in PAIRS]
    apart = [distances(*pair) for pair in pairs]
    for i, (limit, name) in enumerate(((MAX_SOUND_DISTANCE, "sound"), (MAX_PICTURE_DISTANCE, "picture"))):
        furthest, nearest = max(each[i] for each in copies), min(each[i] for each in apart)
        print(f"{name}: copies up to {furthest:.2f}, others from {nearest:.2f}")
        assert furthest < limit < nearest - (limit - furthest) / 2
    for one, other in PAIRS:
        assert seen(prints[one]).same_sound(prints[other]) and seen(prints[one]).same_picture(prints[other])
