"""The Hub's client with bounded waiting, and what its errors mean in one sentence.

The client itself repeats requests that failed for a while (429, 5xx, lost connections), but waits
for a reply as long as it takes, and as long as a ``Retry-After`` says. Here a reply may take
``seconds``, and all waiting between two signs of life five times that (the Hub's own limits of
requests are per five minutes).
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

from simko_mlx.types import UserError

CONNECT_SECONDS = 10.0
TOKENS = "https://huggingface.co/settings/tokens"
OFFLINE = "HF_HUB_OFFLINE is set, so that nothing can be sent: unset it, and push again."


class HubTrouble(Exception):
    """What the network or the Hub did, in one sentence: trying again may help."""


class Refused(UserError):
    """What the Hub won't do until the user changes something: the token, rights, a name."""


class Watch:
    """Knows when the Hub last gave a sign of life, and how long a reply may take.

    Raises:
        HubTrouble: from its hooks, where waiting on would take longer than ``patience`` seconds.
    """

    def __init__(self, seconds: float, message: Callable[[str], None]) -> None:
        self.limits = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        self.limits["connect"] = min(CONNECT_SECONDS, seconds)
        self.patience = 5 * seconds
        self.message = message
        self.stopped = False
        self.said = ""
        self.alive()

    def alive(self) -> None:
        self.last = time.monotonic()

    @property
    def waited(self) -> float:
        return time.monotonic() - self.last

    def over(self, call: Callable[[], Any]) -> Any:
        """The call's result. It runs in a thread of its own, since the client's limits are for each
        piece of a reply, however small: one that comes by single bytes may take for ever.

        Raises:
            HubTrouble: patience is at its end.
            Exception: what the call raises. After Ctrl-C, too, it makes no further request.
        """
        # Its threads are daemons, for which the program's end doesn't wait.
        done = ThreadPool(1).apply_async(call)
        try:
            while not done.ready():
                done.wait(0.5)
                # The request before has ended within the first limit, if it is one of the client's.
                if self.waited > self.patience + self.limits["read"]:
                    raise HubTrouble(
                        f"The Hub gave no good answer for {self.waited:.0f} s{self.said}: push "
                        "again later."
                    )
            return done.get()
        finally:
            self.stopped = not done.ready()

    def before(self, request: Any) -> None:
        if self.stopped:
            raise HubTrouble("The push has been stopped.")
        if self.waited > self.patience:
            raise HubTrouble(
                f"The Hub ({_host(request)}) gave no good answer for {self.waited:.0f} s"
                f"{self.said}: push again later."
            )
        # Here, since the client's own timeout gives way to that of a call, which is often "none".
        request.extensions["timeout"] = self.limits

    def after(self, response: Any) -> None:
        if response.status_code < 400:
            self.alive()
            return
        self.said = f" (the last was status {response.status_code})"
        wait = _asked_to_wait(response)
        if self.waited + wait > self.patience:
            raise HubTrouble(
                f"The Hub ({_host(response.request)}) asks to wait for {wait} s (status "
                f"{response.status_code}): push again after that."
            )
        if wait:
            self.message(f"The Hub asks to wait for {wait} s (status {response.status_code}).")


def _asked_to_wait(response: Any) -> int:
    """Seconds; as the client reads the headers that it waits by."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    asked = response.headers.get("Retry-After", "").strip()
    return int(asked) if asked.isdecimal() else 0


def _host(request: Any) -> str:
    return request.url.netloc.decode()


@contextmanager
def bounded(seconds: float, message: Callable[[str], None]) -> Iterator[Watch]:
    """The client with limits, quiet (no bars, no log lines), for as long as the block runs."""
    from huggingface_hub import get_session, set_client_factory
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as hub_logging

    watch = Watch(seconds, message)
    before = get_session()
    make, hooks, timeout = type(before), before.event_hooks, before.timeout
    ours = {
        "request": [*hooks.get("request", ()), watch.before],
        "response": [*hooks.get("response", ()), watch.after],
    }
    set_client_factory(lambda: make(event_hooks=ours, follow_redirects=True))
    bars, verbosity = not are_progress_bars_disabled(), hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disable_progress_bars()
            yield watch
    finally:
        set_client_factory(lambda: make(event_hooks=hooks, follow_redirects=True, timeout=timeout))
        hub_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


@contextmanager
def told(repo: str) -> Iterator[None]:
    """Turns what the client raises into a sentence.

    Raises:
        Refused: the user must change something (the token, rights, the repository's name).
        HubTrouble: the network or the Hub failed.
    """
    from huggingface_hub import errors

    try:
        yield
    except RuntimeError as error:
        # What went wrong in an upload is behind "Error while uploading".
        with told(repo):
            raise error.__cause__ or ValueError(_words(error)) from None
    except errors.OfflineModeIsEnabled as error:
        raise Refused(OFFLINE) from error
    except errors.HfHubHTTPError as error:
        raise _of_status(error, repo) from error
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise HubTrouble(
            f"The connection to the Hub failed ({_words(error)}): check the network, and push "
            "again."
        ) from error
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        # The client takes it for granted that JSON is of the form that it knows.
        raise HubTrouble(
            f"The Hub's answer can't be read ({_words(error)}): it, or a proxy before it, has a "
            "problem; push again later."
        ) from error


def _words(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _of_status(error: Any, repo: str) -> Exception:
    status = error.response.status_code
    said = " ".join((error.server_message or "").split())[:200].rstrip(".")
    reason = f"status {status}: {said}" if said else f"status {status}"
    if status == 401:
        return Refused(
            f"The Hub doesn't accept the token ({reason}): make one with write access at {TOKENS} "
            "and run `hf auth login` (a token in HF_TOKEN goes before it)."
        )
    if status == 403:
        return Refused(
            f"The Hub doesn't let this token write to {repo} ({reason}): use one with write access "
            "to it, another name, or --create-pr."
        )
    if status in (404, 410):
        return Refused(
            f"The Hub has no {repo} that this token may see ({reason}): correct the name, or use a "
            "token of its owner."
        )
    if status in (409, 412):
        return HubTrouble(
            f"{repo} was changed by somebody else meanwhile ({reason}): look at it, and push again."
        )
    if status == 429:
        return HubTrouble(f"The Hub takes no more requests for now ({reason}): push again later.")
    if status >= 500 or status == 408:
        return HubTrouble(f"The Hub has a problem of its own ({reason}): push again later.")
    return Refused(f"The Hub refuses this for {repo} ({reason}): change what it names.")
