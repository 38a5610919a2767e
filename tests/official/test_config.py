"""Both packages read `~/.config/runta/config.toml`; our own settings stand in a table that disturbs neither."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.host.conftest import House

from .service import PYTHONS

PROGRAM = "import runta; client = runta.Runta(); print(client.health(), [one.name for one in client.runtimes.list()])"


@pytest.mark.parametrize("package", PYTHONS)
def test_one_file_serves_both(official_house: House, variables: dict[str, str], tmp_path: Path, package: str) -> None:
    config = tmp_path / ".config/runta/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f'endpoint = "{variables["RUNTA_ENDPOINT"]}"\ntoken = "{variables["RUNTA_TOKEN"]}"\n\n'
        '[local]\nstate_dir = "/nowhere"\nlisten = ""\n'
    )
    env = {name: value for name, value in variables.items() if not name.startswith("RUNTA_")}
    done = subprocess.run(
        [PYTHONS[package], "-c", PROGRAM],
        env={**env, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "True []\n"), done.stderr
