"""How one talks to the configuration loader: descriptors and switches. Apart from the loader, so that who starts it does not import a YAML parser."""

from __future__ import annotations

from typing import Final

LOADER: Final = "config_loader"  # its name in the lines that it says
RESULT_FD: Final = 3  # the settings, or one line for the operator
KEY_FD: Final = 4  # the master key, if it stands in the file
UNSAFE_NO_SANDBOX: Final = "--unsafe-no-sandbox"
WITH_KEY: Final = "--with-key"
