"""Annotations in the format of MUSIC-AVQA."""


def annotation(question_id, video_id="00000093", **fields) -> dict:
    """A row in MUSIC-AVQA's own format."""
    return {
        "video_id": video_id,
        "question_id": question_id,
        "type": '["Audio-Visual", "Temporal"]',
        "question_content": "Which <Object> makes the sound <FL>?",
        "templ_values": '["violin", "first"]',
        "question_deleted": 0,
        "anser": "simultaneously",
    } | fields
