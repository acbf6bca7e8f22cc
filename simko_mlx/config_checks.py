"""What the values of a configuration must satisfy: ranges, and what must hold between keys."""

from __future__ import annotations

from simko_mlx.config import Config, DataConfig, PromptConfig, leaves
from simko_mlx.types import require

EXPORTS = ("peft", "mlx")  # what can be pushed


def _positive(config: Config) -> None:
    """Each numeric range, with the key's own name in the message."""
    values = {key: value for key, _, value in leaves(config)}
    at_least = {
        "steps": 1, "seed": 0, "policy.lora_parameters.rank": 1, "data.heldout": 0, "data.size": 1,
        "verifier.workers": 1, "rollout.problems_per_step": 1, "rollout.group_size": 2,
        "rollout.max_completion_length": 1, "rollout.batch_size": 1, "rollout.prefill_chunk": 1,
        "loss.simko_k": 1, "loss.rank1_penalty": 0, "loss.kl_coef": 0, "loss.clip_low": 0,
        "loss.clip_high": 0, "optim.learning_rate": 0, "optim.weight_decay": 0, "optim.minibatches":
        1, "optim.num_iterations": 1, "optim.microbatch_size": 1, "optim.microbatch_tokens": 0,
        "optim.head_chunk": 1, "rollout.top_k": 0, "eval.problems": 1, "eval.n": 2,
        "eval.every": 0, "eval.every_problems": 1, "eval.every_n": 2, "checkpoint.every": 1,
        "checkpoint.keep": 1, "eval.budget_minutes": 0, "data.limit": 1, "prompt.max_length": 1,
        "verifier.sandbox.uid": 1, "verifier.max_fault_rate": 0, "prompt.few_shot": 0,
    }  # fmt: skip
    for key, low in at_least.items():
        value = values[key]
        require(value is None or value >= low, f"{key} is {value}: it must be at least {low}.")
    for key in (
        "rollout.temperature",
        "eval.temperature",
        "verifier.timeout",
        "verifier.memory",
        "optim.eps",
    ):
        require(values[key] > 0, f"{key} is {values[key]}: it must be greater than 0.")
    # More than 8 candidates: the kernels keep them in registers.
    limits = {
        "seed": 2**63 - 1,
        "verifier.timeout": 86_400,
        "verifier.max_fault_rate": 1,
        "loss.simko_k": 8,
    }
    for key, high in limits.items():
        require(values[key] <= high, f"{key} is {values[key]}: it must be at most {high}.")
    require(config.output_dir != "", "output_dir is empty: name a folder, or leave it out.")
    for key in ("memory.limit", "memory.cache_limit", "memory.wired_limit"):
        low = values[key] is None or values[key] > 0
        require(low, f"{key} is {values[key]}: give gigabytes, more than 0, or null.")
    norm = values["optim.max_grad_norm"]
    message = f"optim.max_grad_norm is {norm}: use a positive norm or null."
    require(norm is None or norm > 0, message)
    for key in ("loss.alpha", "loss.entropy_quantile"):
        require(0 <= values[key] <= 1, f"{key} is {values[key]}: it must lie between 0 and 1.")
    top_p = values["rollout.top_p"]
    require(0 < top_p <= 1, f"rollout.top_p is {top_p}: it must be above 0, and at most 1.")
    key = "policy.lora_parameters.dropout"
    require(0 <= values[key] < 1, f"{key} is {values[key]}: it must be below 1, and at least 0.")


def validate(config: Config) -> None:
    """Checks ranges and what must hold between keys.

    Raises:
        UserError: one sentence that names the key, its value and the fix.
    """
    _positive(config)
    rollout, optim, evaluation = config.rollout, config.optim, config.eval
    require(
        len(optim.betas) == 2 and all(0 <= b < 1 for b in optim.betas),
        f"optim.betas is {optim.betas}: give two numbers from 0 up to, not including, 1.",
    )
    require(
        rollout.problems_per_step >= optim.minibatches,
        f"optim.minibatches is {optim.minibatches} but a step has only "
        f"{rollout.problems_per_step} problems: lower it or raise rollout.problems_per_step.",
    )
    validate_k(evaluation.k, evaluation.n)
    require(
        config.loss.kl_coef == 0 or config.policy.fine_tune_type == "lora",
        "loss.kl_coef needs the base model, which full fine-tuning overwrites: set it to 0 or "
        "policy.fine_tune_type to lora.",
    )
    known = [f"pass@{k}" for k in evaluation.k]
    require(
        evaluation.metric in known,
        f"eval.metric is {evaluation.metric!r}: choose one of {', '.join(known)}.",
    )
    k = int(evaluation.metric.removeprefix("pass@"))
    require(
        evaluation.every == 0 or evaluation.every_n >= 2 * k,
        f"eval.metric is {evaluation.metric}, which the small evaluations estimate from "
        f"eval.every_n = {evaluation.every_n} completions: raise it to {2 * k} or more.",
    )
    _data(config.data, config.prompt)
    wrong = [kind for kind in config.hub.to if kind not in EXPORTS]
    require(
        bool(config.hub.to) and not wrong,
        f"hub.to is {config.hub.to}: give one or both of {', '.join(EXPORTS)}.",
    )


def _data(data: DataConfig, prompt: PromptConfig) -> None:
    names = {"mlx-lm": "the folder", "hf": "the data set, as owner/name"}
    names |= dict.fromkeys(("jsonl", "json", "csv", "parquet"), "the file")
    require(
        data.path is not None or data.source not in names,
        f"data.source is {data.source} but data.path is not set: name {names.get(data.source)}.",
    )
    low, high = data.min_pass_rate, data.max_pass_rate
    for key, value in (("min_pass_rate", low), ("max_pass_rate", high)):
        fine = value is None or 0 <= value <= 1
        require(fine, f"data.{key} is {value}: it must lie between 0 and 1.")
    require(
        low is None or high is None or low <= high,
        f"data.min_pass_rate is {low} and data.max_pass_rate {high}: no rate lies between.",
    )
    needs = "data.order is easy-first" if data.order == "easy-first" else ""
    needs = needs or ("" if low is None and high is None else "data.min_pass_rate or max is set")
    require(
        not needs or data.pass_rates is not None,
        f"{needs}, which needs measured pass rates: get them with `simko-mlx probe "
        "CONFIG --write FILE`, and set data.pass_rates=FILE.",
    )
    for key in ("revision", "subset", "eval_split"):
        unread = getattr(data, key) is not None and data.source in names and data.source != "hf"
        require(not unread, f"data.{key} is for data.source=hf: leave it out.")
    require(
        data.eval_path is None or data.eval_split is None,
        "data.eval_path and data.eval_split both say what is held out: keep one of them.",
    )
    shots = prompt.few_shot_path or prompt.few_shot_answer
    require(
        not shots or prompt.few_shot > 0,
        "prompt.few_shot is 0, so that few_shot_path and few_shot_answer have no effect: say how "
        "many examples to show.",
    )


def validate_k(ks: list[int], n: int) -> None:
    """pass@k from n completions is only an estimate worth printing when n >= 2k."""
    require(bool(ks) and all(k >= 1 for k in ks), f"k is {ks}: give at least one number from 1 up.")
    require(
        n >= 2 * max(ks),
        f"pass@{max(ks)} needs n >= {2 * max(ks)} completions per problem and n is {n}: raise n or "
        "drop that k.",
    )
