"""Gemini's `embedContent`, and `batchEmbedContents` as far as one text goes. ADR 0095."""
