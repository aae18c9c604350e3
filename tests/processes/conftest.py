"""Gateways of probe roles, ended by pid."""

import pytest

from processes.gateway_of_probes import Gateway


@pytest.fixture
def gateway(tmp_path):
    made = Gateway(tmp_path)
    yield made
    made.end()


@pytest.fixture
def new_gateway():
    """Make more gateways, also on the same home."""
    made = []

    def make(home):
        made.append(Gateway(home))
        return made[-1]

    yield make
    for one in made:
        one.end()
