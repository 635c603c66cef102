"""Scores for the images of a MONAI Label server, whose strategy ``Epistemic`` reads them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from monai_xtiny.bundle.folder import WEIGHTS, Bundle
from monai_xtiny.bundle.templates import printable
from monai_xtiny.deploy.ranking import Ranking

# Of an answer: how long it may take, how long it may be, and what of it is shown.
_SECONDS, _MAX_BYTES, _MAX_SHOWN = 60, 100_000_000, 200
# What MONAI Label 0.8 keeps of its own scores: the value, and the age of the weights that gave it.
_SCORE, _AGE = "epistemic_entropy", "epistemic_ts"


class LabelServer:
    """A running MONAI Label server; its images are asked for at once.

    Args:
        url: its address, ``http://127.0.0.1:8000`` for example.

    Raises:
        ConnectionError: it does not answer as MONAI Label does.
        ValueError: the address is none of HTTP.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--server is {url!r}: give an address, http://127.0.0.1:8000 say")
        self._url = url.rstrip("/")
        content = self._ask("GET", "/datastore/", {"output": "all"})
        objects = content.get("objects") if isinstance(content, Mapping) else None
        if not isinstance(objects, Mapping):
            raise ConnectionError(f"{self._url} answers, but not as MONAI Label: check --server")
        self._images = frozenset(objects)

    def send(self, ranking: Ranking, bundle: Bundle) -> str:
        """Write the score of each ranked case that the server has to its image.

        The server's own scoring leaves these images alone until the weights change.

        Args:
            ranking: of the cases; a case is the server's image of the same file name, and none
                where several cases are called so, in different folders, ranked or left out.
            bundle: that they were ranked by.

        Returns:
            What was done, in a line.

        Raises:
            ConnectionError: the server does not answer.
        """
        age = int(os.stat(bundle.path(WEIGHTS)).st_mtime)
        names = [item.case.stem for item in ranking.cases if item.case.stem in self._images]
        left_out = [case.stem for cases in ranking.left_out.values() for case in cases]
        counts = Counter([*names, *(name for name in left_out if name in self._images)])
        known = [item for item in ranking.cases if counts[item.case.stem] == 1]
        for item in known:
            info = json.dumps({_SCORE: item.score, _AGE: age})
            self._ask("PUT", "/datastore/image/info", {"image": item.case.stem}, info)
        said = f"{len(known)} images of {self._url} have their scores"
        shared = len(names) - len(known)
        if shared:
            name = counts.most_common(1)[0][0]
            said += f"; {shared} get none, as several have one name, {name!r} for example"
        others = len(ranking.cases) - len(names)
        return said + (f"; it does not have the other {others}" if others else "")

    def _ask(
        self, method: str, path: str, query: Mapping[str, str], info: str | None = None
    ) -> Any:
        """The answer of the server to a request."""
        data = None if info is None else urlencode({"info": info}).encode()
        request = Request(f"{self._url}{path}?{urlencode(query)}", data, method=method)
        try:
            with urlopen(request, timeout=_SECONDS) as answer:
                text = answer.read(_MAX_BYTES + 1)
            if len(text) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
            return json.loads(text or "null")
        except HTTPError as error:
            raise ConnectionError(
                f"{self._url} answers {method} {path} with {error.code}: check --server, and that "
                "nobody has to log in"
            ) from error
        except (URLError, OSError, ValueError, RecursionError, HTTPException) as error:
            shown = printable(str(error))[:_MAX_SHOWN]
            raise ConnectionError(
                f"no MONAI Label server answers at {self._url} ({shown}): start it, or check "
                "--server"
            ) from error
