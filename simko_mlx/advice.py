"""Words for a run that can't learn: rewards that are all equal carry no gradient."""

from __future__ import annotations

from collections.abc import Sequence

from simko_mlx.types import LENGTH, ScoredGroup

PATIENCE = 3  # steps without signal before it is said
REMIND = 10  # steps between reminders


class SignalWatch:
    """Counts steps in which no group had different rewards."""

    def __init__(self, max_completion_length: int, stop_tokens: Sequence[str]):
        self.max_completion_length = max_completion_length
        self.stop_tokens = stop_tokens
        self.silent_steps = 0

    def look(self, groups: Sequence[ScoredGroup]) -> str | None:
        """What to tell the user after this step, if anything."""
        if any(any(scored.advantages) for scored in groups):
            self.silent_steps = 0
            return None
        self.silent_steps += 1
        if self.silent_steps < PATIENCE or (self.silent_steps - PATIENCE) % REMIND:
            return None
        return f"No learning signal for {self.silent_steps} steps: {self._why(groups)}"

    def _why(self, groups: Sequence[ScoredGroup]) -> str:
        completions = [c for scored in groups for c in scored.group.completions]
        verdicts = [v for scored in groups for v in scored.verdicts]
        truncated = sum(c.stop_reason == LENGTH for c in completions) / len(completions)
        if all(v.reward is None for v in verdicts):
            return (
                f"the verifier could not score a single completion ({verdicts[0].detail}); check "
                "verifier.name and the columns that it reads."
            )
        if all(v.correct for v in verdicts):
            return "every completion is correct; choose harder problems."
        if truncated >= 0.9 and not any(v.correct for v in verdicts):
            stops = ", ".join(self.stop_tokens)
            return (
                f"{truncated:.0%} of the completions were cut at {self.max_completion_length} "
                "tokens before they ended, and none was correct; raise "
                f"rollout.max_completion_length, or check that this model ever emits {stops} (a "
                "base model does not know its chat template's end token)."
            )
        if not any(v.correct for v in verdicts):
            return (
                "every completion is wrong, though they end by themselves; read a few in "
                "rollouts.jsonl: if the answers look right, the verifier or prompt.template does "
                "not fit, else choose easier problems, a stronger model or a larger "
                "rollout.group_size."
            )
        return (
            "within each group all rewards are equal; a larger rollout.group_size or a higher "
            "rollout.temperature makes groups differ."
        )
