"""Annotations in the format of MMAU."""


def annotation(row_id: str, **fields) -> dict:
    """A row in MMAU's own format."""
    return {
        "id": row_id,
        "audio_id": f"./test-mini-audios/{row_id}.wav",
        "question": "What is in the video?",
        "choices": ["Man", "Woman", "Man"],
        "answer": "Man",
        "dataset": "AudioSet",
        "task": "sound",
        "split": "test-mini",
        "category": ["Reasoning"],
        "sub-category": "Acoustic Source Inference",
        "difficulty": "medium",
    } | fields
