"""What scripts share: exit codes, one sentence for a user's mistake, the device."""

import pytest
import torch

from lvdm import cli
from lvdm.errors import ConfigError, UserError


def exit_code(main) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code


def test_exit_codes_and_messages(capsys):
    def fail(error: BaseException) -> None:
        raise error

    assert exit_code(lambda: None) == 0 and exit_code(lambda: 1) == 1
    assert capsys.readouterr().err == ""
    assert exit_code(lambda: fail(UserError("a.mp4 is missing"))) == 2
    assert capsys.readouterr().err == "error: a.mp4 is missing\n"
    assert exit_code(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ValueError, match="a mistake of ours"):  # is not hidden
        cli.run(lambda: fail(ValueError("a mistake of ours")))


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.50 GiB of which "
                "1.25 GiB is free. Including non-PyTorch memory, this process has 22.2 GiB memory in use."
            ),
            "error: the memory of the GPU is not enough (2.50 GiB more were asked for; 1.25 GiB of 23.50 GiB were",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to "
                         "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"),
            "error: the memory of this machine is not enough (4000000000000 bytes more were asked for)",
        ),
        (MemoryError(), "error: the memory of this machine is not enough: give a video --offload"),
    ],
)  # fmt: skip
def test_too_little_memory_is_one_sentence(error, begins, capsys):
    def fail() -> None:
        raise error

    assert exit_code(fail) == 2
    said = capsys.readouterr().err
    assert said.startswith(begins) and "gradient_checkpointing=true" in said and said.count("\n") == 1


def test_device(monkeypatch):
    assert cli.device("cpu") == torch.device("cpu")
    for name in ("nonsense", "cuda:4711"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here"):
            cli.device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.device() == torch.device("cpu")
