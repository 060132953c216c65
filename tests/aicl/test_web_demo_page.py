"""The page of `aicl demo` as people use it, and as a hostile visitor does, in a server process of its own."""

import json
import re
import urllib.parse
from collections.abc import Callable, Iterator

import pytest

from tests.aicl import visitors
from tests.aicl.study_samples import write_sample
from tests.aicl.visitors import EVENTS, JSON, ROOT, Server
from tests.aicl.web_samples import PROMPT, write_models
from tests.aicl.web_visitors import BINARY, CAMERA, CHROMIUM, BrowserVisitor, HttpVisitor, browser_is_there

SECRET = b"7d20ab secret of the server's user"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def secrets(folder) -> list[str]:
    """Files that the server can read: beside its folder, and in it."""
    places = [folder / "secret.txt", folder / "out" / "sessions" / "secret.txt"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(SECRET)
    return [str(place) for place in places]


@pytest.fixture(scope="module")
def server(folder, secrets) -> Iterator[Server]:
    models = write_models(folder / "models")
    arguments = ["--models", str(models), "--out", str(folder / "out"), "--devices", "cpu", "--port", "0"]
    with visitors.serving(folder / "log", str(ROOT / "scripts" / "demo.py"), *arguments) as server:
        yield server
        assert not any(SECRET in answer for answer in server.answers)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def arrive(server) -> Iterator[Callable[..., HttpVisitor]]:
    """Somebody new at the page: in a browser, or speaking HTTP where there is none."""
    if not browser_is_there():
        yield lambda width=1280: HttpVisitor(server)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield lambda width=1280: BrowserVisitor(server, browser, width)
        browser.close()


@pytest.fixture(scope="module")
def events(server) -> list[dict]:
    """The page's requests, one of each kind, as a visitor sends them who has just arrived."""
    return [
        {"data": [None] * len(each["inputs"]), "fn_index": each["id"], "session_hash": "visitor", "trigger_id": None}
        for each in json.loads(server.ask("GET", "/config")[1])["dependencies"]
        if each["backend_fn"]
    ]


def refused(server: Server, *request) -> bool:
    status = server.ask(*request)[0]
    assert 400 <= status < 500, f"{status} for {str(request)[:300]}"
    return True


def test_a_whole_generation_by_clicks_and_a_refused_upload(arrive, folder):
    visitor = arrive()
    assert "hammering" in visitor.prompt()  # a well-formed prompt stands there
    wrong = folder / "notes.mp4"
    wrong.write_text("these are no pictures")
    visitor.upload(wrong)
    assert "notes.mp4 is not a video (MP4, MOV, WebM, MKV, GIF or AVI)" in visitor.notice
    visitor.write(PROMPT, steps=2)
    visitor.choose_for_prompt()
    visitor.upload(write_sample(folder / "mine.mp4", 5, frames=8))
    assert visitor.references() == 2 and visitor.notice == ""
    assert "its caption shares 'hammer' with your prompt" in visitor.html().replace("&#x27;", "'")
    visitor.generate()
    visitor.wait_for(lambda: len(visitor.videos()) == 4)  # two references, the base model's video and ours
    for address in visitor.videos():
        assert visitor.get(address)[4:8] == b"ftyp"
    kinds = [address.rpartition(".")[2] for address in visitor.downloads()]
    assert kinds == ["mp4", "gif", "mp4", "gif", "png", "json", "safetensors"]
    record = json.loads(visitor.get(next(each for each in visitor.downloads() if each.endswith(".json"))))
    assert record["job"]["prompt"] == PROMPT and record["job"]["num_inference_steps"] == 2
    assert record["job"]["reference_guidance_scale"] is None  # a field that was left alone does not switch it on
    assert visitor.command().startswith("aicl sample --model ") and "--num-inference-steps 2" in visitor.command()
    visitor.close()


def test_two_sessions_a_reload_in_mid_run_and_cancel(arrive):
    first, second = arrive(), arrive()
    first.write(PROMPT + " slowly", steps=100, seeds=4)
    first.choose_for_prompt()
    first.generate()
    first.wait_for(lambda: re.search(r"Step \d+ of 800|Getting ready", first.html()) is not None)
    second.write(PROMPT, steps=1)
    second.generate()
    second.wait_for(lambda: "Number 2 in line" in second.html())
    assert second.references() == 0 and f"{PROMPT} slowly" not in second.html()
    first.open()
    first.wait_for(lambda: re.search(r"Step \d+ of 800", first.html()) is not None)
    assert first.prompt() == PROMPT + " slowly" and first.references() == 1
    first.cancel()
    first.wait_for(lambda: "Cancelled." in first.html())
    second.wait_for(lambda: len(second.videos()) == 1)
    for visitor in (first, second):
        visitor.close()


def test_a_clip_of_the_camera_is_a_reference(arrive):
    visitor = arrive()
    visitor.record()
    assert visitor.notice == "" and visitor.references() == 1
    assert "webcam clip" in visitor.html() and "The frames that the prism reads" in visitor.html()
    visitor.write(PROMPT, steps=1)
    visitor.generate()
    visitor.wait_for(lambda: len(visitor.videos()) == 3)
    visitor.close()


def test_the_page_fits_a_phone(arrive):
    visitor = arrive(390)
    visitor.write(PROMPT, steps=1)
    visitor.choose_for_prompt()
    assert visitor.overflow() == 0
    visitor.generate()
    visitor.wait_for(lambda: len(visitor.videos()) == 3)
    assert visitor.overflow() == 0
    visitor.close()


def test_a_file_in_the_place_of_a_value_is_refused_by_every_event_queued_or_not(server, events, secrets):
    tried = 0
    for event in events:
        for place in range(len(event["data"])):
            for value in visitors.file_objects(secrets[0])[:5] if place else visitors.file_objects(secrets[0]):
                data = [*event["data"][:place], value, *event["data"][place + 1 :]]
                if value is not True:
                    tried += refused(server, "POST", EVENTS, event | {"data": data}, JSON)
        for route in ("queue/join", "queue/data", "run/predict/", "run/0", "api/predict", "call/predict", "upload"):
            body = event | {"data": [visitors.file_objects(secrets[0])[0]] * len(event["data"])}
            tried += refused(server, "POST", f"/gradio_api/{route}", body, JSON)
    assert tried > 200
    for body in visitors.malformed(max(events, key=lambda each: len(each["data"]))):
        assert refused(server, "POST", EVENTS, body, JSON)


def test_no_address_leads_to_a_file_that_is_not_the_visitor_s(server, secrets, arrive):
    for path in (*secrets, "/etc/hostname"):
        for address in visitors.addresses(path):
            status, answer = server.ask("GET", urllib.parse.quote(address, safe="/%?="))
            assert 400 <= status < 500 or b"<gradio-app" in answer, f"{status} for {address}"
    visitor = HttpVisitor(server)
    visitor.write(PROMPT, steps=1)
    visitor.choose_for_prompt()
    visitor.generate()
    visitor.wait_for(lambda: visitor.videos() != [])
    own = [*visitor.videos(), *visitor.downloads(), re.search(r"reference/\w+/0/", visitor.html())[0] + "clip"]
    other = HttpVisitor(server)
    for address in own:
        assert visitor.get(address)
        assert other.ask("GET", "/" + address)[0] == 404 and server.ask("GET", "/" + address)[0] == 404
        for wrong in (
            "../task.json",
            "..%2ftask.json",
            "%2e%2e/session.json",
            "task.json",
            "video.mp4%00",
            "video.txt",
        ):
            assert refused(
                server, "GET", "/" + address.rpartition("/")[0] + "/" + wrong, None, {"cookie": visitor.cookie}
            )


def test_uploads_have_one_way_in_with_limits(server, folder):
    visitor, clip = HttpVisitor(server), write_sample(folder / "clip.mp4", 1).read_bytes()
    known = {"cookie": visitor.cookie}
    assert server.ask("POST", "/upload/reference?name=a.mp4", clip, BINARY | known)[0] == 200
    before = set((folder / "out").rglob("*"))
    assert refused(server, "POST", "/upload/reference?name=a.mp4", clip, BINARY)  # of nobody
    for header in ({"content-type": "multipart/form-data; boundary=b"}, {}, BINARY | {"sec-fetch-site": "cross-site"}):
        assert refused(server, "POST", "/upload/reference?name=a.mp4", clip, known | header)
    large = b"POST /upload/reference HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
    assert b" 413 " in server.say(large + b"content-length: 99999999\r\n\r\n")
    assert b" 411 " in server.say(large + b"transfer-encoding: chunked\r\n\r\n")
    for name in ("%00", "%ed%a0%80", "x" * 5000):
        server.ask("POST", f"/upload/reference?name={name}", b"no video", BINARY | known)
        assert b"Traceback" not in server.answers[-1]
    for kind in ("reference/", "video", "../reference", "image/x"):
        assert refused(server, "POST", f"/upload/{kind}", clip, BINARY | known)
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert refused(server, method, "/upload/reference", None, known)
    assert refused(server, "POST", "/upload/image?name=a.png", clip, BINARY | known)
    assert set((folder / "out").rglob("*")) == before


def test_what_is_chosen_is_what_the_page_can_choose(server, secrets):
    visitor = HttpVisitor(server)
    for body in (
        b"", b"[]", b"{", b"[" * 9000, b'{"do": NaN}', {"do": "delete"}, {"do": ["example"]}, {"do": None}, {},
        {"do": "example", "number": 99}, {"do": "example", "number": -1}, {"do": "example", "number": True},
        {"do": "frame", "number": 99}, {"do": "frame", "number": True}, {"do": "frame", "model": 9},
        {"do": "example", "model": 9}, {"do": "example", "number": secrets[0]}, {"do": "remove", "id": secrets[0]},
        {"do": "prompt", "text": {"path": secrets[0], "meta": {"_type": "gradio.FileData"}}}, {"do": "prompt"},
        {"do": "verb", "text": "fly"}, {"do": "verb", "text": "x" * 4000}, {"do": "caption", "id": "x", "text": "a"},
        {"do": "show", "id": "../../.."}, {"do": "first", "id": 5}, {"do": "prompt", "text": "\ud800"},
    ):  # fmt: skip
        assert refused(server, "POST", "/choose", body, JSON | {"cookie": visitor.cookie}), body
    assert visitor.references() == 0
