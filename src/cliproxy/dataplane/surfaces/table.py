"""The surfaces. A new vendor is a module of this folder and a row here; paths, keys, errors and lists of models are looked up through this table alone."""

from __future__ import annotations

from typing import Final

from cliproxy.dataplane.surfaces.anthropic import ANTHROPIC
from cliproxy.dataplane.surfaces.gemini import GEMINI
from cliproxy.dataplane.surfaces.openai import OPENAI
from cliproxy.dataplane.surfaces.surface import Surface

# In the order in which their hints are asked for; the last is for who names nobody.
SURFACES: Final[tuple[Surface, ...]] = (ANTHROPIC, GEMINI, OPENAI)
DEFAULT: Final = SURFACES[-1]
