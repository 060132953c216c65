"""Links of pages that also stand in the repository: those to files that the site does not have become plain text.

A page keeps the links that it has in the repository, where any file can be linked to. README.md is the site's index.md.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

# the text of a link may be an image
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\((?P<target>[^)\s]+)\)")
# page of the site -> where its text stands in the repository
_CARDS = ("checkpoints/README.md", "checkpoints/puppets/README.md", "checkpoints/puppets_i2v/README.md")
_SOURCES = {"index.md": "README.md"} | {card: card for card in _CARDS}
_PAGES = {source: page for page, source in _SOURCES.items()}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs calls this with the text of each page. Raises PluginError for a link to a file that does not exist."""
    own = page.file.src_uri
    source = _SOURCES.get(own, f"docs/{own}")
    root = Path(config.config_file_path).parent

    def rewritten(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = _PAGES.get(wanted) or (wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
        if place and files.get_file_from_path(place):
            link = posixpath.relpath(place, posixpath.dirname(own) or ".")
            text = _LINK.sub(rewritten, match["text"])
            return f"{match['image']}[{text}]({link}{'#' + anchor if anchor else ''})"
        if own.startswith("reference/"):
            return match[0]
        if not (root / wanted).exists():
            raise PluginError(f"{source} links to {target}, which does not exist")
        return match["text"] if match["image"] else f"`{match['text'].strip('`')}`"

    return _LINK.sub(rewritten, markdown)
