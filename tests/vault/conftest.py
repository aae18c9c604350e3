"""The vault process, started for one test and ended by its pid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vault.vault_process import LogOfEvents, Start, VaultProcess


@pytest.fixture
def log() -> LogOfEvents:
    return LogOfEvents()


@pytest.fixture
def start(tmp_path: Path, log: LogOfEvents) -> Iterator[Start]:
    made: list[VaultProcess] = []
    (tmp_path / "home").mkdir(mode=0o700)

    def begin(**options: Any) -> VaultProcess:
        made.append(VaultProcess(tmp_path / "home", log, **options))
        return made[-1]

    yield begin
    for one in made:
        one.kill()
