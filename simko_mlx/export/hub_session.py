"""The Hub's client with bounded waiting, and what its errors mean in one sentence.

The client itself repeats requests that failed for a while (429, 5xx, lost connections), but waits
for a reply as long as it takes, and as long as a ``Retry-After`` says. Here a reply may take
``seconds``, and all waiting between two signs of life three times that.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simko_mlx.types import UserError

CONNECT_SECONDS = 10.0
TOKENS = "https://huggingface.co/settings/tokens"


class HubTrouble(Exception):
    """What the network or the Hub did, in one sentence: trying again may help."""


class Watch:
    """Knows when the Hub last gave a sign of life.

    Raises:
        HubTrouble: from its hooks, where waiting on would take longer than ``patience`` seconds.
    """

    def __init__(self, patience: float, message: Callable[[str], None]) -> None:
        self.patience = patience
        self.message = message
        self.alive()

    def alive(self) -> None:
        self.last = time.monotonic()

    @property
    def waited(self) -> float:
        return time.monotonic() - self.last

    def before(self, request: Any) -> None:
        if self.waited > self.patience:
            raise HubTrouble(f"The Hub ({_host(request)}) didn't answer well for {self.waited:.0f} s")

    def after(self, response: Any) -> None:
        if response.status_code < 400:
            self.alive()
        elif response.status_code in (429, 503):
            asked = response.headers.get("Retry-After", "")
            wait = int(asked) if asked.isdecimal() else 0
            if self.waited + wait > self.patience:
                raise HubTrouble(
                    f"The Hub ({_host(response.request)}) asks to wait for {wait} s before the next "
                    f"request (status {response.status_code})"
                )
            if wait:
                self.message(f"The Hub asks to wait: going on in {wait + 1} s.")


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
        logging,
    )

    watch = Watch(3 * seconds, message)
    before = get_session()
    make, hooks, timeout = type(before), before.event_hooks, before.timeout
    ours = {
        "request": [*hooks.get("request", ()), watch.before],
        "response": [*hooks.get("response", ()), watch.after],
    }
    limits = (min(CONNECT_SECONDS, seconds), seconds, seconds, seconds)
    set_client_factory(lambda: make(event_hooks=ours, follow_redirects=True, timeout=limits))
    bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disable_progress_bars()
            yield watch
    finally:
        set_client_factory(
            lambda: make(event_hooks=hooks, follow_redirects=True, timeout=timeout)
        )
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


@contextmanager
def told(repo: str) -> Iterator[None]:
    """Turns what the client raises into a sentence.

    Raises:
        UserError: the user must change something (the token, rights, the repository's name).
        HubTrouble: the network or the Hub failed.
    """
    from huggingface_hub import errors

    try:
        yield
    except RuntimeError as error:
        # What went wrong in an upload is behind "Error while uploading".
        if error.__cause__ is None:
            raise
        with told(repo):
            raise error.__cause__ from None
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            "HF_HUB_OFFLINE is set, so that nothing can be sent: unset it, and push again."
        ) from error
    except errors.HfHubHTTPError as error:
        raise _of_status(error, repo) from error
    except json.JSONDecodeError as error:
        raise HubTrouble("The Hub's answer is no JSON: it, or a proxy, has a problem") from error
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise HubTrouble(f"The connection to the Hub failed ({_words(error)})") from error


def _words(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _of_status(error: Any, repo: str) -> Exception:
    status = error.response.status_code
    said = _said(error)
    if status == 401:
        return UserError(
            f"The Hub doesn't accept the token{said}: make one with write access at {TOKENS}, and "
            "run `hf auth login` (a token in HF_TOKEN goes before it)."
        )
    if status == 403:
        return UserError(
            f"The Hub doesn't let this token write to {repo}{said}: use one with write access to "
            "it, another name, or --create-pr."
        )
    if status in (404, 410):
        return UserError(
            f"The Hub has no repository {repo} that this token may see{said}: correct its name, or "
            "use a token of its owner."
        )
    if status in (409, 412):
        return HubTrouble(f"{repo} was changed by somebody else meanwhile{said}")
    if status == 429:
        return HubTrouble("The Hub takes no more requests from this account for now (status 429)")
    if status >= 500 or status == 408:
        return HubTrouble(f"The Hub has a problem of its own (status {status}{said})")
    return UserError(f"The Hub refuses {repo} (status {status}{said}): change what it names.")


def _said(error: Any) -> str:
    said = " ".join((getattr(error, "server_message", None) or "").split())
    return f" (it says: {said[:200].rstrip('.')})" if said else ""
