"""
Near-duplicates: segments with the same sound or the same picture as an earlier one, also after another encoding.

Sound: the fingerprint of Haitsma and Kalker ("A Highly Robust Audio Fingerprinting System", ISMIR 2002). Each bit says whether
the difference between two neighbouring bands grew since the frame before; a loss of quality flips few of them. Picture: dHash
(Krawetz, 2013), 64 bits of each of a few frames, which say whether a pixel is brighter than its right neighbour.

Two segments are compared from their beginnings on, so that overlapping windows of one video are no duplicates. The price: a
copy that begins at another second is not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sightsound.data.schema import SAMPLING_RATE


FRAME_SAMPLES = 5_920  # 0.37 s, as in the paper: so long that a copy which begins 0.06 s later has nearly the same frames
HOP_SAMPLES = 2_048  # 0.128 s; the paper's 0.0116 s also finds a copy at any other offset, and would take 11 times the memory
NUM_BITS = 32
BAND_EDGES_HZ = np.geomspace(300.0, 2000.0, NUM_BITS + 2)  # the paper's: what every codec and telephone keeps
# A frame this far below the loudest one has no bits of its own: rounding and codecs decide them.
QUIET_FRAME_DB = 50.0
MIN_ACTIVE_FRAMES = 4  # a single click has too few bits to be recognised by
SHIFTS = (-1, 0, 1)  # hops by which a copy may begin earlier or later: encoders add up to 0.1 s
# Share of bits that differ, where 0.5 is chance; the limit of the paper. On real clips, copies in other codecs differ by at
# most 0.25 and other clips by at least 0.44 (`tests/building/test_near_duplicates.py`).
MAX_SOUND_DISTANCE = 0.35
# In short segments chance deviates further from 0.5: the limit stays so many standard deviations below it. Frames overlap, so
# that about every third is independent.
CHANCE_DEVIATIONS, FRAMES_PER_INDEPENDENT = 6.0, 3.0

NUM_PICTURES = 8  # per segment, evenly
DHASH_WIDTH, DHASH_HEIGHT = 9, 8
# Bits of 64 that differ, on average over the pictures. The usual limit for one picture is 10. On real clips, copies differ by
# at most 3.3 and other clips by at least 14. A low limit: parts of a video with a fixed camera differ by little more.
MAX_PICTURE_DISTANCE = 4.0
# A picture of one brightness, such as a dark room, has few bits set or nearly all; many such pictures are alike and not copies.
INFORMATIVE_BITS = (8, 56)


@dataclass(frozen=True)
class Fingerprint:
    """
    What of a segment is compared.

    Args:
        words (`np.ndarray`): uint32 `(num_frames,)`, the bits of the sound.
        active (`np.ndarray`): bool `(num_frames,)`, which frames are loud enough to count.
        pictures (`np.ndarray`): uint64 `(NUM_PICTURES,)`.
    """

    words: np.ndarray
    active: np.ndarray
    pictures: np.ndarray

    def to_bytes(self) -> tuple[bytes, bytes]:
        """For a parquet file: the sound's frames, of five bytes each, and the pictures."""
        sound = np.concatenate([self.words.astype("<u4").view(np.uint8).reshape(-1, 4), self.active[:, None]], axis=1)
        return sound.astype(np.uint8).tobytes(), self.pictures.astype("<u8").tobytes()

    @staticmethod
    def from_bytes(sound: bytes, pictures: bytes) -> Fingerprint:
        frames = np.frombuffer(sound, np.uint8).reshape(-1, 5)
        words = np.ascontiguousarray(frames[:, :4]).view("<u4")[:, 0]
        return Fingerprint(words, frames[:, 4].astype(bool), np.frombuffer(pictures, "<u8"))


def num_frames(duration_s: float) -> int:
    """How many frames the fingerprint of a sound of some length has."""
    return max(0, (round(duration_s * SAMPLING_RATE) - FRAME_SAMPLES) // HOP_SAMPLES)


def sound_bits(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The bits of a sound.

    Args:
        waveform (`np.ndarray`): shape `(num_samples,)`, mono at 16 kHz.

    Returns:
        `tuple`: `words` and `active` of its `Fingerprint`.
    """
    count = num_frames(len(waveform) / SAMPLING_RATE)
    if not count:
        return np.zeros(0, np.uint32), np.zeros(0, bool)
    window = np.hanning(FRAME_SAMPLES)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, FRAME_SAMPLES)[::HOP_SAMPLES][: count + 1]
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    edges = np.round(BAND_EDGES_HZ * FRAME_SAMPLES / SAMPLING_RATE).astype(int)
    bands = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    differences = np.diff(bands, axis=1)
    grew = differences[1:] > differences[:-1]
    loudness_db = 10 * np.log10(bands.sum(axis=1) + 1e-12)
    loud = loudness_db > loudness_db.max() - QUIET_FRAME_DB
    words = (grew.astype(np.uint32) << np.arange(NUM_BITS, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return words, loud[1:] & loud[:-1]


def dhash(picture: np.ndarray) -> int:
    """
    The dHash of a picture.

    Args:
        picture (`np.ndarray`): uint8 or float, shape `(DHASH_HEIGHT, DHASH_WIDTH)`: brightness, scaled down by averaging.
    """
    brighter = picture[:, 1:] > picture[:, :-1]
    return int.from_bytes(np.packbits(brighter).tobytes())


class SeenSegments:
    """
    The fingerprints of a build so far. A segment takes about 0.5 KB. Comparing one with 10,000 others takes about 8 ms: 40 s in
    a build of 10,000 segments, about an hour in one of 100,000.

    Args:
        segment_s (`float`): Length of the longest segment.
    """

    def __init__(self, segment_s: float):
        self._count, self._width = 0, num_frames(segment_s)
        self._words = np.zeros((64, self._width), np.uint32)
        self._active = np.zeros((64, self._width), bool)
        self._pictures = np.zeros((64, NUM_PICTURES), np.uint64)
        self._ids: list[str] = []

    def add(self, segment_id: str, print_: Fingerprint) -> None:
        if self._count == len(self._words):
            self._words, self._active, self._pictures = (
                np.concatenate([part, np.zeros_like(part)]) for part in (self._words, self._active, self._pictures)
            )
        length = min(self._width, len(print_.words))
        self._words[self._count, :length] = print_.words[:length]
        self._active[self._count, :length] = print_.active[:length]
        self._pictures[self._count] = print_.pictures
        self._ids.append(segment_id)
        self._count += 1

    def same_sound(self, print_: Fingerprint) -> tuple[str, float] | None:
        """The earlier segment whose sound is nearest, and their distance, if that is below the limit."""
        if not self._count or print_.active.sum() < MIN_ACTIVE_FRAMES:
            return None
        compared = [self._sound_distances(print_, shift) for shift in SHIFTS]
        distances = np.min([np.where(distance <= limit, distance, 1.0) for distance, limit in compared], axis=0)
        return self._nearest(distances, MAX_SOUND_DISTANCE)

    def same_picture(self, print_: Fingerprint) -> tuple[str, float] | None:
        """The same for the pictures."""
        num_set = np.bitwise_count(print_.pictures)
        informative = (num_set >= INFORMATIVE_BITS[0]) & (num_set <= INFORMATIVE_BITS[1])
        if not self._count or informative.sum() < NUM_PICTURES / 2:
            return None
        distances = np.bitwise_count(self._pictures[: self._count] ^ print_.pictures).mean(axis=1)
        return self._nearest(distances, MAX_PICTURE_DISTANCE)

    def _nearest(self, distances: np.ndarray, limit: float) -> tuple[str, float] | None:
        nearest = int(distances.argmin())
        return (self._ids[nearest], float(distances[nearest])) if distances[nearest] <= limit else None

    def _sound_distances(self, print_: Fingerprint, shift: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The share of bits that differ from each earlier segment, over the frames that are loud in either; and its limit.

        A frame that is loud in one and silent in the other differs in half of its bits.
        """
        length = min(self._width, len(print_.words))
        new, old = (slice(max(0, shift), length + min(0, shift)), slice(max(0, -shift), length - max(0, shift)))
        words, active = self._words[: self._count, old], self._active[: self._count, old]
        differing = np.bitwise_count(words ^ print_.words[new])
        both, either = active & print_.active[new], active | print_.active[new]
        bits = np.where(both, differing, NUM_BITS // 2).sum(axis=1, where=either)
        num_bits = NUM_BITS * np.maximum(1, either.sum(axis=1))
        deviation = 0.5 / np.sqrt(num_bits / FRAMES_PER_INDEPENDENT)
        return bits / num_bits, np.minimum(MAX_SOUND_DISTANCE, 0.5 - CHANCE_DEVIATIONS * deviation)
