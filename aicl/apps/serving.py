"""Serving a Gradio page. Importing this needs Gradio, of a version whose pages work as ours do."""

import logging
import socket
from collections.abc import Callable

from lvdm.errors import ConfigError

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from packaging.version import Version
except ImportError as error:
    raise ConfigError("this page needs Gradio: pip install -e .[demo]") from error
if Version(gr.__version__) < Version("6.20"):  # older pages don't react, or load fonts from elsewhere
    raise ConfigError(f"this page needs Gradio 6.20, not {gr.__version__}: pip install -e .[demo]")

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing is loaded from elsewhere


def page_theme(hue: str, neutral: str = "slate") -> gr.themes.Base:
    """How our pages look: a colour, and the fonts that the visitor's system has, in all their weights."""
    return gr.themes.Default(primary_hue=hue, neutral_hue=neutral, font=list(FONTS))


def serve_app(build: Callable[[], FastAPI], host: str, port: int, what: str) -> None:
    """Serve an application until Ctrl-C; port 0 is any that is free. `what` is printed with its address.

    Raises ConfigError if the address is taken or not ours.
    """
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from error
    with listener:
        port = listener.getsockname()[1]
        app = build()
        print(f"{what} http://{host}:{port} (Ctrl-C stops it)", flush=True)
        # Open pages hold a connection that never ends by itself; that it is cut in the end is no error to report.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        server.run(sockets=[listener])
