"""Where a model comes from, what its licence forbids, and what is known of it where only a server has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sightsound.data.sources import REPO_ID, is_hub_id, shown_source
from sightsound.models.family import Licence, StudentFamily, released_family, released_licence, student_families
from sightsound.stage import read_settings


UNKNOWN = "that-of-the-base-model"  # `license_name` of a card where no licence is known
OURS = "sightsound-r1"  # a tag of each card that a recipe writes
# What the Hub accepts as the name of a licence that it does not list.
_NOT_IN_NAMES = re.compile(r"[^a-z0-9.-]+")
# Ids and names that say it themselves: cc-by-nc-4.0, fair-noncommercial-research, intel-research.
_NON_COMMERCIAL = re.compile(r"(?:^|-)nc(?:-|$)|non-?commercial|research")


def origin_on_hub(base: str) -> str | None:
    """The Hub model that `base` is, or that recipes trained it from; None if only folders are known."""
    if is_hub_id(base):
        return base
    origin = (read_settings(Path(base).parent) or {}).get("model_name_or_path") or ""
    if REPO_ID.fullmatch(origin):
        return origin
    # A recipe that started from the result of another one records a fingerprint. Its card names the first model.
    card = card_of(base)
    origin = card.get("base_model") if OURS in (card.get("tags") or ()) else None
    return origin if isinstance(origin, str) else None


def served_window_s(model: str) -> float:
    """
    Seconds of a clip that a model at a server takes in: the server does not say.

    Known are released models, and folders of this machine that recipes trained from one. For every other name it is 30 s, the
    window of Whisper's encoder, which most models have.
    """
    origin = origin_on_hub(model) if is_hub_id(model) or Path(model).is_dir() else None
    return ((released_family(origin) if origin else None) or StudentFamily()).longest_clip_s


def card_of(model: str, revision: str | None = None) -> dict[str, Any]:
    """The front matter of a model's README.md (folder or Hub id); empty if there is none, or it cannot be read."""
    import httpx
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    file = Path(model, "README.md")
    try:
        if is_hub_id(model):
            file = Path(hf_hub_download(model, "README.md", revision=revision))
        return (metadata_load(file) or {}) if file.is_file() else {}
    except (httpx.HTTPError, OSError, ValueError, yaml.YAMLError):
        return {}


def base_licence(base: str, revision: str | None = None) -> Licence | None:
    """
    The licence of a model that training starts from, which holds for the result too.

    It is that of the released model which `base` is or was trained from, where a family knows it; otherwise what the README.md
    of `base` says, which downloads and results of our recipes have too, or that of the model behind it.

    Args:
        base (`str`): Local folder or Hub id.
        revision (`str`, *optional*): Of a Hub model.

    Returns:
        `Licence` or `None`: None if no card states one.
    """
    origin = origin_on_hub(base)
    found = (released_licence(origin) if origin else None) or _licence_in(card_of(base, revision))
    return found or (_licence_in(card_of(origin)) if origin and origin != base else None)


def _licence_in(card: dict[str, Any]) -> Licence | None:
    """The licence that a front matter states."""
    identifier, name, link = card.get("license"), card.get("license_name"), card.get("license_link")
    if not isinstance(identifier, str) or (identifier == "other" and not isinstance(name, str)):
        return None
    name = _NOT_IN_NAMES.sub("-", name.lower()) if isinstance(name, str) else None
    if name == UNKNOWN:
        return None
    known = (licence for family in student_families() for licence in family.licenses.values())
    if name and (released := next((licence for licence in known if licence.name == name), None)):
        return released
    says_so = _NON_COMMERCIAL.search(f"{identifier}-{name or ''}")
    # In the card of a repository the link may be the name of a file beside it.
    link = link if isinstance(link, str) and link.startswith("https://") else None
    return Licence(identifier, name, link, "no commercial use, by its name: read it" if says_so else None)


def restriction_notice(base: str, revision: str | None = None) -> str | None:
    """One line on what the licence of a base forbids; None if it forbids nothing that is known here."""
    licence = base_licence(base, revision)
    if licence is None or licence.restriction is None:
        return None
    link = f" ({licence.link})" if licence.link else ""
    origin = origin_on_hub(base)
    name = shown_source(base) if origin in (None, base) else f"{shown_source(base)} (trained from {origin})"
    return f"licence of {name}: {licence.name or licence.id}{link}: {licence.restriction}; it holds for what is trained from it"
