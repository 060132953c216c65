"""Makes the baselines known: methods that rows of tables name, and the training of the one that is trained."""

from aicl.baselines import (
    attention_guidance,  # noqa: F401 (registers its method)
    lora,  # noqa: F401 (registers its method)
    reference_tokens_task,  # noqa: F401 (registers its method and its task)
)
