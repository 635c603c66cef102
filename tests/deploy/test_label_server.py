from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy import label_server
from monai_xtiny.deploy.label_server import LabelServer
from monai_xtiny.deploy.ranking import RankedCase, Ranking
from monai_xtiny.deploy.targets import Target


class Answers(BaseHTTPRequestHandler):
    """What MONAI Label 0.8.5 answers to the two requests; its end-to-end check asks itself."""

    content: Any = None
    infos: dict[str, Any] = {}  # noqa: RUF012 - of one server

    def do_GET(self) -> None:
        if self.path != "/datastore/?output=all":
            self.send_error(404)
            return
        self._answer(json.dumps(self.content))

    def do_PUT(self) -> None:
        place = urlsplit(self.path)
        assert place.path == "/datastore/image/info"
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.infos[parse_qs(place.query)["image"][0]] = json.loads(form["info"][0])
        self._answer("null")

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def url() -> Iterator[str]:
    Answers.content, Answers.infos = {"objects": {"a": {}, "b c&é": {}, "d": {}}}, {}
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def ranked(rank: int, file: str, score: float) -> RankedCase:
    return RankedCase(rank, Target(Path(file).stem, (file,), "raster"), 0.5, score)


def test_send_writes_scores_to_the_images_of_the_same_name(url, tmp_path) -> None:
    weights = tmp_path / "model.pt"
    weights.touch()
    os.utime(weights, (1000.7, 1000.7))
    bundle = cast(Bundle, SimpleNamespace(path=lambda name: weights))
    cases = ranked(1, "x/b c&é.png", 0.25), ranked(2, "x/none.png", 0.125), ranked(3, "x/a.png", 0)
    said = LabelServer(url).send(Ranking(cases, 1, {}, (), "softmax"), bundle)
    assert said == f"2 images of {url[:-1]} have their scores; it does not have the other 1"
    assert Answers.infos == {
        "b c&é": {"epistemic_entropy": 0.25, "epistemic_ts": 1000},
        "a": {"epistemic_entropy": 0, "epistemic_ts": 1000},
    }


def test_send_leaves_out_names_that_several_files_have(url, tmp_path) -> None:
    (tmp_path / "model.pt").touch()
    bundle = cast(Bundle, SimpleNamespace(path=lambda name: tmp_path / name.rsplit("/")[-1]))
    files = "p1/a.png", "p1/d.png", "p2/a.png", "p1/none.png", "p2/none.png"
    cases = tuple(ranked(rank, file, 0.5) for rank, file in enumerate(files, start=1))
    said = LabelServer(url).send(Ranking(cases, 1, {}, (), "softmax"), bundle)
    assert said == (
        f"1 images of {url[:-1]} have their scores; 2 get none, as several have one name, 'a' for "
        "example; it does not have the other 2"
    )
    assert list(Answers.infos) == ["d"]
    # Nor do those that share a name with a labeled one, which the server may mean by it.
    Answers.infos = {}
    cases = ranked(1, "p1/a.png", 0.5), ranked(2, "p1/d.png", 0.5)
    left_out = {"labels": (ranked(1, "p2/a.png", 0.5).case, ranked(1, "p2/none.png", 0.5).case)}
    said = LabelServer(url).send(Ranking(cases, 1, left_out, (), "softmax"), bundle)
    assert said == (
        f"1 images of {url[:-1]} have their scores; 1 get none, as several have one name, 'a' for "
        "example"
    )
    assert list(Answers.infos) == ["d"]


def test_label_server_bounds_what_it_takes_and_shows(url, monkeypatch) -> None:
    monkeypatch.setattr(label_server, "_MAX_BYTES", 20)
    with pytest.raises(ConnectionError, match="more than 20 bytes"):
        LabelServer(url)
    monkeypatch.setattr(Answers, "do_GET", lambda self: self.wfile.write(b"\x1b[2J" + b"x" * 9000))
    with pytest.raises(ConnectionError) as caught:
        LabelServer(url)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    monkeypatch.setattr(Answers, "do_GET", lambda self: self.send_error(404, "\x1b[2J" * 99))
    with pytest.raises(ConnectionError, match="answers GET /datastore/ with 404: check --server"):
        LabelServer(url)


def test_label_server_says_what_does_not_answer(url) -> None:
    for wrong in ("127.0.0.1:8000", "file:///etc/passwd", "http://", "x"):
        with pytest.raises(ValueError, match="--server is .*: give an address"):
            LabelServer(wrong)
    Answers.content = ["something else"]
    with pytest.raises(ConnectionError, match="but not as MONAI Label: check --server"):
        LabelServer(url)
    with pytest.raises(
        ConnectionError, match="no MONAI Label server answers at http://127.0.0.1:1 "
    ):
        LabelServer("http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="answers GET .* with"):
        LabelServer(url + "other")
