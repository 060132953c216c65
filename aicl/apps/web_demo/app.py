"""The routes of the page: what a visitor may send and fetch. Everything else is refused by the guard."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from aicl.apps.guard import SHUT, Guard, Post, Refusal, check_paths, is_text, read_object
from aicl.apps.serving import page_theme
from aicl.apps.web_demo import page, uploads
from aicl.apps.web_demo.form import COOKIE, build_blocks
from aicl.apps.web_demo.outputs import FILE_NAME
from aicl.apps.web_demo.service import Service
from aicl.apps.web_demo.sessions import TOKEN, Session
from lvdm.errors import DataError, DiskError, UserError
from lvdm.files import disk_errors

_ID = r"[0-9a-f]{12,16}"
_NUMBER = r"\d{1,6}"
OWN = (
    rf"/reference/{_ID}/{_NUMBER}/(clip|sheet|poster)",
    rf"/example/{_NUMBER}/{_NUMBER}/(clip|poster)",
    rf"/result/{_ID}/{FILE_NAME}",
    r"/image",
)
POSTS = {
    r"/upload/(reference|image)": Post("application/octet-stream", uploads.MAX_BYTES),
    r"/choose": Post("application/json", 16 * 1024),
}
_KINDS = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp",
          ".json": "application/json", ".safetensors": "application/octet-stream"}  # fmt: skip
_MONTH = 30 * 24 * 3600  # seconds


def build_app(service: Service) -> FastAPI:
    """The web application: the page at "/", beside it what it sends and shows."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=living)
    blocks = build_blocks(service)
    app.add_middleware(Guard, blocks=blocks, own=OWN, posts=POSTS)
    app.middleware("http")(_give_token)
    for kind in (Refusal, UserError):
        app.add_exception_handler(kind, _sentence)

    def session_of(request: Request) -> Session:
        return service.sessions.of(request.cookies.get(COOKIE))

    @app.post("/upload/{kind}")
    async def upload(kind: str, request: Request) -> dict[str, str]:
        session, name = session_of(request), request.query_params.get("name", "")
        if not is_text(name):
            raise Refusal(400, "the name of this file cannot be shown")
        place, shown = uploads.reserve(session, name)
        try:
            with disk_errors(place.parent), place.open("wb") as file:
                async for part in request.stream():
                    await run_in_threadpool(file.write, part)
            accept = uploads.accept_video if kind == "reference" else uploads.accept_image
            await run_in_threadpool(accept, session, place, shown)
        finally:
            place.unlink(missing_ok=True)
        return {"name": shown}

    @app.post("/choose")
    async def choose(request: Request) -> dict[str, bool]:
        session, asked = session_of(request), read_object(await request.body())
        await run_in_threadpool(_choose, service, session, asked)
        return {"done": True}

    @app.get("/reference/{id}/{model}/{part}")
    def reference(id: str, model: int, part: str, request: Request) -> FileResponse:
        return _file(getattr(service.reference_preview(session_of(request), id, model), part))

    @app.get("/example/{model}/{number}/{part}")
    def example(model: int, number: int, part: str) -> FileResponse:
        return _file(getattr(service.example_preview(model, number), part))

    @app.get("/result/{id}/{file}")
    def result(id: str, file: str, request: Request) -> FileResponse:
        return _file(service.result_file(session_of(request), id, file))

    @app.get("/image")
    def image(request: Request) -> FileResponse:
        found = session_of(request).image
        if found is None:
            raise DataError("there is no image")
        return _file(found[0], keep=False)

    theme = page_theme("indigo")
    private = [str(service.root.resolve())]
    gr.mount_gradio_app(app, blocks, path="/", theme=theme, head=page.head(), blocked_paths=private, **SHUT)
    check_paths(blocks)
    return app


def _choose(service: Service, session: Session, asked: dict[str, Any]) -> None:
    """Change what a session chose, or what it looks at. Raises Refusal for what the page does not send."""
    verb, text, id, number, model = (asked.get(name) for name in ("do", "text", "id", "number", "model"))
    if not (isinstance(verb, str) and is_text(text or "") and is_text(id or "")):
        raise Refusal(400, "the page sends nothing of this kind")
    if any(type(each) is not int or not 0 <= each < 10**6 for each in (number or 0, model or 0)):
        raise Refusal(400, "the page sends no such numbers")
    actions: dict[str, Callable[[], None]] = {
        "example": lambda: service.add_example(session, model or 0, number or 0),
        "frame": lambda: service.take_frame(session, model or 0, number or 0),
        "prompt": lambda: service.retrieve(session, model or 0, text or "", "your prompt"),
        "verb": lambda: service.retrieve(session, model or 0, f"a person is about to {text}", "what you asked for"),
        "remove": lambda: session.remove(id or ""),
        "first": lambda: session.put_first(id or ""),
        "caption": lambda: session.caption(id or "", text or ""),
        "show": lambda: service.show(session, id or ""),
    }
    if verb not in actions:
        raise Refusal(400, "the page sends nothing of this kind")
    actions[verb]()


async def _give_token(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """A token for a browser that opens the page without one: it says whose references and videos are whose."""
    response = await call_next(request)
    if request.url.path == "/" and not TOKEN.fullmatch(request.cookies.get(COOKIE, "")):
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, secrets.token_urlsafe(16), _MONTH, httponly=True, samesite="lax", secure=secure)
    return response


async def _sentence(request: Request, error: Exception) -> JSONResponse:
    """A visitor's mistake as one sentence, with the status that it has."""
    status = error.status if isinstance(error, Refusal) else 507 if isinstance(error, DiskError) else 400
    if request.method == "GET":
        status = 404
    return JSONResponse({"error": str(error)}, status, {"cache-control": "no-store"})


def _file(path: Path, keep: bool = True) -> FileResponse:
    kind = _KINDS[path.suffix]
    return FileResponse(path, media_type=kind, headers={"cache-control": f"private, max-age={3600 * keep}"})
