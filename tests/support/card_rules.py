"""
What the Hub says of a card's front matter: errors, with which it is refused, and warnings.

After the Hub's documentation of model and dataset cards (`modelcard.md` and `datasetcard.md` of huggingface/hub-docs) and the
lists of huggingface.js, as far as the cards of this project go: it accepts less than the real one. What it does not prove: that
a base model or a dataset that a card names exists.
"""

import re
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, ModelCardData


FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0", "openrail", "other", "unknown"}
TASKS = {"audio-text-to-text", "audio-classification", "question-answering", "multiple-choice", "text-generation", "other"}
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
DATASET_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+", re.ASCII)
LICENSE_NAME = re.compile(r"[a-z0-9.-]+")
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def one_or_more(check: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """A value, or a list of such."""
    return lambda value: bool(value) and all(check(each) for each in (value if isinstance(value, list) else [value]))


def matching(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def emissions(value: Any) -> bool:
    grams = value.get("emissions") if isinstance(value, dict) else value
    return isinstance(grams, int | float) and not isinstance(grams, bool)


# What each field has to be, and how that is told.
FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "license": (one_or_more(lambda value: value in LICENSES), "the identifier of a licence"),
    "license_name": (matching(LICENSE_NAME), "lower-case letters, digits, - and ."),
    "language": (one_or_more(matching(LANGUAGE)), "ISO 639 codes"),
    "tags": (lambda value: isinstance(value, list) and all(is_text(tag) for tag in value), "a list of strings"),
    "pretty_name": (is_text, "a string"),
    "co2_eq_emissions": (emissions, "grams, a number"),
}
OF_MODEL: dict[str, tuple[Callable[[Any], Any], str]] = {
    "library_name": (is_text, "a string"),
    "pipeline_tag": (lambda value: value in TASKS, "a task of the Hub"),
    "base_model": (one_or_more(matching(REPO_ID)), "ids of models, ORG/NAME"),
    "base_model_relation": (lambda value: value in RELATIONS, f"one of {', '.join(sorted(RELATIONS))}"),
    "datasets": (one_or_more(matching(DATASET_ID)), "ids of datasets"),
}
OF_DATASET: dict[str, tuple[Callable[[Any], Any], str]] = {
    "task_categories": (one_or_more(lambda value: value in TASKS), "tasks of the Hub"),
    "source_datasets": (one_or_more(is_text), "strings"),
    "configs": (one_or_more(lambda each: is_text(each.get("config_name"))), "each with a config_name"),
    "dataset_info": (lambda value: isinstance(value, dict | list), "a mapping, or a list of them"),
}


def result_errors(result: Any, place: str) -> Iterator[str]:
    """One entry of `results` in a `model-index`."""
    if not isinstance(result, dict):
        yield f'"{place}" must be an object'
        return
    for part, keys in (("task", ["type"]), ("dataset", ["type", "name"])):
        for key in keys:
            if not is_text((result.get(part) or {}).get(key)):
                yield f'"{place}.{part}.{key}" is required'
    if not result.get("metrics"):
        yield f'"{place}.metrics" is required'
    for i, metric in enumerate(result.get("metrics") or []):
        if not is_text(metric.get("type")):
            yield f'"{place}.metrics[{i}].type" is required'
        if metric.get("value") is None:
            yield f'"{place}.metrics[{i}].value" is required'


def index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list) or not index:
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        if not isinstance(model, dict) or not is_text(model.get("name")):
            yield f'"model-index[{i}].name" is required'
        elif not isinstance(model.get("results"), list) or not model["results"]:
            yield f'"model-index[{i}].results" is required'
        else:
            for j, result in enumerate(model["results"]):
                yield from result_errors(result, f"model-index[{i}].results[{j}]")


def card_errors(front: dict[str, Any], kind: str) -> Iterator[str]:
    for name, (check, expected) in (FIELDS | (OF_DATASET if kind == "dataset" else OF_MODEL)).items():
        if name in front and not check(front[name]):
            yield f'"{name}" must be {expected}'
    if any(isinstance(value, date | datetime) for value in front.values()):
        yield "a date has to stand in quotes"
    if kind == "model" and "model-index" in front:
        yield from index_errors(front["model-index"])


def validate(content: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README.md of a `"model"` or a `"dataset"`."""
    found = FRONT.match(content)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"YAML: {' '.join(str(error).split())}"], []
    if not isinstance(front, dict):
        return ["the metadata has to be a mapping"], []
    errors = list(card_errors(front, kind))
    if not errors:
        # The client's own reading of it: fails on what it could not read back.
        (DatasetCardData if kind == "dataset" else ModelCardData)(**front)
    return errors, []
