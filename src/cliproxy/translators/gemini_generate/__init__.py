"""Gemini's `generateContent`, `streamGenerateContent` and `countTokens` (API versions v1 and v1beta, and Vertex AI's Gemini models). ADR 0094."""
