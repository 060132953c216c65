"""What stands between the internet and a Gradio page: only what the page itself asks for gets through.

Gradio answers dozens of routes, most of which no page of ours needs, and turns any object that looks like a file into
a file, wherever it stands. So this guard knows the routes that a page in a browser calls, and for each event the types
that its components send; it builds every request to an event anew from what it checked. Everything else is refused
with a status of 400 or above before Gradio sees it: uploads, files by path, proxies, other names of the same event.

    blocks = build_blocks()
    app.add_middleware(Guard, blocks=blocks, own=(r"/media/[^/]+",))     # routes of our own, if there are some,
                                                                         # and posts= what may be sent to which
    gr.mount_gradio_app(app, blocks, path="/", **SHUT)
    check_paths(blocks)

Event handlers are wrapped in `answered`, so that a visitor's mistake (a UserError) is their error, not the server's.
"""

import functools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import gradio as gr
import httpx
from gradio.block_function import BlockFunction
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lvdm.errors import ConfigError, DiskError, UserError

MAX_BODY = 64 * 1024  # bytes: an event holds a few words and numbers
MAX_TEXT = 4096  # characters of one text
MAX_NUMBER = 2**53  # up to here JavaScript has all whole numbers
SHUT: dict[str, Any] = {"footer_links": [], "ssr_mode": False, "show_error": False, "mcp_server": False}

EVENTS = "/gradio_api/run/predict"
_SESSION = r"[A-Za-z0-9_-]{1,64}"
# What the page asks for when it is opened, and while it is open. Gradio's own files have plain names.
_PAGE_ROUTES = (
    r"/",
    r"/config",
    r"/theme\.css",
    r"/robots\.txt",
    r"/favicon\.ico",
    r"/manifest\.json",
    r"/(assets|static|svelte)/[A-Za-z0-9_@-][A-Za-z0-9_.@-]*(/[A-Za-z0-9_@-][A-Za-z0-9_.@-]*)*",
    r"/gradio_api/app_id",
    r"/gradio_api/startup-events",
    rf"/gradio_api/heartbeat/{_SESSION}",
)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
# What is served is what it says it is, and the address of a page (a code may stand in it) is told to nobody else.
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))
_DROPPED_HEADERS = (b"content-length", b"content-type", b"transfer-encoding", b"x-gradio-server")

_log = logging.getLogger(__name__)
_mistakes: ContextVar[list[str] | None] = ContextVar("mistakes", default=None)


_NO_POSTS: Mapping[str, Any] = {}


class Refusal(Exception):
    """Why a request is not passed on, and the HTTP status that says so."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Post:
    """What a route of the application's own takes by POST: a content type, and at most so many bytes."""

    content_type: str
    most: int


class Guard:
    """ASGI middleware around an application in which `blocks` is mounted at "/".

    own: regular expressions of whole paths that the application serves itself, by GET and HEAD. posts: those to which
    pages of the application, and of no other, send something that is no event, and what; the routes check the content.
    Raises ConfigError if an event of `blocks` reads a component whose values this module cannot check, or is queued.
    """

    def __init__(self, app: ASGIApp, blocks: gr.Blocks, own: Iterable[str] = (), posts: Mapping[str, Post] = _NO_POSTS):
        self.app = app
        self.posts = [(re.compile(path), post) for path, post in posts.items()]
        self.routes = re.compile("|".join(f"(?:{route})" for route in (*_PAGE_ROUTES, *own)))
        self.events = {number: _checks(event) for number, event in blocks.fns.items() if event.fn is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            _check_headers(scope["headers"])
            if scope["path"] == EVENTS:
                scope, receive = await self._event(scope, receive)
            elif post := next((post for path, post in self.posts if path.fullmatch(scope["path"])), None):
                _check_post(scope, post)
            elif not self.routes.fullmatch(scope["path"]):
                raise Refusal(404, "there is nothing here")
            elif scope["method"] not in ("GET", "HEAD"):
                raise Refusal(405, "this address can only be read")
        except Refusal as refusal:
            return await _refuse(refusal, scope, receive, send)
        mistakes: list[str] = []
        token = _mistakes.set(mistakes)
        try:
            await self.app(scope, receive, _blaming_the_visitor(send, mistakes))
        finally:
            _mistakes.reset(token)

    async def _event(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The same request, with a body of checked values and nothing else."""
        if scope["method"] != "POST":
            raise Refusal(405, "an event is sent with POST")
        if _content_type(scope) != "application/json":
            raise Refusal(415, "an event is sent as application/json")
        body = json.dumps(self._checked(_parse(await _read(receive)))).encode()
        kept = [(name, value) for name, value in scope["headers"] if name.lower() not in _DROPPED_HEADERS]
        kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        return {**scope, "headers": kept}, _once(body, receive)

    def _checked(self, content: Any) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise Refusal(400, "an event is a JSON object")
        number, session, trigger = (content.get(name) for name in ("fn_index", "session_hash", "trigger_id"))
        if type(number) is not int or number not in self.events:
            raise Refusal(400, "the page has no such event")
        if not isinstance(session, str) or not re.fullmatch(_SESSION, session):
            raise Refusal(400, "an event has a session_hash")
        if trigger is not None and (type(trigger) is not int or abs(trigger) > MAX_NUMBER):
            raise Refusal(400, "trigger_id is a whole number")
        data, checks = content.get("data"), self.events[number]
        if not isinstance(data, list) or len(data) != len(checks):
            raise Refusal(400, f"this event has a list of {len(checks)} values as its data")
        for place, (value, check) in enumerate(zip(data, checks)):
            if not check(value):
                raise Refusal(400, f"value {place} of this event is not of the kind that the page sends")
        return {"data": data, "fn_index": number, "session_hash": session, "trigger_id": trigger, "event_data": None}


def check_paths(blocks: gr.Blocks) -> None:
    """Have Gradio check the paths of files in a page that is mounted, as it does in one that it launches itself."""
    blocks.has_launched = True


def answered(handler: Callable[..., Any]) -> Callable[..., Any]:
    """An event handler whose UserErrors are answered with the status 400, without a traceback on the server.

    A DiskError is not the visitor's: its status is 500, and the server's log has the sentence.
    """

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except DiskError as error:
            _log.error("%s", error)
            raise gr.Error("this cannot be kept now: please try again later", print_exception=False) from error
        except UserError as error:
            mistakes = _mistakes.get()
            if mistakes is not None:
                mistakes.append(str(error))
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def _checks(event: BlockFunction) -> list[Callable[[Any], bool]]:
    if event.queue:
        raise ConfigError("a guarded page answers events directly: give each of them queue=False")
    return [_check_of(component) for component in event.inputs]


def _check_of(component: Any) -> Callable[[Any], bool]:
    """Whether a value is one that this component sends. Fails for kinds that nobody has thought about yet."""
    if isinstance(component, gr.State):
        return lambda value: value is None  # the server has it
    if isinstance(component, gr.Radio) or (isinstance(component, gr.Dropdown) and _one_choice(component)):
        choices = [value for _, value in component.choices]
        return lambda value: value is None or any(type(value) is type(each) and value == each for each in choices)
    if isinstance(component, gr.Checkbox):
        return lambda value: isinstance(value, bool)
    if isinstance(component, gr.Number | gr.Slider):
        return lambda value: value is None or _is_number(value)
    if isinstance(component, gr.Textbox):
        return lambda value: value is None or is_text(value)
    raise ConfigError(f"the guard of this page cannot check what a {type(component).__name__} sends")


def _one_choice(component: gr.Dropdown) -> bool:
    return not component.multiselect and not component.allow_custom_value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER  # not for NaN


def is_text(value: Any) -> bool:
    """A string without what no keyboard types: NUL, and halves of characters, which cannot be stored."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise Refusal for a host that is no address, from which Gradio could not build one."""
    for name, value in headers:
        if name.lower() in (b"host", b"x-forwarded-host"):
            host = value.decode("latin-1").split(",")[0].strip()
            try:
                if not _HOST.fullmatch(host) or (httpx.URL(f"http://{host}").port or 0) > 65535:
                    raise Refusal(400, "the host of this request is no address")
            except (httpx.InvalidURL, ValueError) as error:
                raise Refusal(400, "the host of this request is no address") from error


def _content_type(scope: Scope) -> str:
    value: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return value.split(b";")[0].strip().lower().decode("latin-1")


def _check_post(scope: Scope, post: Post) -> None:
    """Raise Refusal for a request that no page of ours would send, before any of its body is read."""
    if scope["method"] != "POST":
        raise Refusal(405, "something is sent here, with POST")
    headers = dict(scope["headers"])
    if headers.get(b"sec-fetch-site", b"same-origin") != b"same-origin":
        raise Refusal(403, "this is sent by the page itself alone")
    if _content_type(scope) != post.content_type:
        raise Refusal(415, f"this is sent as {post.content_type}")
    length = headers.get(b"content-length", b"")
    if not re.fullmatch(rb"\d{1,15}", length):
        raise Refusal(411, "the request does not say how long it is")
    if int(length) > post.most:
        raise Refusal(413, f"at most {_amount(post.most)} are taken")


def _amount(count: int) -> str:
    return f"{count // 2**20} megabytes" if count >= 2**20 else f"{count} bytes"


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the request ended early")
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > MAX_BODY:
            raise Refusal(413, f"an event has at most {MAX_BODY} bytes")
        if not message.get("more_body"):
            return body


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that was sent to a route of the application's own. Raises Refusal."""
    content = _parse(body)
    if not isinstance(content, dict):
        raise Refusal(400, "what is sent here is a JSON object")
    return content


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is no JSON that can be read") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _once(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read already: gives `body`, then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _blaming_the_visitor(send: Send, mistakes: list[str]) -> Send:
    """`send` that turns the status 500 into 400 where a handler found a mistake of the visitor's, and adds headers."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = 400 if message["status"] == 500 and mistakes else message["status"]
            message = {**message, "status": status, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return sending


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    answer = JSONResponse({"error": refusal.reason}, refusal.status, {"cache-control": "no-store"})
    await answer(scope, receive, send)
