"""The page's texts and HTML, which say nothing about where a video comes from."""

from html import escape
from pathlib import Path

from aicl.apps.page_head import page_head
from aicl.apps.user_study.study import View

CHOICES = [("Left", "left"), ("Right", "right")]
CHOICES_WITH_TIE = [("Left", "left"), ("No difference", "tie"), ("Right", "right")]
NOT_ANSWERED = "Please answer both questions first."
MEDIA_ROUTE = "/media/{code}/{position}/{side}"


def head() -> str:
    """What the page's head needs: its style, and the script that keeps two videos in step and listens to keys."""
    return page_head(Path(__file__).parent)


def welcome(total: int, ties: bool) -> str:
    """What an evaluator reads before the first of `total` pairs; ties: whether "no difference" is an answer."""
    down = ", <kbd>↓</kbd> no difference" if ties else ""
    return f"""<div class="study-text"><h1>Which video is better?</h1>
<p>You will see {total} pairs of short videos, each pair made from the same text. Two questions about each pair:
which video fits the text better, and which is more consistent from frame to frame. There are no right answers.</p>
<p>Each answer is saved at once. Stop whenever you like and go on later with your link.</p>
<p class="study-keys">With a keyboard: <kbd>←</kbd> left, <kbd>→</kbd> right{down}, <kbd>↑</kbd> previous question,
<kbd>Enter</kbd> next pair, <kbd>Space</kbd> pause.</p></div>"""


def progress(view: View) -> str:
    """Where the evaluator is, and the code with which to come back."""
    return f"""<div class="study-progress" role="status">
<span>Pair {view.position + 1} of {view.total}</span>
<progress max="{view.total}" value="{view.answered}" aria-label="Answered pairs"></progress>
<span class="study-code">Your code: <b>{escape(view.code)}</b></span></div>"""


def pair(view: View) -> str:
    """The text and the two videos. Addresses are relative, so the page can live below any path."""
    videos = "".join(
        f"""<figure><video class="study-video" src="{_address(view, side)}" muted playsinline preload="auto"
tabindex="-1" aria-label="{side.capitalize()} video"></video><figcaption>{side.capitalize()}</figcaption></figure>"""
        for side in ("left", "right")
    )
    return f"""<div class="study-pair" data-pair="{view.position}">
<p class="study-prompt"><span>Text</span> {escape(view.prompt)}</p>
<div class="study-videos">{videos}</div>
<p class="study-problem" role="alert" hidden>A video cannot be loaded. Please reload the page.</p>
<button type="button" class="study-pause">Pause</button></div>"""


def thanks(view: View) -> str:
    """What an evaluator reads after the last pair."""
    return f"""<div class="study-text"><h1>Thank you!</h1>
<p>All {view.total} pairs are answered and saved. You can close this page.</p>
<p>If you want to change an answer later, come back with this link. Your code: <b>{escape(view.code)}</b></p></div>"""


def notice(text: str) -> str:
    """A sentence about what went wrong, nothing for an empty one."""
    return f'<p class="study-notice" role="alert">{escape(text)}</p>' if text else ""


def _address(view: View, side: str) -> str:
    return MEDIA_ROUTE.lstrip("/").format(code=view.code, position=view.position, side=side)
