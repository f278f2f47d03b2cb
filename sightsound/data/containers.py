"""Media files as containers: their streams and common clock, seeking, and a check that a file is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from sightsound.data.clips import MediaError
from sightsound.data.schema import CORRUPT_MEDIA


if TYPE_CHECKING:
    from av.audio import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video import VideoStream

Kind = Literal["audio", "video"]

# A truncated file may decode without an error. Complete files end within a few frames of the duration in their header.
MAX_MISSING_S = 0.5
# Formats whose headers state the duration of each stream reliably.
_STATE_DURATION = ("mov,mp4", "flac", "aiff")
# Programs that write a WAV into a pipe cannot know its length: they write something near 2 or 4 GiB.
_LENGTH_IS_UNKNOWN = 0x7FFF0000
# Encoders start before time zero, so that the decoder can warm up. That part is not in the clip.
_MAX_PRIMING_S = 1.0
# A part that begins earlier is decoded from the start: that is as fast as seeking, and exact with any format.
MIN_SEEK_S = 20.0
# A seek may land behind the part, or between key frames. Then it is repeated this much earlier.
_SEEK_BACK_S = (0.0, 5.0, 30.0, 240.0)


def streams_of(container: InputContainer, kind: Kind) -> list[AudioStream | VideoStream]:
    """Streams of a kind, the one that ffmpeg calls best first. Cover pictures are left out."""
    from av.stream import Disposition

    best = container.streams.best(kind)
    streams = cast("list[AudioStream | VideoStream]", list(getattr(container.streams, kind)))
    return sorted((s for s in streams if not s.disposition & Disposition.attached_pic), key=lambda stream: stream is not best)


def first_of_any(container: InputContainer) -> float:
    """The start of the clip on the file's own clock, s: its first video frame or audio sample. Clip time counts from there."""
    streams = [*streams_of(container, "audio"), *streams_of(container, "video")]
    starts = [float(s.start_time * s.time_base) for s in streams if s.start_time is not None and s.time_base is not None]
    return min((0.0 if -_MAX_PRIMING_S < start < 0 else start for start in starts), default=0.0)


def check_decoder(stream: Stream) -> None:
    """Raise `MediaError` where ffmpeg has no decoder for a stream."""
    if stream.codec_context is None:
        raise MediaError(CORRUPT_MEDIA, f"there is no decoder for the {stream.type} in stream {stream.index}")


def all_packets(container: InputContainer, stream_index: int) -> Iterator[Packet]:
    """
    The packets of one stream, from the container's current position.

    Raises:
        `MediaError`: There is no decoder for the stream.
    """
    stream = container.streams[stream_index]
    check_decoder(stream)
    if stream.type == "video":
        cast("VideoStream", stream).thread_type = "AUTO"
    yield from container.demux(stream)


def sought_packets(container: InputContainer, stream_index: int, time_s: float) -> Iterator[Packet]:
    """The packets of one stream from one at or before a time (on the file's own clock); none if the file cannot be sought."""
    import av

    stream = container.streams[stream_index]
    if stream.time_base is None:
        return
    # Matroska has an index of video frames only: a seek by audio would read the file from its start.
    by_video = "matroska" in container.format.name and stream.type == "audio"
    unit_s = Fraction(1, av.time_base) if by_video else stream.time_base
    for back_s in _SEEK_BACK_S:
        packets = all_packets(container, stream_index)
        try:
            container.seek(int(max(0.0, time_s - back_s) / unit_s), stream=None if by_video else stream)
            first = _first_to_decode(packets, float(time_s / stream.time_base), is_video=stream.type == "video")
        except (av.FFmpegError, OSError):
            return  # the caller decodes from the start, and finds what is wrong with the file
        if first:
            yield from first
            yield from packets
            return


def _first_to_decode(packets: Iterator[Packet], pts: float, is_video: bool) -> list[Packet]:
    """The packets to decode first in order to reach `pts`. Empty if the first packet found is later than `pts`."""
    last: list[Packet] = []
    for packet in packets:
        if packet.pts is None or (is_video and not packet.is_keyframe):
            continue
        if packet.pts > pts:
            return [*last, packet] if last else []
        if is_video:
            return [packet]
        last = [packet]
    return last


def check_complete(container: InputContainer, path: str, stream_index: int, ends_s: float) -> None:
    """
    Check that a file is as long as its header says.

    Args:
        container (`InputContainer`): The open file.
        path (`str`): The same file.
        stream_index (`int`): Of the stream that was decoded to its end.
        ends_s (`float`): The end of that stream, on the file's own clock.

    Raises:
        `MediaError`: Something is missing. Formats that do not state their length cannot be checked.
    """
    stream, name = container.streams[stream_index], container.format.name
    if name.startswith(_STATE_DURATION) and stream.duration and stream.time_base is not None:
        length_s = float(stream.duration * stream.time_base)
        header_s = float((stream.start_time or 0) * stream.time_base) + length_s
        if ends_s < header_s - MAX_MISSING_S:
            what = "sound" if stream.type == "audio" else "video"
            raise MediaError(CORRUPT_MEDIA, f"the {what} breaks off at {ends_s:.2f} s of {header_s:.2f} s")
    size, expected = os.path.getsize(path), _size_in_header(path, name)
    if expected is not None and size < expected:
        raise MediaError(CORRUPT_MEDIA, f"the file breaks off at byte {size} of {expected}")


def _size_in_header(path: str, format_name: str) -> int | None:
    """The size in bytes that a WAV, Matroska, AVI or Ogg file states; None where it states none."""
    with open(path, "rb") as file:
        if "matroska" in format_name:
            return _matroska_size(file)
        if format_name == "wav":
            return _wav_size(file)
        if format_name == "avi":
            start = file.read(8)
            size = int.from_bytes(start[4:8], "little")
            return None if start[:4] != b"RIFF" or size in (0, 0xFFFFFFFF) else size + 8
        if format_name == "ogg":
            return _ogg_size(file)
    return None


def _wav_size(file: BinaryIO) -> int | None:
    """The end of the samples. ffmpeg does not notice a smaller file."""
    if file.read(4) != b"RIFF":  # RF64 keeps its length elsewhere
        return None
    file.seek(12)
    while len(chunk := file.read(8)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return file.tell() + size if 0 < size < _LENGTH_IS_UNKNOWN else None
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _matroska_size(file: BinaryIO) -> int | None:
    """The end of the segment, the element after the EBML header that contains the rest of the file."""

    def element() -> tuple[bytes, int | None]:
        lead = file.read(1)
        if not lead or not lead[0]:
            return b"", None
        name = lead + file.read(8 - lead[0].bit_length())
        lead = file.read(1)
        if not lead or not lead[0]:
            return name, None
        more = 8 - lead[0].bit_length()
        size = int.from_bytes(bytes([lead[0] & (0x7F >> more)]) + file.read(more))
        return name, None if size == (1 << 7 * (more + 1)) - 1 else size  # all ones mean unknown: a live recording

    name, size = element()
    if name != b"\x1a\x45\xdf\xa3" or size is None:
        return None
    file.seek(size, os.SEEK_CUR)
    name, size = element()
    return None if name != b"\x18\x53\x80\x67" or size is None else file.tell() + size


def _ogg_size(file: BinaryIO) -> int | None:
    """The end of the last page. Its header has the length of each of its segments."""
    longest_page = 27 + 255 + 255 * 255
    start = max(0, file.seek(0, os.SEEK_END) - longest_page)
    file.seek(start)
    content = file.read()
    page = content.rfind(b"OggS\x00")
    if page < 0 or len(content) < page + 27 + content[page + 26 : page + 27].ljust(1)[0]:
        return None
    num_segments = content[page + 26]
    return start + page + 27 + num_segments + sum(content[page + 27 : page + 27 + num_segments])
