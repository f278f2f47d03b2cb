"""
Data: the columns of every file, parquet files, and clips.

- `schema.py`: the columns of every dataset, the outcome words of the ledgers
- `parquet.py`: read, write and join parquet files
- `kinds.py`: check that an input is the kind of dataset that a stage reads
- `sources.py`: how inputs are named: a folder, or a Hub repository at a revision
- `annotations.py`: checks of annotations before their clips are opened
- `pinned.py`: official annotation files, identified by their bytes
- `clips.py`: find the media files of a clip in a folder, and open one
- `audio.py`: decode the audio of a clip: `load_clip` for files, `decode_audio` for audio columns
- `track.py`: one audio stream: its samples where their time stamps say, cut between two times
- `frames.py`: decode the video of a clip: `load_frames`, `each_frame`
- `containers.py`: what both need of a media file: streams, clock, seeking, a check that the file is complete
- `resampling.py`: bring audio to 16 kHz in bounded memory
- `statistics.py`: the Wilson interval of a proportion
"""
