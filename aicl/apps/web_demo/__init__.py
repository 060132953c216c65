"""A page on which everything can be tried: prompt, references, settings, and the videos beside each other.

`models` describes the models that there are, `sessions` keeps what a visitor put together, `uploads` checks what they
send, `previews` shows what the prism reads, `jobs` is the queue, `work` makes the videos, `outputs` writes and removes
files, `page` and `form` are what people see, `app` the routes.
"""
