"""The Gradio page, and the route that serves its videos. Needs `pip install -e .[demo]`."""

from collections.abc import Callable
from typing import Any, Literal

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

from aicl.apps.guard import SHUT, Guard, answered, check_paths
from aicl.apps.serving import page_theme
from aicl.apps.user_study import page
from aicl.apps.user_study.store import QUESTIONS
from aicl.apps.user_study.study import Study, View
from lvdm.errors import DataError

MEDIA = r"/media/[^/]{1,32}/[^/]{1,8}/[^/]{1,8}"  # as a path: page.MEDIA_ROUTE
_SHOW_CODE = "(code) => { if (code) history.replaceState(null, '', '?code=' + encodeURIComponent(code)); }"


def build_app(study: Study) -> FastAPI:
    """The web application: the page at "/", the anonymous videos below it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    blocks = build_blocks(study)
    app.add_middleware(Guard, blocks=blocks, own=(MEDIA,))

    @app.get(page.MEDIA_ROUTE)
    def media(code: str, position: int, side: Literal["left", "right"]) -> FileResponse:
        try:
            path = study.video(code, position, side)
        except DataError as error:
            raise HTTPException(404) from error
        return FileResponse(path, media_type="video/mp4", headers={"cache-control": "private, max-age=86400"})

    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=page_theme("blue"),
        head=page.head(),
        blocked_paths=[str(study.folder.resolve())],
        **SHUT,
    )
    check_paths(blocks)
    return app


def build_blocks(study: Study) -> gr.Blocks:
    """The page. It keeps code and position in the browser, so it works on across restarts of the server."""
    ties = study.store.settings.ties
    choices = page.CHOICES_WITH_TIE if ties else page.CHOICES
    # Not queued: each event is one request with its answer. With the queue, a quick succession can lose the last one.
    quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    plain: dict[str, Any] = {"apply_default_css": False, "padding": True}
    with gr.Blocks(title="Video study", analytics_enabled=False) as blocks:
        code, position = gr.Textbox(visible=False), gr.Number(visible=False, precision=0)
        with gr.Column(visible=False) as start_screen:
            gr.HTML(page.welcome(study.total, ties), **plain)
            start = gr.Button("Start", variant="primary", elem_id="study-start")
            with gr.Accordion("I have a code already", open=False):
                typed = gr.Textbox(label="Your code", max_lines=1, elem_id="study-typed")
                resume = gr.Button("Go on", elem_id="study-resume")
            unknown = gr.HTML(**plain)
        with gr.Column(visible=False, elem_classes="study-screen") as pair_screen:
            progress, pair = gr.HTML(**plain), gr.HTML(**plain)
            questions = [
                gr.Radio(choices, label=text, elem_id=f"study-{name}", elem_classes="study-question", interactive=True)
                for name, text in QUESTIONS.items()
            ]
            unanswered = gr.HTML(**plain)
            with gr.Row():
                back = gr.Button("Back", elem_id="study-back", min_width=100)
                onward = gr.Button("Next", variant="primary", elem_id="study-next", min_width=100)
        with gr.Column(visible=False) as thanks_screen:
            thanks = gr.HTML(**plain)
            review = gr.Button("Look at my answers again", elem_id="study-review")

        screens = [start_screen, pair_screen, thanks_screen]
        everything = [*screens, code, position, progress, pair, *questions, back, thanks, unknown, unanswered]

        def show(screen: gr.Column, view: View | None = None, text: str = "") -> dict[Any, Any]:
            """Updates of all components for one of the screens."""
            updates: dict[Any, Any] = {each: gr.update(visible=each is screen) for each in screens}
            updates |= {unknown: page.notice(text), unanswered: page.notice(text)}
            if view:
                updates |= {code: view.code, position: view.position, thanks: page.thanks(view)}
                updates |= {progress: page.progress(view), pair: page.pair(view)}
                updates |= {radio: view.answers.get(name) for name, radio in zip(QUESTIONS, questions)}
                updates[back] = gr.update(interactive=view.position > 0)
            return updates

        def enter(known: str | None) -> dict[Any, Any]:
            try:
                view = study.view(known or "")
            except DataError as error:
                return show(start_screen, text=str(error))
            return show(thanks_screen if view.finished else pair_screen, view)

        def arrive(request: gr.Request) -> dict[Any, Any]:
            known = request.query_params.get("code")
            return enter(known) if known else show(start_screen)

        def shown(known: str | None, place: int | None) -> tuple[str, int]:
            """The code and the position of a page that shows a pair. Raises DataError for one that does not."""
            if not known or place is None:
                raise DataError("no pair is shown: start, or give your code")
            return known, place

        def step(known: str | None, place: int | None, *given: str | None, by: int) -> dict[Any, Any]:
            """Keep what is chosen on the screen, then go to a neighbouring pair; onward only from a complete one."""
            known, place = shown(known, place)
            for name, choice in zip(QUESTIONS, given):
                if choice is not None:
                    study.answer(known, place, name, choice)
            view = study.view(known, place)
            if by > 0 and not view.complete:
                return show(pair_screen, view, page.NOT_ANSWERED)
            if view.finished and place + by == study.total:
                return show(thanks_screen, view)
            if 0 <= place + by < study.total:
                return show(pair_screen, study.view(known, place + by))
            return enter(known)

        def keep(name: str) -> Callable[[str | None, int | None, str | None], None]:
            def save(known: str | None, place: int | None, choice: str | None) -> None:
                if choice is not None:  # a late event, when the page shows another pair already
                    study.answer(*shown(known, place), name, choice)

            return save

        gr.on([blocks.load], answered(arrive), None, everything, **quick)
        for event in (
            start.click(answered(lambda: show(pair_screen, study.join())), None, everything, **quick),
            resume.click(answered(enter), typed, everything, **quick),
            typed.submit(answered(enter), typed, everything, **quick),
        ):
            event.then(None, code, None, js=_SHOW_CODE, api_visibility="private")
        for name, radio in zip(QUESTIONS, questions):
            # always_last: a second thought while the first is being saved must not get lost
            radio.input(answered(keep(name)), [code, position, radio], None, trigger_mode="always_last", **quick)
        inputs = [code, position, *questions]
        onward.click(answered(lambda *values: step(*values, by=1)), inputs, everything, **quick)
        back.click(answered(lambda *values: step(*values, by=-1)), inputs, everything, **quick)
        review.click(answered(lambda known: show(pair_screen, study.view(known or "", 0))), code, everything, **quick)
    return blocks
