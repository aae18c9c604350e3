"""What may run before our first line: the table, byte for byte, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cliproxy.errors import ConfigError
from cliproxy.integrity.self_check import site_directories, verify_start_files

HACK = {"_distutils_hack/__init__.py": b"def add_shim(): ...\n", "_distutils_hack/override.py": b""}
SHIM = b"import os; enabled and __import__('_distutils_hack').add_shim(); "
EDITABLE = "__editable__.cliproxy-0.1.0.pth"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory of installed packages with what setuptools and our editable installation bring."""
    directory = tmp_path / "site-packages"
    install(directory, "setuptools-84.2.1", {"distutils-precedence.pth": SHIM, **HACK})
    install(directory, "cliproxy-0.1.0", {EDITABLE: b"/srv/cliproxy/src\n"})
    return directory


def install(directory: Path, distribution: str, files: dict[str, bytes]) -> None:
    """Do what pip does: write the files and list them with their hashes."""
    info = directory / f"{distribution}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    lines = ["some/module.py,sha256=AAAA,1"]
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    (info / "RECORD").write_text("\n".join([*lines, f"{distribution}.dist-info/RECORD,,", ""]))


def refusal(directory: Path, prefix: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        verify_start_files([directory], prefix=prefix or directory.parent)
    return str(caught.value)


def test_what_setuptools_and_our_own_installation_bring_is_known(packages: Path) -> None:
    assert [file.name for file in verify_start_files([packages])] == [EDITABLE, "distutils-precedence.pth"]


def test_this_interpreter_passes() -> None:
    assert site_directories()
    verify_start_files()


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert verify_start_files([tmp_path / "nowhere"]) == ()


@pytest.mark.parametrize(
    "name", ["evil.pth", "litellm_init.pth", ".pth", ".hidden.pth", "zz-last.pth", "DISTUTILS-PRECEDENCE.pth", "x__editable__.cliproxy-0.1.0.pth"]
)
def test_an_unknown_start_file_is_named_with_the_cure(packages: Path, name: str) -> None:
    (packages / name).write_bytes(b"import os\n")
    message = refusal(packages)
    assert message.startswith(f"{packages / name}: ") and "no part of the gateway brings it" in message and "make serve" in message


@pytest.mark.parametrize("content", [b"", b"/some/path\n", b"# a comment\n"])
def test_one_that_only_adds_paths_is_no_better(packages: Path, content: bytes) -> None:
    (packages / "paths.pth").write_bytes(content)
    assert "paths.pth" in refusal(packages)


def test_a_package_that_lists_its_start_file_is_refused_all_the_same(packages: Path) -> None:
    """LiteLLM 1.82.8: `litellm_init.pth` was in the wheel, and in its RECORD with the right hash."""
    install(packages, "litellm-1.82.8", {"litellm_init.pth": b"import subprocess\n"})
    assert "litellm_init.pth" in refusal(packages)


@pytest.mark.parametrize("name", ["distutils-precedence.pth", EDITABLE])
@pytest.mark.parametrize("change", [lambda old: old + b"import evil\n", lambda old: old[:-1] + b"!", lambda old: b""])
def test_a_known_name_with_other_bytes_is_refused(packages: Path, name: str, change: object) -> None:
    file = packages / name
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    assert "it is not the one that" in refusal(packages)


def test_a_known_name_that_another_package_lists_is_refused(packages: Path) -> None:
    (packages / "setuptools-84.2.1.dist-info" / "RECORD").unlink()
    install(packages, "evil-1.0", {"distutils-precedence.pth": SHIM + b"import evil"})
    assert "no installed setuptools lists it" in refusal(packages)
    install(packages, "setuptools_evil-1.0", {"distutils-precedence.pth": SHIM + b"import evil"})
    assert "no installed setuptools lists it" in refusal(packages)


@pytest.mark.parametrize(
    "record", [b"", b"distutils-precedence.pth,,\n", b"distutils-precedence.pth,md5=abcd,1\n", b"distutils-precedenceXpth,sha256=x,1\n", b"\xff\xfe\0"]
)
def test_a_record_without_a_sound_hash_owns_nothing(packages: Path, record: bytes) -> None:
    (packages / "setuptools-84.2.1.dist-info" / "RECORD").write_bytes(record)
    refusal(packages)


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.py", "sitecustomize.pyc", "sitecustomize.cpython-311-x86_64-linux-gnu.so"])
def test_a_customize_module_is_a_start_file_too(packages: Path, name: str) -> None:
    (packages / name).write_bytes(b"")
    assert name in refusal(packages)


def test_a_customize_package_is_a_start_file_too(packages: Path) -> None:
    (packages / "usercustomize").mkdir()
    assert "usercustomize" in refusal(packages)


def test_what_cannot_be_read_to_its_end_is_refused_and_does_not_hang(packages: Path) -> None:
    os.mkfifo(packages / "pipe.pth")
    assert "pipe.pth" in refusal(packages)
    (packages / "pipe.pth").unlink()
    (packages / "distutils-precedence.pth").write_bytes(SHIM + b"#" * (1 << 20))
    assert "distutils-precedence.pth" in refusal(packages)


@pytest.mark.parametrize(
    ("maker", "content", "owned", "good"),
    [
        ("uv = 0.9.1", b"import _virtualenv", False, True),
        ("virtualenv = 20.29.1", b"import _virtualenv\n", False, True),
        ("version = 3.11.7", b"import _virtualenv", False, False),
        ("uvx = 1", b"import _virtualenv", False, False),
        ("uv = 0.9.1", b"import _virtualenv; import evil", False, False),
        ("uv = 0.9.1", b"import _virtualenv", True, False),
    ],
)
def test_the_file_of_a_tool_that_made_the_environment_is_known(packages: Path, maker: str, content: bytes, owned: bool, good: bool) -> None:
    if owned:
        install(packages, "evil-1.0", {"_virtualenv.pth": content})
    else:
        (packages / "_virtualenv.pth").write_bytes(content)
    (packages.parent / "pyvenv.cfg").write_text(f"home = /usr/bin\n{maker}\n")
    if good:
        assert len(verify_start_files([packages], prefix=packages.parent)) == 3
    else:
        assert "_virtualenv.pth" in refusal(packages)


def changed(packages: Path) -> None:
    (packages / "_distutils_hack" / "__init__.py").write_bytes(b"import os; os.system('true')\n")


def added(packages: Path) -> None:
    (packages / "_distutils_hack" / "os.py").write_bytes(b"")


def replaced(packages: Path) -> None:
    (packages / "_distutils_hack").rename(packages / "gone")
    (packages / "_distutils_hack.py").write_bytes(b"")


@pytest.mark.parametrize("change", [changed, added, replaced])
def test_what_a_known_start_file_imports_is_judged_with_it(packages: Path, change: Callable[[Path], None]) -> None:
    change(packages)
    message = refusal(packages)
    assert message.startswith(f"{packages / 'distutils-precedence.pth'}: ") and "it imports _distutils_hack" in message


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.py", "sitecustomize"])
def test_a_start_module_in_the_directory_of_an_editable_installation_is_found(packages: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "src").mkdir()
    install(packages, "cliproxy-0.1.0", {EDITABLE: f"{tmp_path}/src\n".encode()})
    verify_start_files([packages])
    (tmp_path / "src" / name).touch()
    assert f"{tmp_path}/src/{name}, which would run too" in refusal(packages)
