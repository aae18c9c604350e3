"""The throw-away process that reads the configuration: whoever starts or reloads the gateway never parses YAML itself.

    python -I -B -m cliproxy.processes.config_loader FILE [--unsafe-no-sandbox] [--with-key]

It writes to descriptor `RESULT_FD` and ends: exit code 0 and the settings as MessagePack (`config.schema.encode_settings`), or exit code 78
and one line for the operator. Warnings go to stderr, a line each. The settings hold no secret; a master key that stands in the file goes to
`KEY_FD` alone, and only with `--with-key` (at the start; a reload does not change the master key).
"""

from __future__ import annotations

import os
import sys

from cliproxy.config.load import load_settings
from cliproxy.config.schema import encode_settings
from cliproxy.errors import EXIT_CONFIG, EXIT_USAGE, ConfigError
from cliproxy.processes.loader_protocol import KEY_FD, RESULT_FD, UNSAFE_NO_SANDBOX, WITH_KEY
from cliproxy.processes.tls_files import verify_tls_files


def main(arguments: list[str]) -> int:
    """Load the file named first; returns the exit code."""
    if not arguments or not {UNSAFE_NO_SANDBOX, WITH_KEY}.issuperset(arguments[1:]):
        return EXIT_USAGE
    try:
        loaded = load_settings(arguments[0], allow_no_sandbox=UNSAFE_NO_SANDBOX in arguments)
        verify_tls_files(loaded, file=arguments[0])
    except ConfigError as error:
        _write(RESULT_FD, str(error).encode("utf-8", "backslashreplace"))
        return EXIT_CONFIG
    for warning in loaded.warnings:
        sys.stderr.write(f"cliproxy: {warning}\n")
    if loaded.inline_master_key is not None and WITH_KEY in arguments:
        _write(KEY_FD, loaded.inline_master_key.reveal())
        loaded.inline_master_key.wipe()
    _write(RESULT_FD, encode_settings(loaded.settings))
    return 0


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
