"""`cliproxy completion`: the script that makes the shell complete commands and options."""

from __future__ import annotations

import sys

import click


@click.command(epilog="Example: cliproxy completion bash > ~/.local/share/bash-completion/completions/cliproxy")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash   cliproxy completion bash > ~/.local/share/bash-completion/completions/cliproxy
    zsh    cliproxy completion zsh > "${fpath[1]}/_cliproxy"
    fish   cliproxy completion fish > ~/.config/fish/completions/cliproxy.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from cliproxy.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    completer: ShellComplete = kind(cli, {}, "cliproxy", "_CLIPROXY_COMPLETE")
    # Not `source()`: for bash that runs the shell to learn its version, and the script may be meant for another machine.
    sys.stdout.write(completer.source_template % completer.source_vars() + "\n")
