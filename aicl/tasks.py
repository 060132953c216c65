"""Makes the tasks and the data of this package, and of its extensions, known to `lvdm.training`: import it."""

import aicl.training_task  # noqa: F401 (registers its task)
from aicl.extensions import load_extensions

load_extensions()
