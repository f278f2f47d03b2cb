"""A collection on the Hub: one page for the datasets, models and Spaces that belong together."""

from __future__ import annotations

from functools import partial

from sightsound.cli import InputError
from sightsound.hub.publish import refuse_offline
from sightsound.hub.retries import retrying


def make_collection(title: str, namespace: str, items: list[tuple[str, str]], private: bool) -> str:
    """
    Group repositories; a collection of that title is added to, and what it holds already stays as it is.

    Args:
        title, namespace (`str`): What it is called, and the user or organisation that it belongs to.
        items (`list[tuple[str, str]]`): Id and kind (`"model"`, `"dataset"` or `"space"`) of each repository.
        private (`bool`): Refuse a collection that everybody can see.

    Returns:
        `str`: Its address.

    Raises:
        `InputError`: A repository does not exist, the token may not write, or the collection is public against the wish.
    """
    from huggingface_hub import HfApi

    refuse_offline()
    api = HfApi()

    def group() -> str:
        collection = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        if private and not collection.private:
            raise InputError(f"{collection.slug} is public; make it private in its settings, or leave --private out")
        for repo_id, kind in items:
            api.add_collection_item(collection.slug, repo_id, kind, exists_ok=True)  # type: ignore[arg-type]
        return collection.url

    # Looked up first: an item that is missing leaves no half of a collection behind.
    for repo_id, kind in items:
        retrying(partial(api.repo_info, repo_id, repo_type=kind))
    return retrying(group)
