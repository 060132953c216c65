"""What evaluators are served: never whose video is whose."""

import importlib
import json
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aicl.apps.user_study import page, prepare, read_manifest
from aicl.apps.user_study.study import View
from lvdm.errors import ConfigError
from tests.aicl.study_samples import BASELINE, OURS, write_pairs

SCRIPT = Path(__file__).parents[2] / "scripts" / "user_study.py"
VIEW = View("c0de", 1, 5, 1, 'a "dog" & <script>alert(1)</script>', {"uscc": "left"})


class Elements(HTMLParser):
    """Every element of a page, as (tag, attributes)."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    return prepare(root / "study", read_manifest(write_pairs(root, 3)))[0]


def test_prompts_are_text_and_never_markup():
    html = page.pair(VIEW)
    assert "script" not in {tag for tag, _ in Elements(html).found}
    assert "&lt;script&gt;" in html
    assert "script" not in {tag for tag, _ in Elements(page.notice("<script>")).found}


def test_both_videos_are_silent_named_by_their_side_only_and_not_looped_one_by_one():
    videos = [attributes for tag, attributes in Elements(page.pair(VIEW)).found if tag == "video"]
    assert [video["src"] for video in videos] == ["media/c0de/1/left", "media/c0de/1/right"]
    assert [video["aria-label"] for video in videos] == ["Left video", "Right video"]
    for video in videos:
        assert {"muted", "playsinline"} <= set(video)
        assert "loop" not in video  # the script loops both together


def test_progress_and_thanks_tell_where_one_is_and_how_to_come_back():
    bar = next(attributes for tag, attributes in Elements(page.progress(VIEW)).found if tag == "progress")
    assert (bar["max"], bar["value"]) == ("5", "1")
    assert "Pair 2 of 5" in page.progress(VIEW)
    assert "c0de" in page.progress(VIEW) and "c0de" in page.thanks(VIEW)
    assert ("no difference" in page.welcome(5, True), "no difference" in page.welcome(5, False)) == (True, False)


def test_the_head_holds_the_style_and_the_script_whole():
    tags = [tag for tag, _ in Elements(page.head()).found]
    assert tags == ["meta", "style", "script"]
    assert "keepInStep" in page.head() and ".study-videos" in page.head()


def test_without_gradio_the_script_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "aicl.apps.serving", raising=False)
    with pytest.raises(ConfigError, match=r"pip install -e \.\[demo\]"):
        importlib.import_module("aicl.apps.serving")
    monkeypatch.setattr(sys, "argv", ["user_study.py", "serve", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    problem = capsys.readouterr().err
    assert stop.value.code == 2
    assert problem.startswith("error: ") and problem.count("\n") == 1


@pytest.fixture(scope="module")
def client(study):
    from starlette.testclient import TestClient

    from aicl.apps.user_study.app import build_app

    with TestClient(build_app(study)) as client:
        yield client


class Visitor:
    """A browser: keeps what the page shows, and presses its buttons. `code` is the one in the page's address."""

    def __init__(self, client, session: str, code: str | None = None):
        self.client, self.session, self.seen = client, session, []
        self.query = {"code": code} if code else {}
        self.config = self._get("/config").json()
        self.ids = {each["props"].get("elem_id"): each["id"] for each in self.config["components"]}
        self.values: dict[int, object] = {}

    def press(self, element: str, event: str, **values) -> None:
        """Fire an event of an element with the page's values, `values` changed by the user."""
        self.values |= {self.ids[name.replace("_", "-")]: value for name, value in values.items()}
        self._run(next(each for each in self._events() if [self.ids[element], event] in each["targets"]))

    def arrive(self) -> None:
        """What a page does when it is opened."""
        self._run(next(each for each in self._events() if each["targets"][0][1] == "load"))

    def _events(self) -> list[dict]:
        return [each for each in self.config["dependencies"] if each["backend_fn"] and each["targets"]]

    def _run(self, dependency: dict) -> None:
        data = [self.values.get(each) for each in dependency["inputs"]]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session}
        response = self.client.post("/gradio_api/run/predict", json=body, params=self.query)
        self.seen.append(response.text)
        assert response.status_code == 200, response.text
        for target, value in zip(dependency["outputs"], response.json()["data"]):
            if not isinstance(value, dict):
                self.values[target] = value

    def _get(self, address: str):
        response = self.client.get(address)
        self.seen.append(f"{response.headers} {response.text}")
        return response

    def videos(self) -> list[str]:
        shown = [value for value in self.values.values() if isinstance(value, str) and "<video" in value]
        return re.findall(r'<video[^>]* src="([^"]+)"', shown[0]) if shown else []

    def fetch(self, address: str):
        return self._get("/" + address)


def test_nothing_that_is_served_tells_whose_video_is_whose(client, study):
    visitor = Visitor(client, "s1")
    visitor.fetch("")
    visitor.arrive()
    visitor.press("study-start", "click")
    headers = []
    for _ in range(3):
        assert len(visitor.videos()) == 2
        headers += [visitor.fetch(address).headers for address in visitor.videos()]
        visitor.press("study-uscc", "input", study_uscc="left")
        visitor.press("study-next", "click", study_usfc="right")
    assert len(study.store.answers()) == 6
    everything = "".join(visitor.seen)
    hashes = [value[:16] for pair in study.store.pairs for value in (pair.ours_sha256, pair.baseline_sha256)]
    for secret in (OURS, BASELINE, "study.sqlite", str(study.folder), *hashes):
        assert secret not in everything
    own = json.dumps(visitor.config) + "".join(str(value) for value in visitor.values.values())
    assert not re.search(r"\bours\b|baseline", own, re.IGNORECASE)
    assert {header["content-type"] for header in headers} == {"video/mp4"}
    assert len({header["last-modified"] for header in headers}) == 1
    assert not any("content-disposition" in header for header in headers)


def test_videos_are_served_in_parts_and_only_to_those_who_take_part(client, study):
    code = study.join().code
    part = client.get(f"/media/{code}/0/left", headers={"range": "bytes=0-9"})  # phones insist on this
    assert (part.status_code, len(part.content)) == (206, 10)
    for address in ("nobody/0/left", f"{code}/3/left", f"{code}/-1/left"):
        assert client.get(f"/media/{address}").status_code == 404
    assert client.get(f"/media/{code}/0/ours").status_code == 422
    copy = study.video(code, 0, "left")
    for address in (f"/gradio_api/file={copy}", f"/gradio_api/file={study.store.path}"):
        assert client.get(address).status_code in (403, 404)


def test_two_visitors_go_their_own_ways_and_one_comes_back(client, study):
    first, second = Visitor(client, "s2"), Visitor(client, "s3")
    for visitor in (first, second):
        visitor.press("study-start", "click")
    code, other = (visitor.videos()[0].split("/")[1] for visitor in (first, second))
    first.press("study-next", "click", study_uscc="left", study_usfc="left")
    second.press("study-next", "click", study_uscc="right")  # not complete: stays, but keeps what there is
    assert (study.view(code).position, study.view(other).position) == (1, 0)
    assert study.view(other).answers == {"uscc": "right"}
    assert page.NOT_ANSWERED in "".join(str(value) for value in second.values.values())
    assert second.videos()[0].split("/")[2] == "0"
    again = Visitor(client, "s4")
    again.press("study-resume", "click", study_typed=f" {code.upper()} ")
    assert again.videos() == [f"media/{code}/1/left", f"media/{code}/1/right"]
    linked = Visitor(client, "s5", code)
    linked.arrive()
    assert linked.videos() == again.videos()
    new = Visitor(client, "s6")
    new.arrive()
    assert new.videos() == []
    again.press("study-back", "click")
    assert again.values[again.ids["study-uscc"]] == "left"
    again.press("study-resume", "click", study_typed="nobody")
    assert "nobody has the code" in "".join(str(value) for value in again.values.values())
