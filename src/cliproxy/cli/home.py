"""Where things are: `CLIPROXY_HOME` and the names below it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cliproxy.errors import ConfigError


class Home(msgspec.Struct, frozen=True):
    """An absolute path and the names below it. In a container the home is `/`: `/config /key /auths /logs /run`."""

    path: Path

    @classmethod
    def at(cls, named: str | None) -> Home:
        """Return the home `named`, else `$CLIPROXY_HOME`, else `~/.cliproxy`."""
        text = named or os.environ.get("CLIPROXY_HOME") or "~/.cliproxy"
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            raise ConfigError("there is no home directory to put ~/.cliproxy in", cure="set CLIPROXY_HOME, or give --home") from None
        if not str(path).isprintable():
            raise ConfigError("the path of the home is not printable", cure="give another --home")
        return cls(Path(os.path.abspath(path)))  # noqa: PTH100 - not resolve(): links are judged where they are used

    @property
    def config_file(self) -> Path:
        """`config/cliproxy.yaml`."""
        return self.path / "config" / "cliproxy.yaml"

    @property
    def master_key_file(self) -> Path:
        """`key/master.key`."""
        return self.path / "key" / "master.key"

    @property
    def unfinished_init(self) -> Path:
        """There from before `init` makes the master key until the vault is made: what tells an `init` that was killed from a home that was emptied."""
        return self.path / "key" / "init-unfinished"

    @property
    def directories(self) -> tuple[Path, ...]:
        """The five directories, and before them the home itself, unless that is the root of a container."""
        five = tuple(self.path / name for name in ("config", "key", "auths", "logs", "run"))
        return five if self.path == Path("/") else (self.path, *five)
