"""OpenAI's legacy completions: `POST /v1/completions`. For clients only; no provider is asked in it."""
