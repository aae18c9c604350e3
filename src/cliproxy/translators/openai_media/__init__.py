"""OpenAI's pictures and speech: `POST /v1/images/generations` and `/v1/audio/*`, checked and passed on to providers that have them."""
