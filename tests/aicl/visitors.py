"""A hostile visitor of a page that runs in a process of its own, and what they try."""

import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EVENTS = "/gradio_api/run/predict"
JSON = {"content-type": "application/json"}


class Server:
    """A page at `port`; `ask` returns status and body, and keeps every body in `answers` and the last one's headers."""

    def __init__(self, port: int):
        self.port = port
        self.answers: list[bytes] = []
        self.headers: dict[str, str] = {}

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, most: int = 10**6
    ) -> tuple[int, bytes]:
        """`body`: bytes as they are, or anything that JSON can hold. At most `most` bytes of the answer are read."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.putrequest(method, path, skip_host="host" in (headers or {}))
            for name, value in ((headers or {}) | ({} if raw is None else {"content-length": str(len(raw))})).items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                if raw:
                    connection.send(raw)
            except (BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
                pass
            with connection.getresponse() as answer:  # which has the socket where the server closes the connection
                content = answer.read(most)
                self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.answers.append(content)
        return answer.status, content

    def say(self, raw: bytes) -> bytes:
        """Send raw bytes, return the beginning of what comes back (nothing: the connection was closed)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(raw)
            content = connection.recv(4096)
        self.answers.append(content)
        return content


@contextmanager
def serving(log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Run a script that prints its address, as `http://127.0.0.1:PORT`; its error output goes to `log`."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True)
    reader.start()
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", lines.get(timeout=120))):
            pass
        yield Server(int(found[1]))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        reader.join(timeout=30)
        process.stdout.close()


def file_objects(path: str) -> list[Any]:
    """Values in place of a text, a number or a choice that Gradio, or another program, could take for a file."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [
        file,
        file | {"orig_name": "a.txt", "size": 1, "is_stream": False, "mime_type": "text/plain"},
        {"path": path, "url": f"http://127.0.0.1/gradio_api/file={path}", "meta": {"_type": "gradio.FileData"}},
        {"path": "file://" + path, "meta": {"_type": "gradio.FileData"}},
        {"path": path},
        [file],
        [[file]],
        {"value": file},
        {"a": {"b": [file]}},
        {"__type__": "update", "value": file},
        {"is_file": True, "name": path},
        ["text"],
        {},
        [],
        True,
    ]


def addresses(path: str) -> list[str]:
    """Where Gradio's routes, or sloppy ones, would serve a file."""
    shapes = (
        "/gradio_api/file={0}", "/gradio_api/file/{0}", "/file={0}", "/file/{0}", "/gradio_api/file=/proc/self/root{0}",
        "/gradio_api/file=file://{0}", "/gradio_api/file=.{0}", "/assets/{0}", "/assets/../../../../../../../..{0}",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{0}", "/svelte/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{0}",
        "/static/..%5c..%5c..{0}", "/static/%00{0}", "/media/..%2f..{0}", "/media/a/0/left{0}", "//{0}", "{0}",
        "/gradio_api/proxy=http://127.0.0.1:1/{0}", "/gradio_api/proxy=file://{0}",
        "/gradio_api/custom_component/1/client/component/..%2f..%2f..{0}", "/gradio_api/stream/a/b/1/playlist-file",
        "/?deep_link=..%2f..%2f..{0}",
    )  # fmt: skip
    return [shape.format(path) for shape in shapes]


def malformed(event: dict[str, Any]) -> list[Any]:
    """Bodies that are almost `event`, a request that the page sends."""
    numbers = [None, "0", -1, 10**6, 10**400, 1.5, True, [], {}]
    sessions = [None, 1, "", "a b", "../../x", "x" * 1000, ["a"], {"a": 1}, "\0"]
    return [
        *(event | {"fn_index": number} for number in numbers),
        *(event | {"session_hash": session} for session in sessions),
        *(event | {"data": data} for data in (None, "abc", {}, 1, [None] * 99, [[]] * len(event["data"]))),
        *(event | {"trigger_id": trigger} for trigger in ("a", [], {}, 1.5, 10**30)),
        {name: value for name, value in event.items() if name != "data"},
        None, [], [event], "text", 1,
        b"", b"{", b"[" * 100_000, b'{"data":' * 50_000, b'{"fn_index": NaN}', b'{"fn_index": ' + b"9" * 9999 + b"}",
        b"\xff\xfe{}", b"\x00" * 100, b'{"data": ["\\ud800"]}', b'{"a": "' + b"x" * 70_000 + b'"}', b"a=b&c=d",
    ]  # fmt: skip
