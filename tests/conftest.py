"""Its place puts `tests/` on the import path, so that tests say `from fakes.provider import FakeProvider`."""
