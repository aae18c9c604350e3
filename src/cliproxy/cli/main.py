"""`cliproxy`: the table of commands, and the one place where errors become a line and an exit code.

A command is one file here and is imported only when it is called, so that `cliproxy version` does not load what `serve` needs. Exit codes:
0 fine, 1 a check found something or the gateway refused, 2 wrong usage, 78 unusable configuration, kernel or vault.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import click

from cliproxy.errors import EXIT_CHECK_FAILED, EXIT_CONFIG, EXIT_USAGE, CliproxyError, ConfigError, SandboxError, VaultError

COMMANDS: dict[str, tuple[str, str]] = {  # name: module here, attribute
    "init": ("init", "command"),
    "serve": ("serve", "command"),
    "check": ("check", "command"),
    "doctor": ("doctor", "command"),
    "status": ("status", "command"),
    "reload": ("reload", "command"),
    "keys": ("keys", "group"),
    "credentials": ("credentials", "group"),
    "routes": ("routes", "command"),
    "vault": ("vault", "group"),
    "audit": ("audit", "group"),
    "block": ("block", "command"),
    "unblock": ("unblock", "command"),
    "lockdown": ("lockdown", "command"),
    "completion": ("completion", "command"),
    "version": ("version", "command"),
}
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _LazyGroup(click.Group):
    """Imports a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"cliproxy.cli.{module}"), attribute)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--home", envvar="CLIPROXY_HOME", metavar="DIR", help="Where cliproxy keeps its files [default: $CLIPROXY_HOME, else ~/.cliproxy].")
@click.pass_context
def cli(ctx: click.Context, home: str | None) -> None:
    """An LLM gateway that you can hand your provider keys to.

    \b
    cliproxy init       once: configuration, master key, first client key
    cliproxy serve      run the gateway
    """
    ctx.obj = {"home": home}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit. Never shows a traceback for what the operator can mend."""
    words = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a terminal without our characters is no reason to fail
    sys.exit(_run(words))


def _run(arguments: list[str]) -> int:
    if any("\udc80" <= character <= "\udcff" for argument in arguments for character in argument):  # bytes that are not UTF-8 (PEP 383)
        return _fail("an argument is not UTF-8; see `cliproxy --help`", EXIT_USAGE, arguments)
    try:
        result: Any = cli.main(args=arguments, prog_name="cliproxy", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.UsageError as error:
        path = "cliproxy" if error.ctx is None else error.ctx.command_path
        return _fail(f"{error.format_message()}; see `{path} --help`", EXIT_USAGE, arguments)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", _EXIT_INTERRUPTED, arguments)
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_USAGE, arguments)
    except CliproxyError as error:
        if getattr(error, "is_said", False) and "--json" not in arguments:
            return _exit_code(error)
        return _fail(str(error), _exit_code(error), arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush has somewhere to go
        return EXIT_CHECK_FAILED
    except OSError as error:
        return _fail(
            f"{error.filename or 'the system'}: {error.strerror or type(error).__name__}; check the path, its owner and the disk", EXIT_CONFIG, arguments
        )
    return result if isinstance(result, int) else 0


def _exit_code(error: CliproxyError) -> int:
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    return EXIT_CONFIG if isinstance(error, ConfigError | SandboxError | VaultError) else EXIT_CHECK_FAILED


def _fail(message: str, code: int, arguments: list[str]) -> int:
    from cliproxy.cli.output import visible

    line = visible(" ".join(message.split()))
    if "--json" in arguments:
        import json

        line = json.dumps({"error": line, "exit": code})
    else:
        line = f"cliproxy: {line}"
    sys.stderr.write(line + "\n")
    return code


if __name__ == "__main__":
    main()
