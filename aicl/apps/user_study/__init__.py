"""A blind study: people compare our videos with a baseline's, pair by pair, in a browser.

`pairs` reads what is compared and plans who sees it in which order, `media` makes the copies that are shown, `store`
keeps the answers, `study` joins the three, `page` and `app` show them, `report` counts.
"""

from aicl.apps.user_study.pairs import Pair, read_folders, read_manifest
from aicl.apps.user_study.report import markdown, summarise
from aicl.apps.user_study.store import QUESTIONS, Store
from aicl.apps.user_study.study import Study, database_path, open_study, prepare

__all__ = [
    "QUESTIONS",
    "Pair",
    "Store",
    "Study",
    "database_path",
    "markdown",
    "open_study",
    "prepare",
    "read_folders",
    "read_manifest",
    "summarise",
]
