"""`foveal explore`: the page in a file or on a port of this machine; mistakes in one line."""

import http.client
import socket
import struct
import threading

import pytest

from foveal.cli import main
from foveal.explore import page as pages
from foveal.explore.serve import PageServer


@pytest.fixture
def few(monkeypatch):
    """A page of no families but those that are given, which is quick to make."""
    monkeypatch.setattr(pages, "FAMILIES", ())


def answer(port, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_the_server_is_of_this_machine_and_ends():
    """It listens on loopback only, has one page and no file, and stops when it is told to."""
    with PageServer(page="<p>page</p>") as server:
        host, port = server.server_address
        assert host == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            assert answer(port, "GET", "/") == (200, b"<p>page</p>")
            assert answer(port, "GET", "/?x") == (200, b"<p>page</p>")
            assert answer(port, "HEAD", "/") == (200, b"")
            for path in (
                "/etc/passwd",
                "/../../etc/passwd",
                "/%2e%2e/pyproject.toml",
                "/page.js",
                "*",
            ):
                assert answer(port, "GET", path)[0] == 404
            assert answer(port, "POST", "/")[0] == 501
            with pytest.raises(ValueError, match="--port 0"):
                PageServer(port)
        finally:
            server.shutdown()
            thread.join(timeout=10)
        assert not thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        answer(port, "GET", "/")


def test_the_port_is_had_before_the_work(monkeypatch, capsys):
    """Who comes before the page is there gets it in time; a port that is taken is told first."""
    monkeypatch.setattr(pages, "page", pytest.fail)
    with PageServer() as server:
        port = server.server_address[1]
        early = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        early.request("GET", "/")
        assert main(["explore", "--port", str(port)]) == 2
        server.page = "<p>late</p>"
        server.handle_request()
        assert early.getresponse().read() == b"<p>late</p>"
        early.close()
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 cannot be used" in said
    assert "--port 0" in said


def leave(port, sent, at_once):
    """Say something and go without an answer, by a reset of the connection or an end of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(sent)
        if at_once:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_whoever_leaves_early_is_no_mistake(capsys):
    """Before the page has come, amid a request, with a body that nobody reads, in another
    protocol: nothing is printed, and the next one gets the page."""
    with PageServer(page="x" * 4_000_000) as server:
        port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            for at_once in (True, False):
                for sent in (
                    b"GET / HTTP/1.0\r\n\r\n",
                    b"GET / HT",
                    b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n" + b"x" * 200_000,
                    b"\x16\x03\x01\x00\xff" * 40 + b"\r\n\r\n",
                    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
                ):
                    leave(port, sent, at_once)
            status, body = answer(port, "GET", "/")
            assert (status, len(body)) == (200, 4_000_000)
            before = {one for one in threading.enumerate() if "process_request" in one.name}
            for one in before:
                one.join(timeout=10)
        finally:
            server.shutdown()
            thread.join(timeout=10)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_it_serves_until_somebody_ends_it(few, monkeypatch, capsys):
    """It says where it is, opens a browser unless told not to, and Ctrl-C is no mistake."""
    import webbrowser
    from http.server import ThreadingHTTPServer

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)

    def stop(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stop)
    assert main(["explore", "SlidingWindow(4)", "--port", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("http://127.0.0.1:")
    assert opened == [said.split()[0]]
    assert main(["explore", "SlidingWindow(4)", "--port", "0", "--no-browser"]) == 0
    assert len(opened) == 1


def test_a_page_in_a_file(few, tmp_path, capsys, monkeypatch):
    """--output writes the page with the pattern that was given, and serves nothing.

    How far it has come is told beside what it prints.
    """
    monkeypatch.setattr("foveal.training.progress._LINE_EVERY", 0.0)
    path = tmp_path / "page.html"
    assert main(["explore", "SlidingWindow(64)", "--length", "96", "--output", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(path)
    assert said.err.startswith("working out patterns   0%  0 of ")
    packed = path.read_text("utf-8").split('id="tables">')[1].split("<")[0]
    (family,) = pages.unpacked(packed)["families"]
    assert family["name"] == "SlidingWindow(64)"
    assert family["entries"][0]["length"] == 96


@pytest.mark.parametrize(
    "line",
    [
        "Nonsense(3)",
        "SlidingWindow(",
        "SlidingWindow(0)",
        "SlidingWindow(4) --length 0",
        "SlidingWindow(4) --length -3",
        "SlidingWindow(4) --length 1025",
        "SlidingWindow(4) --length many",
        "Halo(8) --length 65",
        "<script>alert(1)</script>",
        "--length 64",
        "--port 65536 SlidingWindow(4)",
        "--port -1 SlidingWindow(4)",
        "--port none",
        "--output nowhere/page.html",
        "--output page.pdf",
        "--output .",
        "--outptu page.html",
    ],
)
def test_mistakes_are_told_in_one_line(line, few, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line, nothing written."""
    monkeypatch.chdir(tmp_path)
    assert main(["explore", *line.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("foveal: ")
    assert said.err.count("\n") == 1
    assert not said.out
    assert not list(tmp_path.iterdir())
