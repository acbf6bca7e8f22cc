"""Which problems a step takes: a function of the seed, the step, and for ``focus`` of how groups
went so far, of which a checkpoint holds what is needed.

shuffled    each epoch goes once through a shuffle of (seed, epoch).
sequential  each epoch goes through the problems as the source has them.
easy-first  each epoch goes from the highest measured pass rate to the lowest, equal ones shuffled,
            those that weren't measured last.
focus       half of a step are problems whose last group was neither all right nor all wrong, the
            one seen longest ago first. The others come from a walk through shuffled epochs, on
            which every problem has its turn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from simko_mlx.config import Config
from simko_mlx.learner import random_words
from simko_mlx.types import ScoredGroup

FOCUS_SHARE = 0.5


class Curriculum:
    """The order of the problems of one run; ``ids`` are theirs, in the source's order."""

    def __init__(self, config: Config, ids: Sequence[str], pass_rates: Mapping[str, float]):
        self.seed = config.seed
        self.order = config.data.order
        self.size = config.rollout.problems_per_step
        self.ids = list(ids)
        self.pass_rates = pass_rates
        self.mixed: dict[str, int] = {}  # id -> the step of its last group, where that was mixed
        self.walked = 0  # problems that the walk of `focus` has passed
        self._walked_after = 0  # the same once the step that is going on has ended

    def choose(self, step: int) -> list[int]:
        """The places of a step's problems (from step 1 on), all different."""
        if self.order == "focus":
            return self._focus()
        count = len(self.ids)
        if self.order == "shuffled":  # what is left over at an epoch's end waits for the next
            epoch, place = divmod(step - 1, count // self.size)
            start = place * self.size
        else:  # the same ones would always be left over: the last step reaches back instead
            epoch, place = divmod(step - 1, -(-count // self.size))
            start = min(place * self.size, count - self.size)
        return self._epoch(epoch)[start : start + self.size]

    def record(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Takes note of a step that has ended."""
        if self.order != "focus":
            return
        self.walked = self._walked_after
        for scored in groups:
            right = sum(verdict.correct for verdict in scored.verdicts)
            self.mixed.pop(scored.group.problem.id, None)
            if 0 < right < len(scored.verdicts):
                self.mixed[scored.group.problem.id] = step

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"walked": self.walked, "mixed": self.mixed} if self.order == "focus" else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            self.walked = state["walked"]
            self.mixed = dict(state["mixed"])

    def _epoch(self, epoch: int) -> list[int]:
        places = list(range(len(self.ids)))
        if self.order == "sequential":
            return places
        random.Random(random_words(self.seed, "epoch", epoch)).shuffle(places)
        if self.order == "easy-first":  # sorting is stable: equal ones stay shuffled
            places.sort(key=lambda i: -self.pass_rates.get(self.ids[i], -1.0))
        return places

    def _focus(self) -> list[int]:
        place_of = {name: i for i, name in enumerate(self.ids)}
        longest_ago = sorted(self.mixed, key=lambda name: (self.mixed[name], place_of[name]))
        chosen = [place_of[name] for name in longest_ago[: int(self.size * FOCUS_SHARE)]]
        taken = set(chosen)
        position, epoch, places = self.walked, -1, []
        while len(chosen) < self.size:
            at, i = divmod(position, len(self.ids))
            if at != epoch:
                epoch, places = at, self._epoch(at)
            position += 1
            if places[i] not in taken:
                taken.add(places[i])
                chosen.append(places[i])
        self._walked_after = position
        return chosen
