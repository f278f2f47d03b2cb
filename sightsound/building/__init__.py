"""
Building: from annotations and clips to a dataset folder.

- `audio_dataset.py`: `build_dataset`, which the builders of audio datasets share: validate, decode, write shards and card
- `sounds.py`: decode many clips in worker processes, and survive a clip that kills its process
- `workers.py`: a pool of worker processes that ends with the main process
- `overlap.py`: clips and questions that two splits share
- `report.py`: what a build prints and writes on its card
- `videos_dataset.py`: `build_videos`: cut every video into segments, in ranks and processes, and join them
- `video_sources.py`: the videos of a folder or of a Hub dataset, one at a time on this disk
- `video_columns.py`: what a source says of a video: id, licence, author; the presets are in `video_presets.yaml`
- `video_workers.py`: cut many videos in worker processes, and survive one that kills its process
- `segments.py`: cut one video: where to look, and what is sound and picture there
- `segment_files.py`: write a segment as a small video file
- `near_duplicates.py`: find segments with the same sound or the same picture
- `videos_join.py`: decide on duplicates, write shards and ledger; take videos out of a finished dataset
- `questions_join.py`: choose among the questions that a teacher wrote about segments; write shards and ledger
- `questions_report.py`: the card and the outcomes of a dataset of such questions
- `blind_runs.py`: what evaluation runs without the clips say of a dataset's questions
- `contribution_labels.py`: write a dataset again with the audio contribution of its questions
- `takedown.py`: the list of videos that must not be in a dataset
- `videos_report.py`: the card and the outcomes of a dataset of segments
- `miniature_world.py`: the procedural world of the miniature: scenes, sounds, sprites, questions
"""
