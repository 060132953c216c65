"""The form as Gradio components, and what happens when somebody uses them."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from aicl.apps.guard import answered
from aicl.apps.web_demo import page
from aicl.apps.web_demo.models import ModelCard
from aicl.apps.web_demo.service import MOST_SAMPLES, MOST_STEPS, Service, Settings
from aicl.apps.web_demo.sessions import Session
from aicl.prompt_templates import PROMPT_TEMPLATES
from lvdm.errors import ConfigError, UserError

COOKIE = "aicl_session"
_TICK = 0.7  # seconds between two looks at a task
_STEPS = "More is slower, and up to a point better"
_GUIDANCE = "How closely the video keeps to the text"
_OWN = "Guides the references apart from the text, which takes half as long again; 0: both by the guidance scale"
_UNTIL = "Of several, the first is read alone for this share of the noise"
_PLAIN: dict[str, Any] = {"apply_default_css": False, "padding": False}


def build_blocks(service: Service) -> gr.Blocks:
    """The page. All of its events are answered directly; what takes long waits in the service's own queue."""
    quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    names = [card.name for card in service.cards]
    blocks: gr.Blocks
    with gr.Blocks(title="AICL", analytics_enabled=False) as blocks:
        known, timer = gr.State(""), gr.Timer(_TICK, active=False)  # known: what of the results is on the page
        refresh = gr.Button(elem_id="web-refresh", visible="hidden")
        gr.HTML(page.welcome(), elem_id="web-welcome", **_PLAIN)
        with gr.Row(elem_classes="web-columns"):
            with gr.Column(min_width=340, scale=5):
                gr.HTML(page.title(1, "Prompt", "what the video shows"), **_PLAIN)
                prompt = gr.Textbox(show_label=False, label="Prompt", lines=2, max_lines=4, elem_id="web-prompt",
                                    placeholder="Who does what, and where")  # fmt: skip
                hint = gr.HTML(**_PLAIN)
                templates = {
                    name: _template(name) for name in dict.fromkeys(card.template for card in service.cards) if name
                }
                gr.HTML(page.title(2, "References", "clips that show the action"), **_PLAIN)
                references = gr.HTML(**_PLAIN)
                with gr.Accordion("Example clips", open=True, elem_id="web-examples") as examples:
                    gallery = gr.HTML(**_PLAIN)
                with gr.Column(visible=False) as image_part:
                    image = gr.HTML(**_PLAIN)
                gr.HTML(page.title(3, "Settings", "they begin as the model's own"), **_PLAIN)
                with gr.Row():
                    model = gr.Dropdown(
                        names, value=names[0], label="Model", elem_id="web-model", filterable=False, min_width=220
                    )
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="web-seed", min_width=140)
                with gr.Accordion("Sampling", open=False, elem_id="web-sampling"):
                    samples = gr.Slider(1, MOST_SAMPLES, 1, step=1, label="Seeds in a row", elem_id="web-samples")
                    steps = gr.Slider(1, MOST_STEPS, 25, step=1, label="Steps", elem_id="web-steps", info=_STEPS)
                    guidance = gr.Slider(1, 20, 4, step=0.5, label="Guidance scale", info=_GUIDANCE)
                with gr.Accordion("How the references are read", open=False):
                    scale = gr.Slider(0, 2, 1, step=0.05, label="Adapter strength", info="0 is the base model alone")
                    own = gr.Slider(0, 20, 0, step=0.5, label="Reference guidance scale", info=_OWN)
                    until = gr.Slider(0, 1, 0, step=0.05, label="The first reference alone", info=_UNTIL)
            with gr.Column(min_width=340, scale=6):
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="web-go", min_width=160)
                    stop = gr.Button("Cancel", elem_id="web-stop", interactive=False, min_width=100)
                problem = gr.HTML(**_PLAIN)
                progress = gr.HTML(elem_id="web-progress", **_PLAIN)
                result = gr.HTML(elem_id="web-result", **_PLAIN)
                history = gr.HTML(elem_id="web-earlier", **_PLAIN)

        form = [model, prompt, seed, samples, steps, guidance, scale, own, until]
        chosen = [
            references,
            gallery,
            examples,
            image,
            image_part,
            hint,
            *(group for group, _, _ in templates.values()),
        ]
        watched = [timer, known, progress, result, history, go, stop, problem]

        def look(session: Session, seen: str | None, text: str = "") -> dict[Any, Any]:
            """Updates of what a task changes; the results only where others than those that were `seen`."""
            task = service.shown(session)
            active = task is not None and task.state.active
            line = (service.queue.ahead(task), service.queue.seconds_left(task)) if task and active else ()
            updates: dict[Any, Any] = {
                timer: gr.Timer(active=active),
                progress: page.progress(task, *line),
                go: gr.update(interactive=not active),
                stop: gr.update(interactive=active),
                problem: page.notice(text),
            }
            now = f"{task.id} {task.state}" if task else "nothing"
            if now != seen and not (active and seen and seen != "nothing"):  # else what was there before stays
                card = next((card for card in service.cards if task and card.name == task.model), None)
                updates |= {known: now, result: page.result(task, card)}
                updates[history] = page.history(service.history(session), task.id if task else None)
            return updates

        def choices(session: Session, name: str, text: str | None) -> dict[Any, Any]:
            """Updates of what depends on the model and on what was chosen."""
            number = service.number(name)
            card, library = service.cards[number], service.libraries[number]
            picture = session.image
            updates: dict[Any, Any] = {
                references: page.references(session.slots, number, card, library is not None),
                gallery: page.gallery(library, service.gallery(number), number),
                examples: gr.update(visible=card.reads_references),
                image: page.image(picture[1] if picture else None, library, service.gallery(number), number),
                image_part: gr.update(visible=card.takes_image),
                hint: page.hints(card, text or ""),
            }
            return updates | {
                group: gr.update(visible=card.template == key) for key, (group, _, _) in templates.items()
            }

        def defaults(name: str) -> dict[Any, Any]:
            card = service.card(name)
            return {
                steps: min(card.defaults.num_inference_steps, MOST_STEPS),
                guidance: card.defaults.guidance_scale,
                until: card.first_reference_until,
            }

        def arrive(request: gr.Request) -> dict[Any, Any]:
            session = _session(service, request)
            task = service.shown(session)
            values: dict[Any, Any] = {model: names[0], prompt: _first_prompt(service.cards[0])} | defaults(names[0])
            if task is not None and task.model in names:  # as they were when the last videos were asked for
                job = task.job
                values = {model: task.model} | defaults(task.model)
                values |= {prompt: job.prompt, seed: job.seed, samples: job.num_samples, scale: job.scale}
                values |= {steps: job.num_inference_steps, own: job.reference_guidance_scale or 0}
                values |= {guidance: job.guidance_scale} if job.guidance_scale is not None else {}
                values |= {until: job.first_reference_until} if job.first_reference_until is not None else {}
            return values | choices(session, values[model], values[prompt]) | look(session, None)

        def tick(request: gr.Request, seen: str | None) -> dict[Any, Any]:
            return look(_session(service, request), seen)

        def submit(request: gr.Request, seen: str | None, *values: Any) -> dict[Any, Any]:
            session = _session(service, request)
            try:
                service.submit(session, values[0], values[1], _settings(*values[2:]))
            except UserError as error:
                return look(session, seen, str(error))
            return look(session, seen)

        def cancel(request: gr.Request, seen: str | None) -> dict[Any, Any]:
            session = _session(service, request)
            service.cancel(session)
            return look(session, seen)

        def changed(request: gr.Request, name: str, text: str | None, seen: str | None) -> dict[Any, Any]:
            session = _session(service, request)
            return choices(session, name, text) | look(session, seen)

        def switch(request: gr.Request, name: str, text: str | None) -> dict[Any, Any]:
            return choices(_session(service, request), name, text) | defaults(name)

        def hinted(name: str, text: str | None) -> str:
            return page.hints(service.card(name), text or "")

        gr.on([blocks.load], answered(arrive), None, [*form, *chosen, *watched], **quick)
        timer.tick(answered(tick), known, watched, **quick)
        go.click(answered(submit), [known, *form], watched, **quick)
        stop.click(answered(cancel), known, watched, **quick)
        refresh.click(answered(changed), [model, prompt, known], [*chosen, *watched], **quick)
        model.input(answered(switch), [model, prompt], [*chosen, steps, guidance, until], **quick)
        prompt.change(answered(hinted), [model, prompt], hint, trigger_mode="always_last", **quick)
        for key, (_, dropdowns, write) in templates.items():
            write.click(answered(_filling(key)), dropdowns, prompt, **quick)
    return blocks


def _first_prompt(card: ModelCard) -> str:
    """What a page begins with: the first sentence of the model's template, if it has one."""
    return PROMPT_TEMPLATES[card.template].fill(PROMPT_TEMPLATES[card.template].start) if card.template else ""


def _template(key: str) -> tuple[gr.Accordion, list[gr.Dropdown], gr.Button]:
    """The part of the form that fills a template of prompts."""
    template = PROMPT_TEMPLATES[key]
    with gr.Accordion("Write a well-formed prompt", open=False, elem_classes="web-template") as group:
        with gr.Row():
            dropdowns = [
                gr.Dropdown([(choice or "–", choice) for choice in choices], value=template.start[name],
                            label=name.replace("_", " ").capitalize(), min_width=110, elem_id=f"web-gap-{name}")
                for name, choices in template.gaps.items()
            ]  # fmt: skip
        write = gr.Button("Write it", size="sm", elem_id=f"web-write-{key}")
    return group, dropdowns, write


def _filling(key: str) -> Callable[..., str]:
    template = PROMPT_TEMPLATES[key]
    return lambda *values: template.fill({name: value or "" for name, value in zip(template.gaps, values)})


def _session(service: Service, request: gr.Request) -> Session:
    return service.sessions.of(request.cookies.get(COOKIE))


def _settings(seed: Any, samples: Any, steps: Any, guidance: Any, scale: Any, own: Any, until: Any) -> Settings:
    """The settings of the form. Raises ConfigError for what is missing or no whole number."""
    return Settings(
        num_samples=_whole("the number of seeds", samples),
        seed=_whole("the seed", seed),
        num_inference_steps=_whole("the number of steps", steps),
        guidance_scale=guidance,
        reference_guidance_scale=own or None,  # a field that was left alone sends 0, which would ignore references
        scale=1.0 if scale is None else scale,
        first_reference_until=until,
    )


def _whole(what: str, value: Any) -> int:
    if value is None or value != int(value):
        raise ConfigError(f"{what} must be a whole number")
    return int(value)
