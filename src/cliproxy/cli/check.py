"""`cliproxy check`: is the configuration usable? Changes nothing, starts nothing."""

from __future__ import annotations

from pathlib import Path

import click

from cliproxy.cli.home import Home
from cliproxy.cli.options import common_options


@click.command(epilog="Example: cliproxy check --config /etc/cliproxy/new.yaml")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Another file than config/cliproxy.yaml of the home.")
@click.option("--unsafe-no-sandbox", is_flag=True, help="Allow `sandbox.mode: off`, as `serve` does with the same option.")
@common_options
def command(home: Home, as_json: bool, config_file: Path | None, unsafe_no_sandbox: bool) -> None:
    """Check the configuration file and the files that it names.

    A fault is one line: file, line, key, what is wrong and how to mend it; the exit code is then 78.
    """
    from cliproxy.cli.output import emit
    from cliproxy.config.load import load_settings
    from cliproxy.processes.tls_files import verify_tls_files
    from cliproxy.vault.master_key import load_master_key

    file = config_file or home.config_file
    loaded = load_settings(file, allow_no_sandbox=unsafe_no_sandbox)
    if loaded.inline_master_key is not None:
        load_master_key(path=home.master_key_file, environment={}, inline=loaded.inline_master_key).wipe()
        loaded.inline_master_key.wipe()
    verify_tls_files(loaded, file=str(file))
    emit(
        {"file": str(file), "usable": True, "models": sorted(loaded.settings.models), "warnings": list(loaded.warnings)},
        [*(f"warning: {warning}" for warning in loaded.warnings), f"{file}: usable, {len(loaded.settings.models)} models"],
        as_json=as_json,
    )
