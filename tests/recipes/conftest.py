"""What every test of recipes shares."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def soon(short_reports):
    """Runs of a second end as soon as they can."""
