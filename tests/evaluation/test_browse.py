"""The page of the trace browser: what is in it (default tier), and how it behaves in Chromium (slow tier)."""

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.browse import MEGABYTE, main
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from tests.support import tiny


# `</script>` would end the element that holds the data, `<!--<script>` would keep it from ending.
HOSTILE = "</script><script>window.broken = 1</script><!--<script><img src=x onerror='window.broken = 1'>&amp;\u2028"
SPLIT_SIZES = {"train": 48, "validation": 24}
VERDICTS = ("accept", "reject", "no_reasoning", None)


class Scripts(HTMLParser):
    """Text of every script of a page, and every address that any element names."""

    def __init__(self, page: str):
        super().__init__()
        self.by_id: dict[str | None, str] = {}
        self.addresses: list[str | None] = []
        self._open: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [named[name] for name in ("src", "href", "data", "action") if name in named]
        if tag == "script":
            self._open = named.get("id")
            assert self._open not in self.by_id, "a script element nobody wrote"
            self.by_id[self._open] = ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.by_id[self._open] += data


@pytest.fixture(scope="module")
def dataset(questions: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More questions than a screenful, on the tiny world's clips."""
    folder = tmp_path_factory.mktemp("browser") / "avqa-audio"
    for split, size in SPLIT_SIZES.items():
        rows = [{**questions[i % len(questions)], "id": str(i)} for i in range(size)]
        rows = rows if split == "train" else rows[::-1]  # the same ids for other questions, as AVQA has
        rows = [{**row, "id": str(i)} for i, row in enumerate(rows)]
        parquet.write_parquet(rows, schema.avqa_audio_features(), folder / "data" / f"{split}.parquet")
    write_dataset_card(folder, "# Sounds\n", {"default": {split: f"data/{split}.parquet" for split in SPLIT_SIZES}})
    return folder


def read_split(dataset: Path, split: str) -> list[dict[str, Any]]:
    return list(parquet.open_dataset(str(dataset), split))


@pytest.fixture(scope="module")
def corpus(dataset: Path) -> Path:
    """Every kind of verdict and outcome; one trace of every third question is hostile, one of every fourth very long."""
    rows = []
    for i, question in enumerate(read_split(dataset, "train")):
        said = HOSTILE if i % 3 == 0 else "I hear a bell. " * (200 if i % 4 == 0 else 1)
        traces = [
            tiny.trace(said, i % 4 if said != HOSTILE else None, None, verdict) for verdict in (VERDICTS[i % 4], "reject")
        ]
        traces[1]["verdict_text"] = "I hear a piccolo."
        rows.append(tiny.trace_row(question, traces, checker="checker/of-the-test"))
    folder = dataset.parent / "corpus"
    parquet.write_parquet(rows, schema.traces_features(), folder / "data" / "train.parquet")
    write_dataset_card(folder, "# Corpus\n", {"traces": {"train": "data/train.parquet"}})
    return folder


def write_run(
    folder: Path,
    questions: list[dict[str, Any]],
    answers: list[int | None],
    complete: bool = True,
    benchmark: str = "avqa",
    split: str = "validation",
) -> str:
    """A finished run of `python -m evaluation run`, with a control that the page has to leave out."""
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        copied = {name: question[name] for name in ("id", "question_type", "question_relation", "choices", "duration_s")}
        given = {"answer": answer, "gold": question["answer"], "correct": answer == question["answer"], "matched_by": "letter"}
        row = {
            **dict.fromkeys(schema.predictions_features()),
            **copied,
            **given,
            "benchmark": benchmark,
            "output": f"it is {answer}",
        }
        rows += [{**row, "control": control} for control in ("none", "silent")]
    parquet.write_parquet(rows, schema.predictions_features(), folder / "data" / f"predictions-{benchmark}.parquet")
    (folder / "stage.json").write_text(json.dumps({"settings": {}, "complete": complete}))
    results = {"benchmark": benchmark, "settings": {"split": split}, "results": {}, "gains": {}}
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


@pytest.fixture(scope="module")
def runs(dataset: Path) -> list[str]:
    """The student before and after, on the validation split."""
    asked = read_split(dataset, "validation")
    before = [None if i % 3 == 0 else (q["answer"] + i % 2) % 4 for i, q in enumerate(asked)]
    after = [q["answer"] for q in asked]
    folders = (dataset.parent / "base", dataset.parent / "tuned")
    return [write_run(folder, asked, answers) for folder, answers in zip(folders, (before, after), strict=True)]


def browse(output: Path, **flags: Any) -> tuple[dict[str, Any], Scripts]:
    given = (part for name, value in flags.items() for part in (f"--{name}", *(value if isinstance(value, list) else [value])))
    main([*map(str, given), "--output_dir", str(output)])
    scripts = Scripts((output / "index.html").read_text(encoding="utf-8"))
    return json.loads(scripts.by_id["page"]), scripts


def test_the_page_holds_every_question_with_its_traces_and_answers(dataset, corpus, runs, tmp_path, capsys):
    page, scripts = browse(tmp_path, dataset=dataset, corpus=corpus, runs=runs)
    assert len(page["questions"]) == sum(SPLIT_SIZES.values())
    ledger = list(parquet.open_dataset(str(corpus), "train", "traces"))
    for shown, row in zip(page["questions"], ledger, strict=False):
        assert [shown[k] for k in ("id", "question", "choices", "outcome")] == [
            row[k] for k in ("id", "question", "choices", "outcome")
        ]
        assert [(t["text"], t["verdict"], t["verdict_text"]) for t in shown["traces"]] == [
            (t["text"], t["verdict"], t["verdict_text"]) for t in row["traces"]
        ], "hostile text comes back as it was"
    answered = page["questions"][SPLIT_SIZES["train"] :]
    assert {q["split"] for q in answered} == {"validation"}
    assert [q["change"] for q in answered[:3]] == ["unanswered → right", "wrong → right", "right → right"]
    assert answered[1]["answers"][1]["output"] == f"it is {answered[1]['gold']}"
    assert page["runs"] == ["base", "tuned"]
    assert page["splits"] == [
        {"name": "train", "shown": 48, "found": 48, "total": 48},
        {"name": "validation", "shown": 24, "found": 24, "total": 24},
    ]
    assert page["num_with_clip"] == 72
    assert len([name for name in scripts.by_id if name and name.startswith("sound-")]) == 12, "each clip once"
    assert "48 of 48 questions of train, 24 of 24 questions of validation, 72 with clip" in capsys.readouterr().out


def test_the_page_has_words_for_what_was_not_checked_and_for_every_reason(dataset, corpus, tmp_path):
    page, _ = browse(tmp_path, dataset=dataset, corpus=corpus)
    assert page["shown_as"] == {"not_verified": "not checked yet"}
    assert {trace["verdict"] for question in page["questions"] for trace in question["traces"]} == {*VERDICTS}
    code = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "? no verdict: ${plain(trace.verdict)}" in code, "a reason is shown as such, and not as a rejection"


def test_the_page_needs_nothing_but_itself(dataset, corpus, tmp_path):
    _, scripts = browse(tmp_path, dataset=dataset, corpus=corpus)
    assert scripts.addresses == ["data:,"]
    assert "://" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    front = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    metadata = yaml.safe_load(front)
    assert (metadata["sdk"], metadata["app_file"]) == ("static", "index.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "index.html"]


def test_both_splits_may_be_one(dataset, corpus, tmp_path):
    asked = read_split(dataset, "train")
    run = write_run(tmp_path / "run", asked, [None] * len(asked))
    page, _ = browse(tmp_path, dataset=dataset, corpus=corpus, runs=run, runs_split="train")
    assert len(page["questions"]) == 48
    assert all(q["change"] == "unanswered" and q["traces"] for q in page["questions"])


def test_what_is_left_out_is_counted(dataset, corpus, tiny_world, tmp_path):
    page, _ = browse(tmp_path, dataset=dataset, corpus=corpus, limit=30, media_mb=0)
    assert page["splits"] == [{"name": "train", "shown": 30, "found": 48, "total": 48}]
    assert page["num_with_clip"] == 0
    page, scripts = browse(tmp_path, dataset=dataset, corpus=corpus, media_dir=tiny_world / "clips", media_mb=1)
    stored = [text for name, text in scripts.by_id.items() if name and name.startswith(("sound-", "video-"))]
    assert 0.5 * MEGABYTE < sum(map(len, stored)) <= MEGABYTE
    with_clip = [q for q in page["questions"] if q["clip"] is not None]
    assert len(with_clip) == page["num_with_clip"] < 48
    assert {q["outcome"] for q in with_clip} == {q["outcome"] for q in page["questions"]}, "some of every outcome"


def test_benchmark_and_split_are_the_runs(dataset, tmp_path):
    asked = read_split(dataset, "train")
    run = write_run(tmp_path / "grpo" / "mmau", asked, [0] * len(asked), benchmark="mmau", split="train")
    page, _ = browse(tmp_path / "out", dataset=dataset, runs=run)
    assert [split["name"] for split in page["splits"]] == ["train"] and page["runs"] == ["grpo/mmau"]


def test_a_missing_video_is_said(dataset, corpus, questions, tiny_world, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    names = [f"{row['video_id']}_000000" for row in questions]
    shutil.copy(tiny_world / "clips" / f"{names[0]}.mp4", media)
    shutil.copy(tiny_world / "clips" / f"{names[1]}.mp4", media / f"{names[1]}.mkv")
    page, scripts = browse(tmp_path / "out", dataset=dataset, corpus=corpus, media_dir=media)
    said = [scripts.by_id.get(f"no-video-{page['questions'][i]['clip']}") for i in range(3)]
    assert said == [None, f"Browsers do not show {names[1]}.mkv.", f"No video named {names[2]} in the media folder."]
    assert f"video-{page['questions'][0]['clip']}" in scripts.by_id


@pytest.mark.parametrize(
    ("benchmark", "name", "said"),
    [("avqa", "{}_000000", None), ("music_avqa", "{}", None), ("mmau", "{}_000000", "This benchmark has sounds only.")],
)
def test_videos_are_found_by_the_names_that_the_benchmark_gives_them(
    benchmark, name, said, dataset, questions, tiny_world, tmp_path
):
    asked = read_split(dataset, "validation")[:1]
    source = f"{asked[0]['video_id']}_000000.mp4"
    media = tmp_path / "media"
    media.mkdir()
    shutil.copy(tiny_world / "clips" / source, media / f"{name.format(asked[0]['video_id'])}.mp4")
    run = write_run(tmp_path / "run", asked, [0], benchmark=benchmark)
    _, scripts = browse(tmp_path / "out", dataset=dataset, runs=run, benchmark=benchmark, media_dir=media)
    assert ("video-0" in scripts.by_id, scripts.by_id.get("no-video-0")) == (said is None, said)


def test_what_cannot_be_shown_is_refused(dataset, corpus, runs, tmp_path):
    asked = read_split(dataset, "validation")
    fewer = write_run(tmp_path / "fewer", asked[:-1], [0] * 23)
    unfinished = write_run(tmp_path / "unfinished", asked, [0] * 24, complete=False)
    for flags, message in (
        ({}, "nothing to show"),
        ({"runs": [*runs, fewer]}, "found 3"),
        ({"runs": [runs[0], fewer]}, "1 questions .first: 23. are in only one of"),
        ({"runs": unfinished}, "is not complete"),
        ({"runs": runs, "benchmark": "mmau"}, "no predictions on mmau"),
        ({"runs": runs, "runs_split": "train"}, "are not about questions of split 'train'"),
        ({"corpus": corpus, "split": "validation"}, "are about another clip"),
        ({"corpus": corpus, "media_dir": tmp_path / "nowhere"}, "is not a folder"),
    ):
        with pytest.raises(InputError, match=message):
            browse(tmp_path / "out", dataset=dataset, **flags)
    assert not (tmp_path / "out").exists()


# In Chromium.


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium and chromedriver here; `make setup-browser` installs them where apt-get may be used")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # No sandbox: Chromium refuses to start as root with it, and the page is our own.
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "mute-audio"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as session:
        yield session


@pytest.fixture(scope="module")
def index(dataset: Path, corpus: Path, runs: list[str], tiny_world: Path) -> Path:
    output = dataset.parent / "page"
    browse(output, dataset=dataset, corpus=corpus, runs=runs, media_dir=tiny_world / "clips", media_mb=2)
    return output / "index.html"


@pytest.fixture
def opened(chromium: Any, index: Path) -> Iterator[Any]:
    """The page at desktop width; whatever a test does with it, it logs nothing, runs no foreign code and asks for nothing."""
    resize(chromium, 1280)
    chromium.get_log("browser"), chromium.get_log("performance")  # those of the page before
    chromium.get(index.as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return window.broken") is None
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {index.as_uri()}


def resize(chromium: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(chromium: Any, selector: str) -> Any:
    return chromium.find_element("css selector", selector)


def shown(chromium: Any) -> list[str]:
    """What stands in every question on the screen's list."""
    return [article.text for article in chromium.find_elements("css selector", "article")]


def choose(chromium: Any, name: str, label: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(find(chromium, f"select[name={name}]")).select_by_visible_text(label)


@pytest.mark.storm
def test_chromium_pages_filters_and_searches(opened):
    count, place = find(opened, "#count"), find(opened, ".place")
    assert (count.text, place.text, len(shown(opened))) == ("All 72 questions.", "1–20 of 72", 20)
    find(opened, "nav:last-of-type .next").click()
    assert (place.text, len(shown(opened))) == ("21–40 of 72", 20)
    assert opened.switch_to.active_element == count, "the keyboard goes on where the new questions begin"
    choose(opened, "outcome", "no answer (16)")
    assert count.text == "16 of 72 questions match these filters."
    assert all("no answer" in text and HOSTILE[:30] in text for text in shown(opened)), "markup is shown as text"
    find(opened, "button[type=reset]").click()
    choose(opened, "change", "wrong → right (8)")
    assert len(shown(opened)) == 8
    assert all("✗ wrong Before: base says" in text and "✓ right After: tuned says" in text for text in shown(opened))
    kind = find(opened, "select[name=question_type] option:nth-child(2)").text
    find(opened, "button[type=reset]").click()
    choose(opened, "question_type", kind)
    assert count.text.startswith(f"{kind.split('(')[1][:-1]} of 72")
    find(opened, "button[type=reset]").click()
    find(opened, "input[type=search]").send_keys("BELL. piccolo")
    assert count.text == "32 of 72 questions match these filters."
    find(opened, "input[type=search]").send_keys(" zither")
    assert (count.text, shown(opened)) == ("No question matches these filters.", [])
    find(opened, "button[type=reset]").click()
    find(opened, "input[name=with_clip]").click()
    assert shown(opened) and not any("Not in this page" in text for text in shown(opened))


@pytest.mark.storm
def test_chromium_tells_a_missing_verdict_from_a_rejection(opened):
    texts = "\n".join(shown(opened))
    assert "? no verdict: no reasoning Trace 1 says" in texts and "– not checked yet Trace 1 says" in texts
    assert opened.execute_script("return plain('not_verified')") == "not checked yet"


@pytest.mark.storm
def test_chromium_plays_sound_and_video(opened):
    find(opened, "input[name=with_clip]").click()
    played = """
        const [kind, done] = arguments, player = document.querySelector(kind);
        player.addEventListener("ended", () => done([player.duration, player.currentTime, player.readyState]));
        player.addEventListener("error", () => done("cannot be played"));
        player.scrollIntoView();
        const started = setInterval(() => { if (player.src) { clearInterval(started); player.play(); } }, 20);
    """
    opened.set_script_timeout(30)
    duration, heard, ready = opened.execute_async_script(played, "audio")
    assert (duration, heard) == (pytest.approx(2.0, abs=0.1), duration) and ready >= 2
    opened.execute_script("document.querySelector('audio').addEventListener('play', () => { window.together = true; })")
    duration, seen, ready = opened.execute_async_script(played, "video")
    assert (duration, seen) == (pytest.approx(2.0, abs=0.1), duration) and ready >= 2
    assert opened.execute_script("return window.together"), "the sound plays with the video"
    assert opened.execute_script("return document.querySelector('video').muted")
    attached = "return [...document.querySelectorAll('audio')].filter(player => player.src).length"
    assert 0 < opened.execute_script(attached) < len(shown(opened)), "far from the screen no clip is loaded"


@pytest.mark.storm
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_shows_nothing_beyond_the_edge_and_every_control_has_a_name(opened, width, scheme):
    resize(opened, width)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    controls = opened.find_elements("css selector", "input, select, button, audio, video, summary")
    assert all(control.accessible_name for control in controls)
    ratios = opened.execute_script(CONTRASTS)
    assert ratios and min(ratios) >= 4.5, "WCAG AA for text"


# Contrast of every text on the screen with the nearest background behind it; disabled buttons are exempt.
CONTRASTS = """
const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
const linear = value => value <= 10.3 ? value / 255 / 12.92 : ((value / 255 + .055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
function background(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
}
const texts = [...document.querySelectorAll("body *")].filter(e => !e.disabled && e.tagName !== "SCRIPT"
  && e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
return texts.map(e => {
  const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(background(e))];
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
});
"""
