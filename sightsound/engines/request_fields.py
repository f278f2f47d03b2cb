"""
The flags that change requests to a server, and what a stage records of the flags of a command that makes requests.

Servers of one protocol accept different fields: some need `max_completion_tokens` in place of `max_tokens`, some refuse `seed`
or `n` above 1. `--request_field NAME=VALUE` adds or replaces a field, `--omit_field NAME` leaves one out.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from sightsound.cli import InputError
from sightsound.engines.sampling import NEUTRAL
from sightsound.scale.executors import SCALE_FIELDS


VIDEO, IMAGES = "video", "images"
FRAMES_HELP = "how frames are sent to --base_url: as one video (vLLM), or as one image_url each (OpenAI, Gemini and others)"
# Ends of the sentences in which an error suggests flags of this module; `FLAGS_OF_REMEDY` finds the flags in them.
LEAVES_OUT, SENDS_IMAGES = " leaves it out", " sends images"
FLAGS_OF_REMEDY = re.compile(rf"; (--[^;]+?)(?:{LEAVES_OUT}|{SENDS_IMAGES})$")
# They are the request itself, or decide what the engine expects of the reply.
FIXED = ("model", "messages", "n", "stream")


@dataclass(kw_only=True)
class RequestFieldArguments:
    request_field: list[str] | None = field(
        default=None, metadata={"help": "NAME=VALUE to add to each request to --base_url; VALUE is JSON, else text"}
    )
    omit_field: list[str] | None = field(
        default=None,
        metadata={"help": "NAME to leave out of each request to --base_url; without n, each completion is a request"},
    )


@dataclass(frozen=True)
class RequestOptions:
    """
    What a server needs changed in the body of every request.

    Args:
        fields (`dict`): Added, or replaced.
        omitted (`tuple[str]`): Left out.
        frames (`str`): `VIDEO`, one `video_url` as vLLM takes it, or `IMAGES`, an `image_url` for each frame.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()
    frames: str = VIDEO

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """
        The body as it is sent.

        Raises:
            `InputError`: The body does not have a field that is to be left out.
        """
        for name in self.omitted:
            # Only requests with a video have the first two; the others are sent until the server refuses them.
            if name not in body and name not in ("media_io_kwargs", "mm_processor_kwargs", *NEUTRAL):
                near = difflib.get_close_matches(name, body, 1) or list(body)
                raise InputError(f"--omit_field {name}: requests have no such field; did you mean {' or '.join(near)}?")
        return {name: value for name, value in body.items() if name not in self.omitted} | self.fields

    def summary(self) -> str:
        """What differs from the default, for the rows; "" where nothing does."""
        parts = [f"{name}={json.dumps(value)}" for name, value in sorted(self.fields.items())]
        parts += [f"no {name}" for name in sorted(self.omitted)]
        parts += ["frames as images"] if self.frames == IMAGES else []
        return ", ".join(parts)


def options_of(
    args: RequestFieldArguments, base_url: Iterable[str] | None, has_own_flag: Iterable[str], frames: str = VIDEO
) -> RequestOptions:
    """
    Read the flags.

    Args:
        base_url (`Iterable[str]`, *optional*): The script's flag. Without it no server gets requests.
        has_own_flag (`Iterable[str]`): Fields that have a flag of their own in the script.
        frames (`str`): The script's `--frames`.

    Raises:
        `InputError`: A flag cannot be used.
    """
    for url in [base_url] if isinstance(base_url, str) else base_url or ():
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--base_url {url}: expected an address that begins with http:// or https://, and ends in /v1")
    fields: dict[str, Any] = {}
    for given in args.request_field or []:
        name, has_value, text = given.partition("=")
        if not has_value or not name:
            raise InputError(f"--request_field {given}: expected NAME=VALUE, such as max_completion_tokens=512")
        if name in FIXED:
            raise InputError(f"--request_field {given}: {', '.join(FIXED)} are set by this script; leave that flag out")
        if name in has_own_flag:
            raise InputError(f"--request_field {given}: this script has a flag for it, --{name}; give that one")
        if name in fields:
            raise InputError(f"--request_field {name} is given twice; give one value")
        fields[name] = _value(text)
    omitted = tuple(dict.fromkeys(args.omit_field or []))
    for name in omitted:
        if name in ("model", "messages") or name in fields:
            why = "--request_field sets it" if name in fields else "every request needs it"
            raise InputError(f"--omit_field {name}: {why}; leave that flag out")
    if not base_url and (fields or omitted or frames != VIDEO):
        raise InputError("--request_field, --omit_field and --frames are for a server; give its --base_url, or leave them out")
    return RequestOptions(fields, omitted, frames)


def recorded(args: RequestFieldArguments, frames: str = VIDEO) -> dict[str, Any]:
    """The flags as a stage's settings have them: their order does not count, and None stands for the default."""
    flags = {name: sorted(getattr(args, name) or []) or None for name in ("request_field", "omit_field")}
    return flags | {"frames": None if frames == VIDEO else frames}


def settings_of_requests(
    args: Any, ignored: Iterable[str] = (), *, model_commit: str | None = None, frames: str = VIDEO
) -> dict[str, Any]:
    """
    What a rerun has to share with the run that it continues: every flag that decides what a model answers. Which servers
    answer, and in how many ranks, is not recorded.

    Args:
        args (`RequestFieldArguments`): Of a command that makes requests, with its `chosen_prompt`.
        ignored (`Iterable[str]`): More flags that decide no answer.
        model_commit (`str`, *optional*): Commit of a model on the Hub.
        frames (`str`): The script's `--frames`.
    """
    left_out = {*SCALE_FIELDS, *ignored, "output_dir", "base_url", "concurrency", "request_timeout_s", "dry_run", "prompt_file"}
    if args.base_url:
        left_out.add("batch_size")  # in this process it decides which requests are drawn together
    settings = {name: value for name, value in asdict(args).items() if name not in left_out}
    settings |= {**args.chosen_prompt.settings, "engine": "server" if args.base_url else "in process"}
    return settings | {"model_commit": model_commit} | recorded(args, frames)


def _value(text: str) -> Any:
    """JSON where the text is JSON (NaN and Infinity are not), else the text."""
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
