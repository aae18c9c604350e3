"""Names, files and settings that are out to confuse: what reaches the operator's terminal, and what `check` has to find before `serve` does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

HOSTILE = "x\x1b]0;pwned\x07\x1b[31m\nsecond\x9b31m"


def write(home: Path, text: str) -> Path:
    (home / "config").mkdir(mode=0o700)
    file = home / "config" / "cliproxy.yaml"
    file.write_text(text)
    file.chmod(0o600)
    return file


def steers(text: str) -> bool:
    """Whether a terminal would do anything but show `text`."""
    return any(not character.isprintable() and character not in "\n\t" for character in text)


def test_a_model_that_is_asked_for_cannot_steer_the_terminal(cliproxy: Run, tmp_path: Path) -> None:
    write(tmp_path, "providers:\n  echo:\n    models: [echo]\n")
    done = cliproxy("routes", "--home", str(tmp_path), HOSTILE)
    assert done.code == 1
    assert "\\x1b]0;pwned" in done.out and done.out.count("\n") == 1
    assert not steers(done.out + done.err)


def test_doctor_shows_names_of_files_as_they_are_and_survives_those_that_are_no_text(cliproxy: Run, tmp_path: Path) -> None:
    write(tmp_path, "providers:\n  echo:\n    models: [echo]\n")
    for name in (HOSTILE.encode(), b"bytes-\xff"):
        os.close(os.open(os.fsencode(tmp_path / "config") + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o644))
    done = cliproxy("doctor", "--home", str(tmp_path), environment={"PYTHONIOENCODING": "utf-8:strict"})
    assert done.code == 1
    assert "\\x1b]0;pwned" in done.out and "bytes-\\udcff" in done.out
    assert not steers(done.out + done.err)


def test_a_terminal_without_our_characters_is_no_reason_to_fail(cliproxy: Run, tmp_path: Path) -> None:
    home = tmp_path / "café"
    home.mkdir(mode=0o700)
    write(home, "providers:\n  echo:\n    models: [echo]\n")
    done = cliproxy("check", "--home", str(home), environment={"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "1"})
    assert done.code == 0
    assert "usable" in done.out


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    request = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x -keyout {key} -out {cert}"
    subprocess.run(request.split(), check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key


@pytest.mark.parametrize("command", ["check", "doctor"])
def test_certificates_and_keys_that_cannot_be_used_are_found_before_the_start(cliproxy: Run, tmp_path: Path, command: str) -> None:
    cert, key = certificate(tmp_path, "one")
    _, other = certificate(tmp_path, "other")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk\n")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    file = write(home, "")
    tls = "server:\n  tls:\n    enabled: true\n    cert_file: {}\n    key_file: {}\n"
    provider = "providers:\n  a:\n    base_url: https://a.example.com\n    ca_file: {}\n    models: [m]\n"
    faults = {
        tls.format(junk, key): ":5: server.tls.key_file: ",
        tls.format(cert, other): ":5: server.tls.key_file: ",
        provider.format(junk): ":4: providers.a.ca_file: ",
    }
    for text, where in faults.items():
        file.write_text(text)
        done = cliproxy(command, "--home", str(home))
        said = done.line if command == "check" else next(line for line in done.out.splitlines() if " config " in line)
        assert done.code == (78 if command == "check" else 1)
        assert f"{file}{where}" in said
    file.write_text(tls.format(cert, key) + provider.format(cert))
    assert cliproxy("check", "--home", str(home)).code == 0


def test_a_configuration_that_no_process_would_take_is_one_line_and_not_a_traceback(cliproxy: Run, home: Path, tmp_path: Path) -> None:
    names = ",".join(f"{'x' * 190}{number}" for number in range(2000))
    file = tmp_path / "big.yaml"
    file.write_text(
        "providers:\n" + "".join(f"  p{n}: {{base_url: 'https://a.example.com', exclude: {'&e [' + names + ']' if n == 0 else '*e'}}}\n" for n in range(20))
    )
    file.chmod(0o600)
    for command in ("check", "serve"):
        done = cliproxy(command, "--home", str(home), "--config", str(file))
        assert done.code == 78
        assert done.line.startswith(f"cliproxy: {file}: ")
