"""Problem -> prompt token ids, and the set of stop tokens. No model needed, only its tokenizer.

mlx-lm's wrapper turns thinking on by default; here ``prompt.thinking`` decides and defaults to
off. Templates that insert today's date get the run's pinned date, so that a run can be repeated.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from simko_mlx.config import Config, DataConfig, PromptConfig
from simko_mlx.data import examples
from simko_mlx.types import Problem, UserError, require

_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


class PromptEncoder:
    """Renders and encodes prompts for one tokenizer.

    ``data`` is where the solved examples of ``prompt.few_shot`` come from; it is read when the
    first prompt is encoded.

    Raises:
        UserError: ``prompt.chat`` is "always" but the tokenizer has no chat template, the template
            text lacks "{prompt}", or the date is not YYYY-MM-DD.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig, data: DataConfig | None = None):
        self.tokenizer = tokenizer
        self.config = config
        self.data = data or DataConfig()
        has_template = bool(tokenizer.has_chat_template)
        require(
            has_template or config.chat != "always",
            "prompt.chat is 'always' but this model's tokenizer has no chat template: set it to "
            "'auto' or 'never'.",
        )
        require(
            "{prompt}" in config.template,
            f"prompt.template is {config.template!r}: it must contain {{prompt}}, the place of the "
            "problem's text.",
        )
        self.chat = has_template and config.chat != "never"
        try:
            today = datetime.date.today()
            self.date = datetime.date.fromisoformat(config.date) if config.date else today
        except ValueError as error:
            raise UserError(
                f"prompt.date is {config.date!r}: write it as YYYY-MM-DD, e.g. 2026-01-31."
            ) from error

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Token ids of a problem's prompt, with one BOS at most.

        Raises:
            UserError: the chat template rejects the messages, or nothing is left to continue.
        """
        messages = self._messages(problem)
        if self.chat:
            ids = self._encode(self._render(problem, messages), add_special_tokens=False)
        else:
            text = "\n\n".join(m["content"] for m in messages)
            ids = self._encode(text, add_special_tokens=True)
        bos = self.tokenizer.bos_token_id
        while len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos:
            ids = ids[1:]
        require(bool(ids), f"Problem {problem.id} has an empty prompt: check data.prompt.")
        return tuple(ids)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # verbose: transformers would warn about long prompts before we can say it better.
        return list(
            self.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        )

    @cached_property
    def examples(self) -> list[examples.Example]:
        return examples.solved(self.config, self.data) if self.config.few_shot else []

    def _messages(self, problem: Problem) -> list[dict[str, str]]:
        own = self._wrapped(problem.messages)
        system = [] if self.config.system is None else [self.config.system]
        messages = [{"role": "system", "content": text} for text in system]
        while own and own[0]["role"] == "system":
            messages.append(own.pop(0))
        for example in examples.before(self.examples, problem, self.config.few_shot):
            answer = {"role": "assistant", "content": example.solution}
            messages += [*self._wrapped(example.messages), answer]
        return messages + own

    def _wrapped(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Copies, with the template around the last message of the user's."""
        copies = [dict(m) for m in messages]
        for message in reversed(copies):
            if message["role"] == "user":
                # Not str.format: prompts and templates are full of braces, as in \boxed{}.
                message["content"] = self.config.template.replace("{prompt}", message["content"])
                break
        return copies

    def _render(self, problem: Problem, messages: list[dict[str, str]]) -> str:
        template = self.tokenizer.chat_template
        kwargs: dict[str, Any] = {}
        if isinstance(template, str):
            # transformers passes no functions into templates, so the calls are written out.
            kwargs["chat_template"] = _NOW.sub(
                lambda call: json.dumps(self.date.strftime(call[2])), template
            )
            if "date_string" in template:
                kwargs["date_string"] = self.date.strftime("%d %b %Y")
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self.config.thinking,
                **kwargs,
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError) as error:
            raise UserError(
                f"The chat template rejects problem {problem.id}: {error}; check its roles and "
                "prompt.system, or set prompt.chat to 'never'."
            ) from error
        return str(text)

    def encode_all(
        self, problems: Sequence[Problem], limit: int | None
    ) -> tuple[list[tuple[Problem, tuple[int, ...]]], int]:
        """Every problem with its prompt ids, and how many were dropped as longer than ``limit``.

        Raises:
            UserError: a prompt is too long and ``prompt.too_long`` is "refuse".
        """
        kept: list[tuple[Problem, tuple[int, ...]]] = []
        too_long: list[tuple[str, int]] = []
        for problem in problems:
            ids = self.encode(problem)
            if limit is None or len(ids) <= limit:
                kept.append((problem, ids))
            else:
                too_long.append((problem.id, len(ids)))
        if too_long and self.config.too_long == "refuse":
            name, length = too_long[0]
            raise UserError(
                f"The prompt of problem {name} has {length} tokens and there is room for {limit} "
                f"({len(too_long)} of {len(problems)} prompts are too long): set "
                "prompt.too_long=drop to leave them out, or lower rollout.max_completion_length."
            )
        return kept, len(too_long)


def prompt_limit(config: Config, context: int | None) -> int | None:
    """Prompt tokens that leave room for a whole completion; None where nothing limits them."""
    limits = [config.prompt.max_length]
    if context is not None:
        limits.append(context - config.rollout.max_completion_length)
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def stop_tokens(tokenizer: Any, model_path: Path) -> dict[int, str]:
    """Every id that ends a completion, with its text: the union of what the tokenizer, config.json
    and generation_config.json say.

    Raises:
        UserError: none of them names one; completions would never end.
    """
    ids = set(tokenizer.eos_token_ids)
    for name in ("config.json", "generation_config.json"):
        path = model_path / name
        if path.exists():
            config = json.loads(path.read_text(encoding="utf-8"))
            for section in (config, config.get("text_config") or {}):
                value = section.get("eos_token_id")
                ids.update(value if isinstance(value, list) else [value])
    ids = {i for i in ids if isinstance(i, int)}
    require(
        bool(ids),
        f"The model at {model_path} names no stop token: set eos_token_id in its config.json.",
    )
    return {i: str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids)}
