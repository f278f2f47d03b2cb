"""To add an engine is to write one module and one line of the registry; a stage then runs with it."""

import json

from dataset_builders import traces
from sightsound import engines
from tests.support.tiny import read_rows


TOY = '''
from sightsound.engines.base import ChatResult, Completion


class ToyEngine:
    """Another protocol than OpenAI's; it always gives the first choice."""

    requests_per_call, window_s = 4, None

    def __init__(self, model, url):
        self.revision = f"{model} at {url}"

    def complete(self, requests, sampling):
        text = "<think>I see {number}.</think><answer>A</answer>"
        for request in requests:
            completions = [Completion(text.format(number=i), "stop") for i in range(sampling.n)]
            yield [ChatResult(request.key, request.text, completions)]


def make(flags):
    return ToyEngine(flags.model, flags.base_urls[0])
'''


def test_a_new_engine_is_a_module_and_a_line_of_the_registry(monkeypatch, tiny_dataset, tiny_world, tmp_path):
    (tmp_path / "toy_engine.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    line = ("toy_engine", lambda flags: any("toy.example" in url for url in flags.base_urls))
    monkeypatch.setattr(engines, "ENGINES", [line, *engines.ENGINES])
    flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "model": "m", "base_url": "http://toy.example/v1"}
    flags |= {"num_traces": 2, "num_frames": 2, "output_dir": tmp_path / "traces"}
    monkeypatch.setattr(
        "sys.argv", ["traces.py", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    )
    traces.main()
    rows = read_rows(tmp_path / "traces")
    assert len(rows) == 12 and {row["teacher_revision"] for row in rows} == {"m at http://toy.example/v1"}
    assert [trace["think"] for trace in rows[0]["traces"]] == ["I see 0.", "I see 1."]
    assert {row["teacher_answer"] for row in rows} == {0}
    assert json.loads((tmp_path / "traces" / "stage.json").read_text())["settings"]["engine"] == "server"
