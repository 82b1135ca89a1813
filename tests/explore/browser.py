"""Chromium, driven over a pipe by its DevTools protocol: no package is needed for it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import time


def find_browser():
    """The path of a Chromium or Chrome; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One headless page; `errors` gathers what its console complains of."""

    def __init__(self, program, folder):
        ours_in, theirs_out = os.pipe()
        theirs_in, self._write = os.pipe()
        self._read, self._rest, self._number, self.errors = ours_in, b"", 0, []
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        quiet = os.open(os.devnull, os.O_RDWR)
        # far from 3 and 4, which the protocol wants, before they are written over
        high_in, high_out = os.dup(theirs_in), os.dup(theirs_out)
        actions = [(os.POSIX_SPAWN_DUP2, quiet, one) for one in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, high_in, 13), (os.POSIX_SPAWN_DUP2, high_out, 14)]
        actions += [(os.POSIX_SPAWN_DUP2, 13, 3), (os.POSIX_SPAWN_DUP2, 14, 4)]
        self._process = os.posix_spawn(
            program, [program, *flags], os.environ, file_actions=actions, setpgroup=0
        )
        for one in (theirs_in, theirs_out, high_in, high_out, quiet):
            os.close(one)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds=30):
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, "the browser says nothing"
            self._rest += part
        first, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(first)
        said = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(said["exceptionDetails"])
        if message.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"])
        if message.get("method") == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.errors.append(said["args"])
        return message

    def run(self, script):
        """The value of an expression on the page."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        """Wait until an expression is true."""
        end = time.monotonic() + 20
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def screen(self, width, height, touch=False):
        """Sizes of the window, and whether it is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if touch else 1, mobile=touch,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def close(self):
        """End the browser that was started, and all that it has started."""
        os.close(self._write)
        os.close(self._read)
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
