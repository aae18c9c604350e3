"""Formats that several dialects and several processes share: JSON within bounds, server-sent events, AWS's event stream, forms. Pure."""
