# docker build -t aicl . && docker run --rm --gpus all -v "$PWD/outputs:/work/outputs" aicl sample --prompt "..."
# The image has the tested versions and the shipped models. On a GPU, the host needs NVIDIA's container toolkit. Training
# and caching also need --ipc=host: the processes that read videos hand them over in shared memory.
FROM python:3.11-slim-bookworm

# A compiler: Triton builds its launchers with it when a kernel is first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/aicl
COPY requirements.txt ./
RUN sed '/^# For the tests and the style check/,$d' requirements.txt > /tmp/requirements.txt \
    && pip install --no-cache-dir --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY lvdm ./lvdm
COPY aicl ./aicl
RUN pip install --no-cache-dir --no-deps .
COPY checkpoints ./checkpoints

RUN useradd --create-home --uid 1000 aicl && install --directory --owner aicl /work \
    && ln -s /opt/aicl/checkpoints /work/checkpoints
USER 1000
WORKDIR /work
ENTRYPOINT ["aicl"]
CMD ["doctor"]
