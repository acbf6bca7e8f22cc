"""Words for a run that can't learn: a group whose rewards are all equal carries no gradient, and
log-probs that differ between sampling and training are those of two policies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from simko_mlx.types import LENGTH, ScoredGroup

WINDOW = 3  # steps that are looked at together
ALMOST = 0.1  # share of groups with different rewards, up to which hardly anything is learnt
REMIND = 10  # steps between reminders
MOST = 0.9  # "nearly all"
GAP = {"float32": 1e-3}  # largest difference of log-probs that rounding explains
GAP_IN_HALF = 0.5  # float16 and bfloat16: single tokens differ by a tenth and more


class SignalWatch:
    """Looks at the last steps and says in words when they taught (almost) nothing, and why."""

    def __init__(self, max_completion_length: int, stop_tokens: Sequence[str]):
        self.max_completion_length = max_completion_length
        self.stop_tokens = stop_tokens
        self.recent: deque[Sequence[ScoredGroup]] = deque(maxlen=WINDOW)
        self.quiet_steps = 0

    def look(self, groups: Sequence[ScoredGroup]) -> str | None:
        """What to tell the user after this step, if anything."""
        self.recent.append(groups)
        if len(self.recent) < WINDOW:
            return None
        window = [scored for step in self.recent for scored in step]
        mixed = sum(any(scored.advantages) for scored in window)
        if mixed > ALMOST * len(window):
            self.quiet_steps = 0
            return None
        self.quiet_steps += 1
        if (self.quiet_steps - 1) % REMIND:
            return None
        words = f"No learning signal for {WINDOW} steps"
        if mixed:
            words = (
                f"Almost no learning signal for {WINDOW} steps ({mixed} of {len(window)} groups "
                "had different rewards)"
            )
        return f"{words}: {self._why(window)}"

    def _why(self, groups: Sequence[ScoredGroup]) -> str:
        completions = [c for scored in groups for c in scored.group.completions]
        verdicts = [v for scored in groups for v in scored.verdicts]
        truncated = sum(c.stop_reason == LENGTH for c in completions) / len(completions)
        correct = sum(v.correct for v in verdicts) / len(verdicts)
        if all(v.reward is None for v in verdicts):
            return (
                f"the verifier could not score a single completion ({verdicts[0].detail}); check "
                "verifier.name and the columns that it reads."
            )
        if correct >= MOST:
            return f"{_share(correct)} correct; choose harder problems."
        if truncated >= 0.5 and correct <= 1 - MOST:
            stops = ", ".join(self.stop_tokens)
            return (
                f"{_share(truncated)} cut at {self.max_completion_length} tokens before they "
                f"ended, and {_share(1 - correct)} wrong; raise rollout.max_completion_length, or "
                f"check that this model ever emits {stops} (a base model does not know its chat "
                "template's end token)."
            )
        if correct <= 1 - MOST:
            return (
                f"{_share(1 - correct)} wrong, though they end by themselves; read a few in "
                "rollouts.jsonl: if the answers look right, the verifier or prompt.template does "
                "not fit, else choose easier problems, a stronger model or a larger "
                "rollout.group_size."
            )
        return (
            "within each group all rewards are equal; a larger rollout.group_size or a higher "
            "rollout.temperature makes groups differ."
        )


class GapWatch:
    """Sounds an alarm where training sees other log-probs than the decoder drew from, once, and
    again each time that the gap has grown tenfold."""

    def __init__(self, dtype: str):
        self.limit = GAP.get(dtype, GAP_IN_HALF)
        self.dtype = dtype

    def look(self, gap: float) -> str | None:
        """What to tell the user of this step's largest difference, if anything."""
        if not gap > self.limit:  # so that NaN is left to the learner, which speaks of it
            return None
        before, self.limit = self.limit, 10 * gap
        return (
            f"Warning: a token's log-probability differs by {gap:.2g} between sampling and "
            f"training, more than rounding in {self.dtype} explains ({before:.2g}): the policy "
            "that is trained is not quite the one that samples; please report the model."
        )


def _share(share: float) -> str:
    if share == 1:
        return "every completion is"
    return f"{min(share, 0.99):.0%} of the completions are"
