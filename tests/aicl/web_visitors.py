"""People at the page of the web demo: in headless Chromium, or, where there is none, speaking HTTP as its page does."""

import json
import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.aicl.visitors import EVENTS, JSON, Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BINARY = {"content-type": "application/octet-stream"}
PATIENCE = 60.0  # seconds
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # a picture that moves; allowed


def browser_is_there() -> bool:
    """Whether a browser and what drives it are installed."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return False
    return CHROMIUM is not None


class HttpVisitor:
    """Sends what the page's script and Gradio's own would send, and keeps what they would show."""

    def __init__(self, server: Server, width: int = 1280) -> None:
        self.server, self.cookie, self.notice, self.number = server, "", "", 0
        self.open()

    def open(self) -> None:
        """Open the page, or reload it."""
        assert self.ask("GET", "/")[0] == 200
        if "set-cookie" in self.server.headers:
            self.cookie = self.server.headers["set-cookie"].split(";")[0]
        self.number += 1
        self.config = json.loads(self.ask("GET", "/config")[1])
        self.ids = {each["props"].get("elem_id"): each["id"] for each in self.config["components"]}
        self.values = {each["id"]: each["props"].get("value") for each in self.config["components"]}
        self.states = {each["id"] for each in self.config["components"] if each["type"] == "state"}
        self.call(next(e for e in self.config["dependencies"] if e["backend_fn"] and e["targets"][0][1] == "load"))

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """A request of this visitor's browser."""
        return self.server.ask(method, path, body, {"cookie": self.cookie} | (headers or {}))

    def call(self, event: dict[str, Any]) -> None:
        """Send an event of the page with the values that its components have, and show what comes back."""
        data = [None if each in self.states else self.values[each] for each in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "session_hash": f"{self.cookie[-8:]}{self.number}"}
        body["session_hash"] = re.sub("[^A-Za-z0-9]", "x", body["session_hash"])
        status, answer = self.ask("POST", EVENTS, body, JSON)
        assert status == 200, answer
        for id, value in zip(event["outputs"], json.loads(answer)["data"]):
            if isinstance(value, dict) and value.get("__type__") == "update":
                self.values[id] = value.get("value", self.values[id])
            else:
                self.values[id] = value

    def click(self, name: str) -> None:
        """Click one of the page's buttons."""
        target = [self.ids[name], "click"]
        self.call(next(each for each in self.config["dependencies"] if target in each["targets"]))

    def html(self) -> str:
        """Everything that the page shows."""
        self.call(next(each for each in self.config["dependencies"] if each["targets"][0][1] == "tick"))
        return " ".join(str(value) for value in self.values.values() if isinstance(value, str))

    def write(self, prompt: str, steps: int, seeds: int = 1) -> None:
        """Fill the form."""
        self.values |= {self.ids["web-prompt"]: prompt, self.ids["web-steps"]: steps, self.ids["web-samples"]: seeds}

    def prompt(self) -> str:
        """What stands in the prompt's box."""
        return str(self.values[self.ids["web-prompt"]])

    def choose_for_prompt(self) -> None:
        """Have a reference chosen."""
        status, answer = self.ask("POST", "/choose", {"do": "prompt", "model": 0, "text": self.prompt()}, JSON)
        self.notice = "" if status == 200 else json.loads(answer)["error"]
        self.click("web-refresh")

    def upload(self, file: Path) -> None:
        """Send a clip."""
        address = f"/upload/reference?name={urllib.parse.quote(file.name)}"
        status, answer = self.ask("POST", address, file.read_bytes(), BINARY)
        self.notice = "" if status == 200 else json.loads(answer)["error"]
        self.click("web-refresh")

    def record(self) -> None:
        """Send what a camera saw: WebM that says neither its length nor its rate, as a browser records it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "webcam clip"
            with av.open(str(file), "w", format="webm", options={"live": "1"}) as container:
                stream = container.add_stream("libvpx", rate=20)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for number in range(60):
                    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * number, np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            self.upload(file)

    def references(self) -> int:
        """How many references are on the page."""
        return self.html().count('class="web-slot"')

    def videos(self) -> list[str]:
        """The addresses of the videos of a result."""
        found = re.search(r"<article.*?</article>", self.html(), flags=re.S)
        return re.findall(r"<video src='([^']+)'", found[0]) if found else []

    def downloads(self) -> list[str]:
        """The addresses of the files of a result."""
        return re.findall(r'<a href="(result/[^"]+)"', self.html())

    def command(self) -> str:
        """The command line that repeats a result."""
        return unescape(re.search(r"<pre>(.*?)</pre>", self.html(), flags=re.S)[1])

    def get(self, address: str) -> bytes:
        """A file that the page names."""
        status, content = self.ask("GET", "/" + address)
        assert status == 200, address
        return content

    def generate(self) -> None:
        """Press the button."""
        self.click("web-go")

    def cancel(self) -> None:
        """Press the other button."""
        self.click("web-stop")

    def wait_for(self, told: Callable[[], bool]) -> None:
        """Look at the page until something is so."""
        end = time.monotonic() + PATIENCE
        while not told():
            assert time.monotonic() < end, self.html()[-3000:]
            time.sleep(0.1)

    def overflow(self) -> int:
        """How many pixels the page is too wide."""
        return 0

    def close(self) -> None:
        """Leave."""


class BrowserVisitor(HttpVisitor):
    """The same, by clicks and keys in a window of headless Chromium of its own."""

    def __init__(self, server: Server, browser: Any, width: int = 1280) -> None:
        self.server = server
        phone = width < 600
        self.context = browser.new_context(viewport={"width": width, "height": 850}, is_mobile=phone, has_touch=phone)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()

    def open(self) -> None:
        self.page.goto(f"http://127.0.0.1:{self.server.port}/")
        self.page.wait_for_selector(".web-references .web-buttons")

    def html(self) -> str:
        return str(self.page.content())

    def write(self, prompt: str, steps: int, seeds: int = 1) -> None:
        self.page.fill("#web-prompt textarea", prompt)
        if not self.page.locator("#web-steps").count():
            self.page.click("#web-sampling button")
        for name, value in (("steps", steps), ("samples", seeds)):
            number = self.page.locator(f"#web-{name} input[type=number]")

            def taken(name: str = name, value: int = value, number: Any = number) -> bool:
                number.fill(str(value))  # a slider that has just been opened may not listen yet: it has taken the
                number.blur()  # number once its handle is there
                return bool(self.page.input_value(f"#web-{name} input[type=range]") == str(value))

            self.wait_for(taken)

    def prompt(self) -> str:
        return str(self.page.input_value("#web-prompt textarea"))

    def choose_for_prompt(self) -> None:
        before = self.references()
        self.page.click("[data-do=prompt]")
        self.wait_for(lambda: self.references() > before or bool(self.notice))

    def upload(self, file: Path) -> None:
        before = self.references()
        self.page.set_input_files("[data-upload=reference]", str(file))
        self.wait_for(lambda: self.references() > before or bool(self.notice))

    def record(self) -> None:
        before = self.references()
        self.page.click("[data-do=webcam]")
        self.page.click("dialog .web-start")
        self.wait_for(lambda: self.references() > before or bool(self.notice))
        assert self.page.locator("dialog").count() == 0

    @property  # type: ignore[override]
    def notice(self) -> str:
        """The sentence about what went wrong."""
        return " ".join(self.page.locator(".web-references .web-notice:visible").all_inner_texts())

    def references(self) -> int:
        return int(self.page.locator(".web-slot").count())

    def videos(self) -> list[str]:
        return [str(each.get_attribute("src")) for each in self.page.locator(".web-result figure video").all()]

    def downloads(self) -> list[str]:
        return [str(each.get_attribute("href")) for each in self.page.locator(".web-downloads a").all()]

    def command(self) -> str:
        return str(self.page.locator(".web-code pre").text_content())

    def get(self, address: str) -> bytes:
        answer = self.context.request.get(f"http://127.0.0.1:{self.server.port}/{address}")
        assert answer.ok, address
        return bytes(answer.body())

    def generate(self) -> None:
        self.page.click("#web-go")

    def cancel(self) -> None:
        self.page.click("#web-stop:enabled")

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def close(self) -> None:
        self.context.close()
        assert self.errors == []
