"""Base models of other people: pipelines of `diffusers`, used as they are.

kinds: what there is to know of each network class, in one table. backbone, codec, text, images, schedules: a pipeline's
parts as the rest of the library asks for them. pipeline: all of it as a `VideoPipeline`. loading: from a folder or the
Hugging Face Hub. sizes: published sizes, without their weights. Needs the extra `diffusers`, which nothing here imports
before a model is asked for.
"""
