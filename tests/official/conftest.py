"""One service with a port for the programs of `suite`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.conftest import House

from .service import read_variables, service_with_port

collect_ignore = ["suite"]


@pytest.fixture(scope="session")
def official_house() -> Iterator[House]:
    with service_with_port() as house:
        yield house


@pytest.fixture(scope="session")
def variables(official_house: House) -> dict[str, str]:
    return read_variables(official_house)
