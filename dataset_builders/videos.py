r"""
Videos of any length -> segments with sound, their pictures and where they come from. No annotation is needed.

    python dataset_builders/videos.py --source videos --output_dir segments
    python dataset_builders/videos.py --source hf://datasets/HuggingFaceFV/finevideo --preset finevideo \
        --segments_per_video 4 --output_dir segments

`--source` is a folder, searched at any depth, or a dataset of the Hub, at a revision if one is given (`...finevideo@v1.0`).
It holds videos, parquet files with videos as bytes in a column, or tar archives of videos (WebDataset). A Hub dataset is read
file by file: each is downloaded once, its videos are cut, and it is deleted. A killed run continues within the file.

A video is looked at every `--hop_s` seconds, or with `--segments_per_video` at even distances; up to three times as many
places are tried where some are silent or still. Each place is sought, so a video costs as much as the places that are looked
at. What is silent, has a still picture, or has the sound or the picture of an earlier segment is left out.

What is known of a video comes from columns of its row (`--id_column`, `--license_column`, `--author_column`; a path such as
`json.channel` leads into an object), from `metadata.csv` or `metadata.jsonl` with a column `file_name`, or from the
`.info.json` that yt-dlp writes beside a video. `--preset` names the columns of a published set, see
`sightsound/building/video_presets.yaml`. `license` and `author` are in each row, "unknown" where nobody states them. Rows
without a licence are not published: give `--license` for them if you know it.

The output has the columns of avqa-audio that are not about a question, `ledger.parquet` with every video and every place that
was looked at, and `segments/` with a small video of each segment (mp4, at most 640 x 360, 12 frames a second, with the row's
sound). That folder is the `--media_dir` of later stages: sources that are streamed are gone by then, and a teacher that asks
many times reads ten seconds of a small file and not a part of a long one. It is not published.

`--takedown FILE` has one video id or sha256 a line. The dataset keeps it as `takedown.txt`, and every later run into this
folder, or for the repository that it was published to, honours it; given with a complete dataset, it takes out what is
listed, and needs nothing of the source.
"""

from sightsound.building.videos_dataset import VideosArguments, build_videos
from sightsound.cli import parse_arguments, run


def main() -> None:
    build_videos(parse_arguments(VideosArguments, __doc__))


if __name__ == "__main__":
    run(main)
