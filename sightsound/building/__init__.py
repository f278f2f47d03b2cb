"""
Building: from annotations and clips to a dataset folder.

- `audio_dataset.py`: `build_dataset`, which the builders of audio datasets share: validate, decode, write shards and card
- `sounds.py`: decode many clips in worker processes, and survive a clip that kills its process
- `workers.py`: a pool of worker processes that ends with the main process
- `overlap.py`: clips and questions that two splits share
- `report.py`: what a build prints and writes on its card
- `miniature_world.py`: the procedural world of the miniature: scenes, sounds, sprites, questions
"""
