"""The part of a model card that tells what was measured."""

from __future__ import annotations

from simko_mlx.evaluate import Evaluation
from simko_mlx.export.card_facts import Facts
from simko_mlx.export.markdown import plain, table
from simko_mlx.export.measured import START, at_k, change
from simko_mlx.export.public import public_text
from simko_mlx.metrics import Interval

NAMES = {"base": "base", START: "start"}
MOST_GROUPS = 24  # rows of the table by group


def results(facts: Facts) -> list[str]:
    """Paragraphs of the section, without pictures."""
    trained = facts.measured.trained
    if trained is None and not facts.held_out:
        return ["Not measured: the run held no problems out."]
    if trained is None:
        return [
            "Not measured: this checkpoint has no evaluation on held-out problems. Where the run "
            f"is, `{eval_command(facts)}` makes one.",
        ]
    return [
        _pass_at_k(facts, trained),
        _settings(facts, trained),
        *_remarks(facts, trained),
        *_groups(facts, trained),
    ]


def concentration(facts: Facts) -> list[str]:
    """How sure the model is of its tokens, before and after."""
    trained = facts.measured.trained
    if trained is None:
        return []
    head = ["", "entropy", "rank 1", "rank 2", "rank 3", *(f"rank {i}, forking" for i in (1, 2, 3))]
    rows = [
        [name, _nats(e.entropy), *map(_share, [*e.rank_probs, *e.fork_rank_probs])]
        for name, e in _named(facts, trained)
    ]
    return [
        "Entropy of the next token in nats, and the mean probability of the first three "
        "candidates, over all tokens of the sampled completions and over the forking ones (those "
        f"of highest entropy, above the quantile {facts.config.loss.entropy_quantile:g} of their "
        "completion), at temperature 1.",
        table(head, rows),
    ]


def eval_command(facts: Facts) -> str:
    """The command that measures this checkpoint beside its base."""
    words = ["simko-mlx eval RUN --base", f"--step {facts.source.step}"]
    if facts.source.scale != 1:
        words.append(f"--scale {facts.source.scale!r}")
    trained = facts.measured.trained
    if trained is not None:
        ks = ",".join(str(k) for k in sorted(trained.pass_at_k))
        words.append(f"--k {ks} --n {trained.n} --problems {trained.problems}")
    return " ".join(words)


def _named(facts: Facts, trained: Evaluation) -> list[tuple[str, Evaluation]]:
    return [*((NAMES[e.label], e) for e in facts.measured.before), ("trained", trained)]


def _pass_at_k(facts: Facts, trained: Evaluation) -> str:
    ks = sorted(trained.pass_at_k)
    rows = []
    if trained.chance is not None:
        rows.append(["chance", *(_percent(trained.chance.get(k)) for k in ks)])
    for name, evaluation in _named(facts, trained):
        estimate = [_interval(at_k(evaluation, k)) for k in ks]
        rows.append([f"**{name}**" if evaluation is trained else name, *estimate])
    for before in facts.measured.before:
        which = f"change from {NAMES[before.label]}"
        rows.append([which, *(_interval(change(before, trained, k), "+") for k in ks)])
    return table(["in %", *(f"pass@{k}" for k in ks)], rows)


def _settings(facts: Facts, trained: Evaluation) -> str:
    by = "`simko-mlx eval`" if facts.measured.by_eval else "the training run itself"
    told = [
        "pass@k is the chance that at least one of k completions is right, with 95 % intervals "
        "over problems in brackets.",
        f"Measured by {by} on {trained.problems:,} held-out problems, {trained.n} completions each "
        f"at temperature {trained.temperature:g}, of at most {trained.max_completion_length:,} "
        f"tokens; the mean length was {trained.mean_length:.1f} tokens.",
    ]
    if trained.chance is not None:
        told.append("Chance is a policy without preference among the valid answers to a problem.")
    if START in [e.label for e in facts.measured.before]:
        told.append("Start is the adapter that this run started from.")
    if facts.measured.before:
        told.append("Changes are paired: both models answered the same problems.")
    return " ".join(told)


def _remarks(facts: Facts, trained: Evaluation) -> list[str]:
    told = list(facts.measured.remarks)
    for before in facts.measured.before:
        changes = {k: change(before, trained, k) for k in sorted(trained.pass_at_k)}
        unclear = [str(k) for k, found in changes.items() if found.low <= 0 <= found.high]
        if unclear:
            told.append(
                f"For k = {', '.join(unclear)} the interval of the change from "
                f"{NAMES[before.label]} includes 0: no difference was shown there."
            )
        worse = [str(k) for k, found in changes.items() if found.high < 0]
        if worse:
            told.append(f"For k = {', '.join(worse)} it is worse than {NAMES[before.label]}.")
    cut = [(name, e.truncated) for name, e in _named(facts, trained)]
    if any(share for _, share in cut):
        shares = ", ".join(f"{name} {_percent(share)} %" for name, share in cut)
        told.append(f"Completions cut off at the limit of tokens: {shares}.")
    for name, evaluation in _named(facts, trained):
        told += _unscorable(name, evaluation)
    return [" ".join(told)] if told else []


def _unscorable(name: str, evaluation: Evaluation) -> list[str]:
    told = []
    if evaluation.unscorable:
        most = ", ".join(f"pass@{k} {_percent(v)} %" for k, v in sorted(evaluation.bound.items()))
        told.append(
            f"{_percent(evaluation.unscorable)} % of {name}'s completions could not be scored and "
            f"count as wrong; if all of those were right it would be {most or 'more'}."
        )
    if evaluation.note:
        told.append(f"{name.capitalize()}: {plain(public_text(evaluation.note))}.")
    return told


def _groups(facts: Facts, trained: Evaluation) -> list[str]:
    """pass@1 of parts of the problems, where the run told them apart."""
    columns = _named(facts, trained)
    parts = list(dict.fromkeys(part for _, e in columns for part in e.groups))
    if not parts:
        return []
    rows = [
        [plain(public_text(part)), *(_interval(e.groups.get(part)) for _, e in columns)]
        for part in parts[:MOST_GROUPS]
    ]
    more = len(parts) - MOST_GROUPS
    found = [table(["pass@1 in %", *(name for name, _ in columns)], rows)]
    return [*found, f"{more} more groups are in `training/evaluation.json`."] if more > 0 else found


def _interval(value: Interval | None, sign: str = "-") -> str:
    if value is None:
        return "-"
    numbers = (format(100 * value.estimate, f"{sign}.1f"), *_bounds(value))
    return "{} [{}, {}]".format(*numbers).replace("-", "\N{MINUS SIGN}")


def _bounds(value: Interval) -> tuple[str, str]:
    return f"{100 * value.low:.1f}", f"{100 * value.high:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _nats(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _share(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
