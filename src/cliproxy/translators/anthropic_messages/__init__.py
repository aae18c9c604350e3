"""Anthropic's Messages API (`/v1/messages`, `/v1/messages/count_tokens`), as Anthropic and Vertex AI serve it."""
