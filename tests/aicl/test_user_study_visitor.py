"""A hostile visitor of the user study, which runs as people run it: nothing but the page and its videos is given away.

Whatever else is asked ends in a status from 400 to 499, and without a traceback on the server.
"""

import json
import re
import urllib.parse
from collections.abc import Iterator

import pytest
from gradio.routes import App
from starlette.routing import Route

from aicl.apps.user_study import open_study
from aicl.apps.user_study.app import build_blocks
from tests.aicl import visitors
from tests.aicl.study_samples import write_pairs
from tests.aicl.visitors import EVENTS, JSON, ROOT, Server

SECRET = b"4f1c8a secret of the server's user"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("visited")


@pytest.fixture(scope="module")
def secrets(folder):
    """Files that the server can read: in the study, beside it, and in Gradio's own cache."""
    places = [folder / "secret.txt", folder / "study" / "secret.txt", folder / "gradio" / "abc" / "secret.txt"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(SECRET)
    return [str(place) for place in places]


@pytest.fixture(scope="module")
def server(folder, secrets):
    script = str(ROOT / "scripts" / "user_study.py")
    arguments = ["serve", str(folder / "study"), "--manifest", str(write_pairs(folder, 2)), "--port", "0"]
    variables = {"GRADIO_TEMP_DIR": str(folder / "gradio"), "TMPDIR": str(folder)}
    with visitors.serving(folder / "log", script, *arguments, **variables) as server:
        yield server


@pytest.fixture(scope="module")
def config(server):
    return json.loads(server.ask("GET", "/config")[1])


@pytest.fixture(scope="module")
def events(config) -> list[dict]:
    """The page's requests, one of each kind, as a visitor sends them who has not started."""
    return [
        {"data": [None] * len(each["inputs"]), "fn_index": each["id"], "session_hash": "visitor", "trigger_id": None}
        for each in config["dependencies"]
        if each["backend_fn"]
    ]


@pytest.fixture(autouse=True)
def nothing_leaks(server, folder, secrets):
    """After each test: no answer held a secret, the log has no traceback, no file was copied, and the page works."""
    yield
    assert not any(SECRET in answer for answer in server.answers)
    assert "Traceback" not in (folder / "log").read_text()
    copies = [path for path in (folder / "gradio").rglob("*") if path.is_file() and str(path) not in secrets]
    assert not any(SECRET in path.read_bytes() for path in copies)
    assert server.ask("GET", "/")[0] == 200


def refused(server: Server, *request) -> bool:
    status = server.ask(*request)[0]
    assert 400 <= status < 500, f"{status} for {str(request)[:300]}"
    return True


def test_a_file_in_the_place_of_a_value_is_refused_by_every_event(server, events, secrets):
    tried = 0
    for event in events:
        for place in range(len(event["data"])):
            for path in secrets[:2]:
                for value in visitors.file_objects(path):
                    data = [*event["data"][:place], value, *event["data"][place + 1 :]]
                    tried += refused(server, "POST", EVENTS, event | {"data": data}, JSON)
    assert tried > 300
    text = {"path": secrets[0], "meta": {"_type": "gradio.FileData"}}
    single = next(event for event in events if len(event["data"]) == 1)
    # What is no value of a component does not even reach Gradio: the answer is that of the event without it.
    plain = server.ask("POST", EVENTS, single | {"data": ["nobody"]}, JSON)
    for name in ("event_data", "request", "simple_format", "batched", "event_id", "oauth_token"):
        status, answer = server.ask("POST", EVENTS, single | {"data": ["nobody"], name: text}, JSON)
        assert status == plain[0] and b"gradio.FileData" not in answer


def test_no_other_name_of_an_event_is_answered(server, events, secrets):
    value = visitors.file_objects(secrets[0])[0]
    for event in events:
        body = event | {"data": [value for _ in event["data"]]}
        for route in ("run/predict/", "run/0", "api/predict", "api/0/", "call/predict", "call/v2/0", "queue/join"):
            assert refused(server, "POST", f"/gradio_api/{route}", body, JSON)
            assert refused(server, "POST", f"/{route}", body, JSON)


def leaves(routes: list) -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif hasattr(route, "original_router"):  # how FastAPI keeps a router within a router
            yield from leaves(route.original_router.routes)


def test_every_route_of_gradio_that_the_page_does_not_need_is_closed(server, folder, secrets):
    """Taken from Gradio itself, so that routes of later versions are tried, too."""
    app = App.create_app(build_blocks(open_study(folder / "study")))
    opened, tried = set(), 0
    for route in leaves(app.routes):
        filled = re.sub(r"\{[^}]*:path\}", secrets[0].lstrip("/"), route.path)
        filled = re.sub(r"\{[^}]*\}", "abc", filled)
        for method in sorted({*(route.methods or ()), "POST", "PUT"}):
            if "heartbeat" in filled and method == "GET":
                continue  # never ends
            headers = JSON if method in ("POST", "PUT") else {}
            status, _ = server.ask(method, filled, {"data": []} if headers else None, headers)
            tried += 1
            if status < 400:
                opened.add(route.path)
    pages = {"/", "/config", "/theme.css", "/robots.txt", "/favicon.ico", "/manifest.json"}
    assert opened <= pages | {"/gradio_api/app_id", "/gradio_api/startup-events"}
    assert pages - {"/robots.txt"} <= opened and tried > 100


def test_nothing_can_be_uploaded(server, folder):
    before = {path for path in folder.rglob("*") if path.is_file()}
    part = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.txt"\r\n\r\nabc\r\n--b--\r\n'
    form = {"content-type": "multipart/form-data; boundary=b"}
    for route in ("upload", "upload/", "upload?upload_id=a", "component_server", "process_recording", "run/predict"):
        assert refused(server, "POST", f"/gradio_api/{route}", part, form)
        assert refused(server, "POST", f"/{route}", part, form)
    assert refused(server, "POST", "/gradio_api/upload", b"x" * 3_000_000, form)
    after = {path for path in folder.rglob("*") if path.is_file() and path.name[:12] != "study.sqlite"}
    assert after <= before


def test_no_address_leads_out_of_what_is_served(server, secrets):
    for path in (*secrets, "/etc/hostname"):
        for address in visitors.addresses(path):
            for shape in (address, urllib.parse.quote(address, safe="/%?=")):
                status, answer = server.ask("GET", shape)
                assert 400 <= status < 500 or b"<gradio-app" in answer, f"{status} for {shape}"


def test_malformed_events_are_the_visitors_mistake(server, events):
    event = max(events, key=lambda each: len(each["data"]))
    for body in visitors.malformed(event):
        assert refused(server, "POST", EVENTS, body, JSON)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", ""):
        assert refused(server, "POST", EVENTS, event, {"content-type": kind})
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert refused(server, method, EVENTS, event, JSON)


def test_values_that_no_page_has_are_the_visitors_mistake(server, config, events):
    """Codes, positions and choices of the right type which the study does not know, and texts that cannot be stored."""
    kinds = {each["id"]: each["type"] for each in config["components"]}
    inputs = {each["id"]: each["inputs"] for each in config["dependencies"]}
    wrong = {
        "textbox": [None, "nobody", "nobody' OR '1'='1", "\ud800", "\0", "x" * 5000, 5],
        "number": [None, -1, 99, 10**15, 10**400, 0.5, "0", False],
        "radio": ["left", "ours", "LEFT", 0, "left\0"],
    }
    tried = 0
    for event in events:
        typed = [kinds[each] for each in inputs[event["fn_index"]]]
        for number in range(8 if typed else 0):
            data = [wrong[kind][number % len(wrong[kind])] for kind in typed]
            status = server.ask("POST", EVENTS, event | {"data": data}, JSON)[0]
            known = typed == ["textbox"] and status == 200  # whose code is unknown is told so on the page
            # A choice that was taken back needs no answer, so nothing is looked up.
            assert known or 400 <= status < 500 or (data[-1] is None and status == 200), f"{status}: {data}"
            tried += 1
    assert tried > 40


def test_addresses_of_videos_and_headers_that_make_no_sense(server):
    for address in ("a/b/c", "a/0/ours", "%00/0/left", "a/-1/left", "a/99999999999999999999/left", "%ff/0/left"):
        assert refused(server, "GET", f"/media/{address}")
    for host in ("[", "[::::]", "a b", "x:99999999", "http://x", "..\\x", "é".encode().decode("latin-1")):
        for name in ("host", "x-forwarded-host"):
            assert refused(server, "GET", "/", None, {name: host})
    assert server.ask("GET", "/", None, {"x-forwarded-host": "study.example:8443, proxy"})[0] == 200
    for raw in (
        b"\x16\x03\x01" * 30,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nhost: [\r\n\r\n",
    ):
        assert b" 500 " not in server.say(raw).split(b"\n")[0]
    upgrade = b"GET /gradio_api/ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    key = b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert b" 101 " not in server.say(upgrade + key).split(b"\n")[0]


def test_requests_that_are_malformed_below_what_gradio_sees(server, events):
    """Bodies whose length is a lie, in chunks without an end, and headers that cannot be."""
    event = json.dumps(events[0]).encode()
    head = b"POST " + EVENTS.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [event[:9], event[9:]])
    whole = server.say(head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert whole.split(b" ")[1] == b"200"  # in pieces, but right
    large = b"".join(b"%x\r\n%s\r\n" % (9000, b"x" * 9000) for _ in range(20))
    for raw in (
        head + b"transfer-encoding: chunked\r\n\r\n" + large,
        head + b"content-length: -5\r\n\r\n" + event,
        head + b"content-length: 5\r\ncontent-length: 900\r\n\r\n" + event,
        head + b"content-length: nine\r\n\r\n" + event,
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST " + EVENTS.encode() + b" HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
    ):
        status = server.say(raw).split(b" ")[1:2]
        assert not status or 400 <= int(status[0]) < 500, f"{status} for {raw[:200]!r}"


def test_parts_of_videos_that_cannot_be(server, config):
    start = next(each for each in config["dependencies"] if each["backend_fn"] and not each["inputs"] and
                 each["targets"][0][1] == "click")  # fmt: skip
    body = {"data": [], "fn_index": start["id"], "session_hash": "parts"}
    video = "/" + re.search(r'src=\\"(media/[^"\\]+)', server.ask("POST", EVENTS, body, JSON)[1].decode())[1]
    for wanted in ("bytes=0-9", "bytes=-5"):
        assert server.ask("GET", video, None, {"range": wanted})[0] == 206
    for wanted in ("bytes=9-0", "bytes=999999999-", "bytes=a-b", "bytes=" + "0-1," * 500 + "0-1", "bytes=--1", "bytes=",
                   "bytes=99999999999999999999-", "\xe9", "lines=0-1"):  # fmt: skip
        status = server.ask("GET", video, None, {"range": wanted})[0]
        assert status in (200, 206) or 400 <= status < 500, f"{status} for {wanted}"
    for query in ("?a", "?" + "a=b&" * 3000, "?%ff=%00", "?code=%ed%a0%80"):
        assert server.ask("GET", video + query)[0] == 200


def test_the_page_itself_still_works(server, events, config):
    """A visitor starts, sees two videos, and answers; so the refusals above are not those of a dead server."""
    start = next(each for each in config["dependencies"] if each["backend_fn"] and not each["inputs"] and
                 each["targets"][0][1] == "click")  # fmt: skip
    event = next(each for each in events if each["fn_index"] == start["id"])
    status, answer = server.ask("POST", EVENTS, event, JSON)
    videos = re.findall(r'src=\\"(media/[^"\\]+)', answer.decode())
    assert status == 200 and len(videos) == 2
    for video in videos:
        status, content = server.ask("GET", "/" + video)
        assert status == 200 and content[4:8] == b"ftyp"
