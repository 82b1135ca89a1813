"""What the tests of the plugs share: a Hub of their own, and no way to any other machine."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Nothing beyond this machine is connected to."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
        assert host in ("127.0.0.1", "::1", "localhost"), f"{address} is not on this machine"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def server():
    """A Hub, which huggingface_hub asks in place of the real one."""
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    from hub_server import Hub  # it needs what huggingface_hub brings
    from huggingface_hub import close_session, constants

    with Hub() as started, pytest.MonkeyPatch.context() as patch:
        settings = {
            "ENDPOINT": started.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": started.url
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        for module in ("huggingface_hub.file_download", "huggingface_hub.utils._http"):
            patch.setattr(f"{module}.time", patient())
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        close_session()
        yield started
        close_session()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The same with nothing in it, and a cache of its own."""
    from huggingface_hub import constants

    server.reset()
    places = {"HF_HUB_CACHE": "cache", "HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "tokens"}
    for name, place in {**places, "AGENT_HARNESSES_PATH": "harnesses.json"}.items():
        monkeypatch.setattr(constants, name, str(tmp_path / place))
    return server


@pytest.fixture(scope="module")
def strangers():
    """A family that somebody else registered, for as long as the tests of a file run."""
    from causal_models import StrangersLM

    from foveal.models import registry

    registry.register({})(StrangersLM)
    yield
    del registry._families[StrangersLM.family]


def patient():
    """The module `time`, whose sleep takes none."""
    return SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
