"""The guard of any Gradio page: what it lets through, and that it does not start where it could not check."""

import json

import gradio as gr
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from aicl.apps.guard import EVENTS, SHUT, Guard, answered, check_paths
from lvdm.errors import ConfigError, DataError, DiskError

VALUES = {  # what a component sends, and what it does not
    "text": ([None, "", "word", "x" * 4096, "línea\nzwei 走"], ["x" * 4097, 1, True, ["a"], {}, "\0", "\ud800"]),
    "number": ([None, 0, -1.5, 2**53], ["1", True, 2**53 + 2, [1], {}]),
    "slider": ([0, 3.5], ["1", False, {}]),
    "choice": ([None, "a", 2], ["b", True, "2", 2.5, ["a"], {}]),
    "box": ([True, False], [None, 1, "true", {}]),
    "state": ([None], [1, "a", {}]),
}


def build(component, queue=False, seen=None) -> FastAPI:
    with gr.Blocks(analytics_enabled=False) as blocks:
        made, button = component(), gr.Button()

        def handler(value):
            if value == "word":
                raise DataError("this word is unknown")
            if value == "full":
                raise DiskError("study.sqlite: is full")
            if seen is not None:
                seen.append(value)

        button.click(answered(handler), made, None, queue=queue)
    app = FastAPI()

    @app.get("/own/{name}")
    def own(name: str) -> str:
        return name

    app.add_middleware(Guard, blocks=blocks, own=("/own/[a-z]+",))
    gr.mount_gradio_app(app, blocks, path="/", **SHUT)
    check_paths(blocks)
    return app


COMPONENTS = {
    "text": gr.Textbox,
    "number": gr.Number,
    "slider": lambda: gr.Slider(0, 9),
    "choice": lambda: gr.Radio([("A", "a"), ("2", 2)]),
    "box": gr.Checkbox,
    "state": gr.State,
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_component_gets_the_values_that_it_sends_and_no_others(name):
    seen: list = []
    right, wrong = VALUES[name]
    with TestClient(build(COMPONENTS[name], seen=seen)) as client:

        def send(value):
            body = json.dumps({"data": [value], "fn_index": 0, "session_hash": "a"})  # which takes half characters, too
            return client.post(EVENTS, content=body, headers={"content-type": "application/json"})

        for value in right:
            assert send(value).status_code == (400 if value == "word" else 200), value
        assert len(seen) == len(right) - ("word" in right)
        del seen[:]
        for value in wrong:
            assert send(value).status_code == 400, value
    assert seen == []


def test_a_mistake_of_the_visitors_says_what_it_was_without_a_traceback(capfd):
    with TestClient(build(gr.Textbox)) as client:
        answer = client.post(EVENTS, json={"data": ["word"], "fn_index": 0, "session_hash": "a"})
    assert answer.status_code == 400 and answer.json()["error"] == "this word is unknown"
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_is_the_servers_and_one_line_of_its_log(capfd, caplog):
    with TestClient(build(gr.Textbox)) as client:
        answer = client.post(EVENTS, json={"data": ["full"], "fn_index": 0, "session_hash": "a"})
    assert answer.status_code == 500 and answer.json()["error"] == "this cannot be kept now: please try again later"
    assert "study.sqlite: is full" in caplog.text and "Traceback" not in caplog.text + capfd.readouterr().err


def test_a_page_whose_values_cannot_be_checked_does_not_start():
    for component in (gr.File, gr.Image, gr.Video, gr.JSON, gr.Chatbot, gr.HTML, gr.Gallery):
        with pytest.raises(ConfigError, match=f"cannot check what a {component.__name__} sends"):
            TestClient(build(component)).__enter__()
    with pytest.raises(ConfigError, match="queue=False"):
        TestClient(build(gr.Textbox, queue=True)).__enter__()


def test_routes_of_the_application_are_read_only():
    with TestClient(build(gr.Textbox)) as client:
        assert client.get("/own/name").json() == "name"
        assert client.post("/own/name").status_code == 405
        for address in ("/own/NAME", "/own/name/x", "/own", "/docs", "/openapi.json"):
            assert client.get(address).status_code == 404
