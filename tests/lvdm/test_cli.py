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


def test_device(monkeypatch):
    assert cli.device("cpu") == torch.device("cpu")
    for name in ("nonsense", "cuda:4711"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here"):
            cli.device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.device() == torch.device("cpu")
