"""Telling a person: problems and digests as JSON to a webhook, in the form that Slack takes; each problem once.

What lives here: what was told already, how it is worded, sending. What never does: finding problems.

    <state folder>/alerts.json      what is wrong and was told, until it is over
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from tenacity import RetryError, retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from contio_pipeline.errors import ApiError, Transient
from contio_pipeline.folders import private_file, private_folder
from contio_pipeline.health import Problem
from contio_pipeline.refresh import http_options, new_http
from contio_pipeline.settings import Settings

log = logging.getLogger(__name__)

_MOST = 5
"""With more to tell at once, it is told in one message."""

_LONGEST = 2500
"""Characters: Slack shows no more of one block."""

_TRIES, _LONGEST_PAUSE, _PATIENCE = 3, 4, 10.0
_TOKENS = re.compile(r"cto_[a-z]+_[\w-]+")
_VARYING = re.compile(r"\(request_id [^)]*\)|[0-9a-f]{8}-[0-9a-f-]{27}|\d+")
"""What is another each time although the trouble is the same."""


@dataclass(slots=True)
class _Open:
    """A problem that is not over.

    Attributes:
        problem: as it was first seen.
        sources: who sees it.
        told: whether the message went out.
    """

    problem: Problem
    sources: set[str] = field(default_factory=set)
    told: bool = False


class Alerts:
    """What a person is told, once per problem, by however many processes; off until `CONTIO_ALERT_URL` is set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.state_dir

    @property
    def on(self) -> bool:
        """Whether there is somebody to tell."""
        return self._settings.alert_url is not None

    def update(self, seen: Mapping[str, Iterable[Problem]], *, whole: bool = True) -> int:
        """Tell what is new, and forget what nobody sees any more.

        Args:
            seen: source -> all that it sees now. What a source that is not named here saw stays as it is.
            whole: whether they looked at everything: else what they do not see may be there all the same.

        Returns:
            How many messages were sent.
        """
        if not self.on:
            return 0
        with self._state() as state:
            for source, problems in seen.items():
                found = {_key(problem): problem for problem in problems}
                in_trouble = {problem.whose for problem in found.values()}
                for known in state.values():
                    if whole and known.problem.whose not in in_trouble:  # one trouble may hide another
                        known.sources.discard(source)
                for key, problem in found.items():
                    state.setdefault(key, _Open(problem)).sources.add(source)
            for key in [key for key, known in state.items() if not known.sources]:
                del state[key]
            return self._tell_new(list(state.values()))

    def _tell_new(self, known: list[_Open]) -> int:
        """Send what was not told yet; returns how many messages that took."""
        in_trouble = {one.problem.whose for one in known if not one.problem.echo}
        fresh = [one for one in known if not one.told and not (one.problem.echo and one.problem.whose in in_trouble)]
        sent = 0
        for group in _grouped(fresh):
            if self.tell("\n".join([":warning: contio-pipeline", *_lines([one.problem for one in group])])):
                sent += 1
                for one in group:
                    one.told = True
        return sent

    def open_problems(self) -> list[Problem]:
        """What is wrong and not over, in the order in which it was seen."""
        with self._state() as state:
            return [known.problem for known in state.values()]

    def tell(self, text: str) -> bool:
        """Send a text; returns whether it arrived. It is tried a few times, and never raises: a night must not fail for it."""
        url = self._settings.alert_url
        if url is None:
            return False
        try:
            self._post(url.reveal(), {"text": self._redacted(text)[:_LONGEST]})
        except (RetryError, ApiError, httpx.HTTPError) as error:
            cause = error.last_attempt.exception() if isinstance(error, RetryError) else error
            why = str(cause) if isinstance(cause, ApiError) else type(cause).__name__
            log.warning("the alert could not be sent (%s); it is tried again with the next one", why)
            return False
        return True

    @retry(
        retry=retry_if_exception_type((httpx.TransportError, Transient)),
        stop=stop_after_attempt(_TRIES),
        wait=wait_exponential(max=_LONGEST_PAUSE),
    )
    def _post(self, url: str, message: dict[str, str]) -> None:
        options = http_options((url,), self._settings.ca_bundle, _PATIENCE)
        with new_http(lambda: httpx.Client(**options)) as http:
            answer = http.post(url, json=message)
        if (
            answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
            or answer.status_code == httpx.codes.TOO_MANY_REQUESTS
        ):
            raise Transient(f"status {answer.status_code}")
        if not answer.is_success:
            raise ApiError(f"refused with status {answer.status_code}: see CONTIO_ALERT_URL")

    def _redacted(self, text: str) -> str:
        """No message holds a secret; should one ever do, it is not sent."""
        for secret in (self._settings.client_secret, self._settings.alert_url):
            text = text.replace(secret.reveal(), "(secret)") if secret else text
        return _TOKENS.sub("(secret)", text)

    @contextmanager
    def _state(self) -> Iterator[dict[str, _Open]]:
        """What was told, held against all other processes, and stored again."""
        path = private_folder(self._folder) / "alerts.json"
        descriptor = os.open(self._folder / ".alerts.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            state = _read(path.read_text(encoding="utf-8")) if path.exists() else {}
            yield state
            rows = [
                {"key": key, "told": one.told, "sources": sorted(one.sources), **asdict(one.problem)}
                for key, one in state.items()
            ]
            private_file(path, json.dumps({"open": rows, "as_of": datetime.now(UTC).isoformat()}, indent=1) + "\n")
        finally:
            os.close(descriptor)


def _read(text: str) -> dict[str, _Open]:
    """The stored problems; none where the file is damaged: then they are told once more."""
    try:
        rows: list[dict[str, Any]] = json.loads(text)["open"]
        return {
            row["key"]: _Open(Problem(row["what"], row["whose"], row["echo"]), set(row["sources"]), row["told"])
            for row in rows
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _key(problem: Problem) -> str:
    return f"{problem.whose}: {_VARYING.sub('#', problem.what)}"


def _grouped(fresh: list[_Open]) -> list[list[_Open]]:
    """A message for each account; one for accounts that have the same trouble, and one in all where there are many."""
    accounts: dict[str, list[_Open]] = {}
    for known in fresh:
        accounts.setdefault(known.problem.whose, []).append(known)
    alike: dict[tuple[str, ...], list[_Open]] = {}
    for group in accounts.values():
        alike.setdefault(tuple(sorted(_VARYING.sub("#", known.problem.what) for known in group)), []).extend(group)
    groups = list(alike.values())
    return groups if len(groups) <= _MOST else [fresh]


def _lines(problems: list[Problem]) -> list[str]:
    """Each trouble once, with all who have it."""
    whose: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for problem in problems:
        key = _VARYING.sub("#", problem.what)
        whose.setdefault(key, []).append(problem.whose)
        texts.setdefault(key, problem.what)
    return [
        f"• {', '.join(filter(None, names))}{': ' if any(names) else ''}{texts[key]}" for key, names in whose.items()
    ]


def told_of(problems: list[Problem]) -> list[str]:
    """A line for each trouble, with all who have it; what says no more of an account in trouble is left out."""
    in_trouble = {problem.whose for problem in problems if not problem.echo}
    return _lines([problem for problem in problems if not (problem.echo and problem.whose in in_trouble)])
