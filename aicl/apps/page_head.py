"""What the head of every page of ours holds. Needs no Gradio."""

from functools import cache
from pathlib import Path


@cache
def page_head(folder: Path) -> str:
    """The style and the script that lie in a page's folder, and that it is not to be found by search engines."""
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return f'<meta name="robots" content="noindex"><style>{style}</style><script>{script}</script>'
