"""The page, which takes seconds to compute, once for all tests of it in a process."""

import pytest

from foveal.explore import page as pages


@pytest.fixture(scope="session")
def page_text():
    """The page as it is shipped."""
    return pages.page()
