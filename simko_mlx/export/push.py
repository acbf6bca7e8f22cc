"""A run's adapter, with its model card, into a model repository on the Hugging Face Hub.

All that is sent is made in memory from the run, and arrives as one commit or not at all: a push
can be repeated whatever became of the one before, and one that changes nothing makes no commit.
The run's folder is read at the start and neither changed nor locked.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from simko_mlx.config_checks import EXPORTS
from simko_mlx.export import peft
from simko_mlx.export.base import Base, describe_base
from simko_mlx.export.card import card_files
from simko_mlx.export.hub_session import OFFLINE, Refused, bounded, told
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.peft import peft_files
from simko_mlx.export.repository import Content, Delivery, Pushed, Silent
from simko_mlx.export.secrets import require_allowed, require_no_links, require_no_secrets
from simko_mlx.export.source import Source, read_source
from simko_mlx.types import UserError, require


@dataclass(frozen=True)
class PushOptions:
    """What is pushed and how. ``private`` is for a repository that the push makes; ``seconds`` is
    the longest wait for a reply."""

    kinds: tuple[str, ...] = EXPORTS
    step: int | str = "last"
    scale: float = 1.0
    private: bool = False
    create_pr: bool = False
    seconds: float = 60.0


def check_repo(repo: str) -> str:
    """The id of a model repository, "owner/name", or "name" alone for the token's owner.

    Raises:
        UserError: it can't be one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    place = re.match(r"(https?://[^/]+/)?(datasets|spaces)/", repo)
    require(place is None, f"{repo} is no model repository: name it owner/name, as a new one.")
    require("://" not in repo, f"{repo} is an address: write the repository as owner/name.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} can't be a repository's id: write owner/name with letters, digits, -, _ and "
            "single dots, at most 96 characters each."
        ) from error
    return repo


def check_token() -> str:
    """The token that `hf auth login` saved, or that of HF_TOKEN.

    Raises:
        Refused: there is none, it can't be one, or the client is offline.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise Refused(OFFLINE)
    token = get_token()
    if token is None:
        raise Refused(
            "You are not logged in to the Hub: run `hf auth login` with a token that may write, or "
            "set HF_TOKEN."
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise Refused(
            "The token of the Hub holds characters that none has: copy it again, for `hf auth "
            "login` or HF_TOKEN."
        )
    return token


def retry_command(run_dir: Path, repo: str, options: PushOptions) -> str:
    """The command that does this push (again)."""
    words = ["simko-mlx", "push", str(run_dir), repo]
    usual = PushOptions()
    if options.kinds != usual.kinds:
        words += ["--to", ",".join(options.kinds)]
    if options.step != usual.step:
        words += ["--step", str(options.step)]
    if options.scale != usual.scale:
        words += ["--scale", f"{options.scale:g}"]
    if options.seconds != usual.seconds:
        words += ["--timeout", f"{options.seconds:g}"]
    words += ["--private"] if options.private else []
    words += ["--create-pr"] if options.create_pr else []
    return shlex.join(words)


def contents(source: Source, base: Base, kinds: tuple[str, ...], repo: str | None) -> Content:
    """Makes what is sent; where PEFT can't say what the adapter does, and MLX's files are wanted
    too, without PEFT's.

    Raises:
        UserError: the adapter can't be exported.
    """
    files, notes = {}, []
    if "peft" in kinds:
        try:
            files = peft_files(source, base)
            notes = peft.notes(base)
        except UserError as error:
            kinds = tuple(kind for kind in kinds if kind != "peft")
            if not kinds:
                raise
            notes = [f"Without PEFT's files: {error}"]
    if "mlx" in kinds:
        files |= {f"mlx/{name}": data for name, data in mlx_files(source).items()}
    files |= card_files(source, base, kinds, repo)
    return Content(dict(sorted(files.items())), source.step, tuple(notes))


def prepare(run_dir: Path, repo: str, options: PushOptions, token: str | None = None) -> Content:
    """What a push would send; needs no network where the base model is on this machine.

    Raises:
        UserError: it is no run or has no such step, can't be exported in this form, has links in
            the place of its files, or something that looks like a secret.
    """
    require_no_links(run_dir)
    source = read_source(run_dir, options.step, options.scale)
    found = contents(source, describe_base(source.config), options.kinds, repo)
    require_allowed(found.files)
    require_no_secrets(found.files, token)
    return found


def push(run_dir: Path, repo: str, options: PushOptions, progress: Silent | None = None) -> Pushed:
    """Sends a run's adapter and card to the Hub as one commit.

    Raises:
        UserError: the user must change something (Refused where the Hub says so); nothing was
            committed.
        HubTrouble: the network or the Hub failed; the same push can be repeated.
    """
    from huggingface_hub import HfApi

    progress = progress or Silent()
    check_repo(repo)
    token = check_token()
    api = HfApi(token=token, library_name="simko-mlx")
    if "/" not in repo:
        with bounded(options.seconds, progress.message) as watch, told(repo):
            repo = f"{watch.over(api.whoami)['name']}/{repo}"
    found = prepare(run_dir, repo, options, token)
    progress.files(repo, found)
    with bounded(options.seconds, progress.message) as watch, told(repo):
        scaled = "" if options.scale == 1 else f" at scale {options.scale:g}"
        message = f"Upload the adapter of step {found.step}{scaled} with simko-mlx"
        delivery = Delivery(api, repo, progress, watch, options.private, options.create_pr)
        return watch.over(lambda: delivery.go(found.files, message))
