"""cliproxy: an LLM gateway that you can hand your provider keys to."""

__version__ = "0.1.0"
