"""How many prompt tokens a request will have, guessed from its size, for the reservation that real usage replaces.

Four bytes of JSON count as a token, the vendors' rule of thumb for English. Measured as guess : count with OpenAI's o200k_base (and cl100k_base where it
differs): English prose 0.9 to 1.3, source code 0.7 to 1.3, German 1.25 (1.0), French 1.6 (1.2), Chinese and Japanese 1.4 (0.9), Russian and Arabic 2.3 to 2.6
(0.9 to 1.2), JSON data 0.8, digits and hexadecimal 0.45 to 0.65. Where a client writes non-ASCII text as `\\u` escapes the guess is two to three times
that. What a picture or sound costs hangs on its content, not its bytes: the constants are middle values of what the vendors document and may be off by a factor
of three.
"""

from __future__ import annotations

BYTES_PER_TOKEN = 4
IMAGE_TOKENS = 1000  # OpenAI: 85 (low detail) to about 1,500
AUDIO_CHARS_PER_TOKEN = 1000  # ten tokens a second; MP3 has 8 kB of data a second, 11,000 characters of base64
FILE_CHARS_PER_TOKEN = 16  # a page of a PDF: some 1,500 tokens for 20 to 50 kB


def tokens_of_text(length: int) -> int:
    """Return the guess for `length` bytes of JSON, rounded up."""
    return (length + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN
