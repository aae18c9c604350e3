"""The configuration file: YAML to `Settings`, with errors that name file, line, key and the cure, one line each.

`parse_config` is pure: bytes in, types out. `load_settings` adds what only the machine knows: who may write the file, and whether the files
that it names are there. Both raise `ConfigError` and nothing else, and change nothing. A key inside the file (`auth.encryption.key`) comes
out beside the settings, as a `Secret`; whether it is a good key is judged where it is used (`vault.master_key`).
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cliproxy.bounds import MAX_BOOT_BYTES, MAX_CONFIG_BYTES
from cliproxy.config.document import Mapping, Scalar, parse_document
from cliproxy.config.rules import Judge
from cliproxy.config.schema import Settings, encode_settings
from cliproxy.config.shape import Path as KeyPath
from cliproxy.config.shape import Shaper, find, line_of, name_of
from cliproxy.errors import ConfigError
from cliproxy.secret import Secret

_KEY_PATH: KeyPath = ("auth", "encryption", "key")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """What a file said. `warnings` are single lines for the operator; `root` is for the lines of what is found out later, and no longer holds the key."""

    settings: Settings
    inline_master_key: Secret | None
    warnings: tuple[str, ...]
    root: Mapping = field(repr=False, compare=False)


def load_settings(path: str | Path, *, allow_no_sandbox: bool = False) -> LoadedConfig:
    """Return what the file at `path` says. `allow_no_sandbox`: the command line said `--unsafe-no-sandbox`.

    Raises `ConfigError` when it cannot be read, others may write it, it is wrong, or a file that it names is missing.
    """
    file = str(path)
    data, mode = _read(file)
    loaded, key_line = _parse(data, file=file, allow_no_sandbox=allow_no_sandbox)
    if loaded.inline_master_key is not None and mode & 0o077:
        raise ConfigError("the file holds the master key and others may read it", cure=f"chmod 600 {file}", file=file, line=key_line, key=name_of(_KEY_PATH))
    if not loaded.root.entries:  # as an editor or a full disk leaves it; taken for the defaults it would end every route
        raise ConfigError("the file says nothing", cure="write at least one key, as in docs/configuration.md", file=file)
    _verify_files(loaded.settings, loaded.root, file=file)
    return loaded


def parse_config(data: bytes, *, file: str, allow_no_sandbox: bool = False) -> LoadedConfig:
    """Return what `data` says, without looking at the machine; `file` is for messages."""
    return _parse(data, file=file, allow_no_sandbox=allow_no_sandbox)[0]


def _parse(data: bytes, *, file: str, allow_no_sandbox: bool) -> tuple[LoadedConfig, int]:
    root = parse_document(data, file=file)
    key, key_line = _take_key(root, file=file)
    settings: Settings = Shaper(file=file).block(Settings, root, ())
    judge = Judge(root, file=file)
    settings = judge.settings(settings, sandbox_may_be_off=allow_no_sandbox or not sys.platform.startswith("linux"))
    if len(encode_settings(settings)) > MAX_BOOT_BYTES:
        raise ConfigError(f"with its aliases written out it has more than {MAX_BOOT_BYTES} bytes", cure="give it fewer models or shorter lists", file=file)
    warnings = judge.warnings
    if key is not None:
        warnings = (
            f"{file}:{key_line}: {name_of(_KEY_PATH)}: the master key stands in the configuration; move it to key/master.key",
            *warnings,
        )
    return LoadedConfig(settings, key, warnings, root), key_line


def _take_key(root: Mapping, *, file: str) -> tuple[Secret | None, int]:
    """Return the key and its line, after removing `auth.encryption.key` from the tree, so that no later message and no type can hold it."""
    encryption = find(root, _KEY_PATH[:-1])
    if not isinstance(encryption, Mapping) or "key" not in encryption.entries:
        return None, 0
    value = encryption.entries.pop("key")
    text = value.value.text if isinstance(value.value, Scalar) else ""
    if not text or "${" in text:
        problem = "variables of the environment are not filled in here" if text else "the key is empty, or more than one value"
        raise ConfigError(problem, cure="remove the line: key/master.key is used then", file=file, line=value.line, key=name_of(_KEY_PATH))
    return Secret(text.encode("utf-8", "surrogatepass")), value.line


def _read(file: str) -> tuple[bytes, int]:
    """Return the bytes and the mode. The file may be a symlink (a mounted ConfigMap is one); what counts is who may write the target."""
    if not file.isprintable():
        raise ConfigError("the name of the configuration file is not printable", cure="give the file another name")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError("there is no such file", cure="run `cliproxy init`, or name another home with --home", file=file) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the name is not valid"
        cure = "run the command as the user that owns it" if isinstance(error, PermissionError) else "correct the path"
        raise ConfigError(f"the file cannot be opened ({reason})", cure=cure, file=file) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError("this is not a regular file", cure="name the configuration file itself", file=file)
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"the file belongs to uid {found.st_uid}", cure=f"chown {os.geteuid()} {file}", file=file)
        if found.st_mode & 0o022:
            raise ConfigError("others may write the file", cure=f"chmod 600 {file}", file=file)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(MAX_CONFIG_BYTES + 1), stat.S_IMODE(found.st_mode)
    except OSError as error:
        raise ConfigError(f"the file cannot be read ({error.strerror})", cure="look at its disk", file=file) from None
    finally:
        os.close(descriptor)


def _verify_files(settings: Settings, root: Mapping, *, file: str) -> None:
    """Every file that the configuration names is there and readable; the TLS key is for us alone."""
    named: list[tuple[KeyPath, str, bool]] = []
    if settings.server.tls.enabled:
        named.append((("server", "tls", "cert_file"), settings.server.tls.cert_file, False))
        named.append((("server", "tls", "key_file"), settings.server.tls.key_file, True))
    named.extend((("providers", name, "ca_file"), provider.ca_file, False) for name, provider in settings.providers.items() if provider.ca_file)
    for path, name, private in named:
        problem, cure = _problem_with(name, private=private)
        if problem:
            raise ConfigError(problem, cure=cure, file=file, line=line_of(root, path), key=name_of(path))


def _problem_with(name: str, *, private: bool) -> tuple[str, str]:
    try:
        found = os.stat(name)  # noqa: PTH116  # a plain stat: no pathlib semantics wanted
    except (OSError, ValueError):
        return "there is no such file, or it cannot be reached", "correct the path"
    if not stat.S_ISREG(found.st_mode):
        return "this is not a regular file", "name the file itself"
    if found.st_mode & 0o022:
        return "others may write this file", f"chmod go-w {name}"
    if private and found.st_mode & 0o007:
        return "everybody may read this private key", f"chmod 600 {name}"
    if not os.access(name, os.R_OK):
        return "this file is not readable for us", "change its owner or mode"
    return "", ""
