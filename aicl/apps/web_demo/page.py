"""The page's texts and HTML. Everything that a visitor wrote is escaped; addresses are relative."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from aicl.apps.page_head import page_head
from aicl.apps.web_demo import outputs
from aicl.apps.web_demo.jobs import State, Task
from aicl.apps.web_demo.models import ModelCard
from aicl.apps.web_demo.sessions import MOST_REFERENCES, Slot
from aicl.apps.web_demo.uploads import MAX_BYTES, MAX_SECONDS, VIDEO_KINDS
from aicl.reference_retrieval import Library
from aicl.sampling_jobs import record_file, sheet_file

_WORDS_SHOWN = 400
_BESIDE = 2  # references that fit into one row with the videos
_EMPTY = "Nothing yet. Write a prompt, choose a clip of the action, and press Generate."
_VIDEO = "<video src='{src}' muted loop autoplay playsinline preload='auto' tabindex='-1' aria-label='{label}'></video>"


def head() -> str:
    """What the page's head needs: its style and its script."""
    return page_head(Path(__file__).parent)


def welcome() -> str:
    """What this is."""
    return """<header class="web-head"><h1>Show it the action</h1>
<p>AICL makes a video of an action that its base model never learned: you describe the video, and one to four short
clips show the action. Nothing is trained for it. The base model's own attempt, from the same seed, stands beside.</p>
</header>"""


def title(number: int, text: str, remark: str = "") -> str:
    """The heading of a part of the form."""
    small = f"<small>{escape(remark)}</small>" if remark else ""
    return f'<h2 class="web-title"><span>{number}</span> {escape(text)} {small}</h2>'


def notice(text: str) -> str:
    """A sentence about something that went wrong; nothing for an empty one."""
    return f'<p class="web-notice" role="alert">{escape(text)}</p>' if text else ""


def hints(card: ModelCard, prompt: str) -> str:
    """What the model knows of a prompt's words, and which words there are."""
    if card.words is None:
        return '<p class="web-hint">This model reads any words. Say who does what, and where.</p>'
    unknown, count = card.unknown_words(prompt), len(card.words)
    if unknown:
        named = ", ".join(f"<b>{escape(word)}</b>" for word in unknown[:8])
        told = f"It was never taught {named}: the references have to show what that means."
        parts = [f'<p class="web-hint web-unknown">{told}</p>']
    elif prompt.strip():
        parts = ['<p class="web-hint">It knows all of these words.</p>']
    else:
        parts = [f'<p class="web-hint">This small model knows {count} words; other words have to be shown.</p>']
    words = " ".join(escape(word) for word in sorted(card.words)[:_WORDS_SHOWN])
    parts.append(
        f'<details class="web-words"><summary>The {count} words that it knows</summary><p>{words}</p></details>'
    )
    return "".join(parts)


def references(slots: Sequence[Slot], model: int, card: ModelCard, examples: bool) -> str:
    """The chosen references as the prism reads them, and the ways to choose one."""
    if not card.reads_references:
        return '<p class="web-hint">This model has no adapter, so it reads no references.</p>'
    cards = "".join(_slot(slot, model, first=not place, several=len(slots) > 1) for place, slot in enumerate(slots))
    room = MOST_REFERENCES - len(slots)
    disabled = "" if room else " disabled"
    accept = "video/*,.mkv,.gif,.avi,.mov,.webm,.mp4"
    choose = ""
    if examples:
        choose = f'<button type="button" data-do="prompt"{disabled}>Choose for my prompt</button>'
    frames = (
        f"{card.defaults.num_frames} frames of {card.defaults.width}×{card.defaults.height} at {card.fps} per second"
    )
    return f"""<div class="web-references" data-model="{model}">
<div class="web-slots">{cards}</div>
<div class="web-buttons"><label class="web-file{" web-off" if not room else ""}" tabindex="0">Upload a clip
<input type="file" accept="{accept}" data-upload="reference"{disabled}></label>
<button type="button" data-do="webcam"{disabled}>Webcam</button>{choose}</div>
<p class="web-notice" role="alert" hidden></p>
<p class="web-hint">{VIDEO_KINDS}, up to {MAX_BYTES // 2**20} MB and {MAX_SECONDS:.0f} seconds. The model reads
{frames}, from the middle of the clip.</p></div>"""


def gallery(library: Library | None, numbers: Sequence[int], model: int) -> str:
    """The clips that can be picked, and the actions that they can be filtered by."""
    if library is None or not numbers:
        return '<p class="web-hint">There are no example clips beside this model.</p>'
    options = "".join(
        f'<option value="{escape(verb)}">{escape(verb)} ({count})</option>'
        for verb, count in library.index.counts().items()
    )
    clips = "".join(_example(library, number, model) for number in numbers)
    return f"""<div class="web-gallery" data-model="{model}"><div class="web-filter">
<label>Action <select data-filter><option value="">all</option>{options}</select></label>
<button type="button" data-do="verb" disabled>Choose one for me</button></div>
<div class="web-clips">{clips}</div></div>"""


def image(name: str | None, library: Library | None, numbers: Sequence[int], model: int) -> str:
    """The first frame of an image-to-video model: one that was chosen, and the ways to choose one."""
    asked = "This model begins with an image of yours: describe in the prompt whom and what it shows."
    shown = f"<img src='image' alt=''> {escape(name)}" if name else asked
    clips = [(number, library.index.captions[number]) for number in numbers] if library else []
    options = "".join(f'<option value="{number}">{escape(caption)}</option>' for number, caption in clips)
    examples = f"""<select data-frame aria-label="The first frame of an example clip">
<option value="">or that of an example</option>{options}</select>"""
    return f"""<div class="web-image" data-model="{model}"><span>{shown}</span><div class="web-buttons">
<label class="web-file" tabindex="0">Choose an image
<input type="file" accept="image/png,image/jpeg,image/webp" data-upload="image"></label>
{examples if clips else ""}</div>
<p class="web-notice" role="alert" hidden></p></div>"""


def progress(task: Task | None, ahead: int = 0, seconds: float | None = None) -> str:
    """Where a task is, or how it ended where there is nothing to see."""
    if task is None or task.state is State.DONE:
        return ""
    if task.state is State.FAILED:
        return notice(f"This could not be made: {task.message}")
    if task.state is State.CANCELLED:
        return '<p class="web-hint" role="status">Cancelled. Your settings are still there.</p>'
    left = f", {_time(seconds)} left" if seconds is not None else ""
    if task.state is State.WAITING:
        text = f"Number {ahead + 1} in line{left}"
    elif task.done == 0:
        text = "Getting ready"
    elif task.done >= task.total:
        text = "Writing the files"
    else:
        text = f"Step {task.done} of {task.total}{left}"
    value = f'value="{task.done}" max="{task.total}"'
    return f'<div class="web-progress" role="status"><span>{text}</span><progress {value}></progress></div>'


def result(task: Task | None, card: ModelCard | None) -> str:
    """The videos of a finished task beside each other, and everything that can be taken along."""
    if task is None or task.state is not State.DONE:
        return f'<p class="web-empty">{_EMPTY}</p>' if task is None else ""
    there = [files for files in outputs.sample_files(task) if files.video.is_file()]
    if not there:
        return '<p class="web-empty">These videos are not kept any more.</p>'
    shown = []
    for number, reference in enumerate(task.job.references, start=1):
        label = "Reference" if len(task.job.references) == 1 else f"Reference {number}"
        if outputs.clip_file(task, number).is_file():
            about = reference.caption or task.job.prompt
            shown.append(_figure(task, outputs.clip_file(task, number), label, about, "web-small"))
    beside = "".join(shown) if len(there) == 1 and len(shown) <= _BESIDE else ""
    shots = "".join(_seed(task, files, beside) for files in there)
    read = f'<div class="web-read">{"".join(shown)}</div>' if shown and not beside else ""
    warned = "".join(f'<p class="web-hint web-unknown">{escape(text)}</p>' for text in task.warnings)
    model = f" &middot; {escape(task.model)}" if card is None or card.name != task.model else ""
    seconds = f" &middot; made in {_time(task.ended - task.started)}" if task.ended and task.started else ""
    return f"""<article class="web-result" data-task="{task.id}">
<p class="web-prompt">{escape(task.job.prompt)}</p><p class="web-hint">{_settings(task)}{model}{seconds}</p>
{warned}{read}<div class="web-seeds">{shots}</div>
<div class="web-buttons"><button type="button" data-do="pause">Pause</button></div>
{_downloads(task, there)}{_repeat(task)}</article>"""


def history(tasks: Sequence[Task], shown: str | None) -> str:
    """Earlier results, to look at again."""
    rows = []
    for task in tasks[:12]:
        files = outputs.sample_files(task)[0]
        if task.id == shown or not files.video.is_file():
            continue
        picture = _VIDEO.format(src=_address(task, files.video), label="")
        rows.append(f'<button type="button" data-do="show" data-id="{task.id}">{picture}'
                    f"<span>{escape(task.job.prompt)}</span></button>")  # fmt: skip
    return f'<div class="web-history"><h3>Earlier</h3><div>{"".join(rows)}</div></div>' if rows else ""


def _slot(slot: Slot, model: int, first: bool, several: bool) -> str:
    address = f"reference/{slot.id}/{model}/"
    place = ""
    if several:
        place = '<b class="web-first">first</b>' if first else (
            f'<button type="button" data-do="first" data-id="{slot.id}">Put it first</button>'
        )  # fmt: skip
    video = _VIDEO.format(src=address + "clip", label="Reference")
    return f"""<div class="web-slot"><div class="web-slot-video">{video}</div><div class="web-slot-text">
<p><b>{escape(slot.name)}</b> <span>{escape(slot.reason)}</span></p>
<input type="text" data-caption="{slot.id}" maxlength="300" value="{escape(slot.caption or "")}"
placeholder="What it shows (empty: the prompt)" aria-label="What this reference shows">
<details><summary>The frames that the prism reads</summary><img src="{address}sheet" alt="All frames" loading="lazy">
</details><div class="web-buttons">{place}
<button type="button" data-do="remove" data-id="{slot.id}">Remove</button></div></div></div>"""


def _example(library: Library, number: int, model: int) -> str:
    verbs = " ".join(library.index.verbs[number])
    address = f"example/{model}/{number}/"
    video = f"<video src='{address}clip' poster='{address}poster' muted loop playsinline preload='none'></video>"
    caption = escape(library.index.captions[number])
    return (
        f'<button type="button" data-do="example" data-id="{number}" data-verbs="{escape(verbs)}" title="{caption}">'
        f"{video}<span>{escape(verbs or 'no action')}</span></button>"
    )


def _seed(task: Task, files: outputs.SampleFiles, beside: str) -> str:
    """The base model's video and ours, from one seed, and what stands beside them."""
    ours = "AICL" if task.job.references else "Video"
    told = "with the references" if task.job.references else "no references were given"
    figures = _figure(task, files.video, ours, told, "web-ours")
    if files.base.is_file():
        given = "prompt and image" if task.job.image else "the prompt"
        figures = _figure(task, files.base, "Base model", f"from {given} alone", "") + figures
    figures = beside + figures
    label = f"<h3>Seed {files.seed}</h3>" if task.job.num_samples > 1 else ""
    sheet = ""
    if sheet_file(files.video).is_file():
        address = _address(task, sheet_file(files.video))
        sheet = f"<details><summary>Frame by frame</summary><img src='{address}' alt='' loading='lazy'></details>"
    return f'<section>{label}<div class="web-pair">{figures}</div>{sheet}</section>'


def _figure(task: Task, file: Path, label: str, about: str, kind: str) -> str:
    video = _VIDEO.format(src=_address(task, file), label=escape(label))
    text = escape(about)
    caption = f'<figcaption title="{text}"><b>{escape(label)}</b> <span>{text}</span></figcaption>'
    return f'<figure class="{kind}">{video}{caption}</figure>'


def _downloads(task: Task, there: Sequence[outputs.SampleFiles]) -> str:
    links = []
    for files in there:
        seed = f" of seed {files.seed}" if len(there) > 1 else ""
        links += [_link(task, path, label + seed) for label, path in files.downloads]
    if outputs.features_file(task).is_file():
        links.append(_link(task, outputs.features_file(task), "R, the motion features"))
    return f'<div class="web-downloads"><h3>Take it along</h3>{"".join(links)}</div>'


def _repeat(task: Task) -> str:
    command, file = escape(outputs.command_line(task)), record_file(outputs.sample_files(task)[0].video).name
    return f"""<details class="web-repeat"><summary>Make it again on the command line</summary>
<p>With the same options, in the folder in which this page runs:</p><div class="web-code"><pre>{command}</pre>
<button type="button" data-do="copy">Copy</button></div>
<p>Or from the file of settings, bit for bit on the same device: <code>aicl sample --repeat {escape(file)}</code></p>
</details>"""


def _settings(task: Task) -> str:
    job = task.job
    seeds = f"seed {job.seed}" if job.num_samples == 1 else f"seeds {job.seed} to {job.seed + job.num_samples - 1}"
    more = "" if task.steps == job.num_inference_steps else f" (the model's timesteps for {job.num_inference_steps})"
    parts = [
        seeds,
        f"{task.steps} steps{more}",
        f"guidance {job.guidance_scale:g}" if job.guidance_scale else "",
    ]
    parts.append(f"references at {job.scale:g}" if job.references and job.scale != 1 else "")
    return " &middot; ".join(filter(None, parts))


def _link(task: Task, file: Path, label: str) -> str:
    return f'<a href="{_address(task, file)}" download="{task.id}-{file.name}">{escape(label)}</a>'


def _address(task: Task, file: Path) -> str:
    return f"result/{task.id}/{file.name}"


def _time(seconds: float) -> str:
    return f"about {max(1, round(seconds))} s" if seconds < 90 else f"about {round(seconds / 60)} min"
