"""The configuration of a run: one source of defaults, the dataclasses below.

Every key is either *semantic* (it decides what is computed; a run can't be resumed with another
value) or *execution* (how fast, in which pieces, how often saved; it may change on resume).
Reading files, environment and flags is in ``config_sources.py``, ranges and what must hold between
keys in ``config_checks.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints


def execution(default: Any) -> Any:
    """A field that doesn't change what is computed, so that a resumed run may change it."""
    return field(default=default, metadata={"execution": True})


@dataclass
class LoraParameters:
    """As mlx-lm's ``lora_parameters``: ``scale`` multiplies directly; ``keys`` None means all."""

    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: list[str] | None = None


@dataclass
class PolicyConfig:
    fine_tune_type: Literal["lora", "full"] = "lora"
    num_layers: int = -1  # from the last layer backwards; 0 or less means all, as in mlx-lm
    lora_parameters: LoraParameters = field(default_factory=LoraParameters)
    adapter_path: str | None = None  # start from this adapter: a folder, or owner/name on the Hub
    adapter_revision: str | None = None  # its branch, tag or commit on the Hub


@dataclass
class PromptConfig:
    template: str = "{prompt}"  # wraps the last user message
    system: str | None = None
    chat: Literal["auto", "always", "never"] = "auto"  # auto: when the tokenizer has a template
    thinking: bool = False
    date: str | None = None  # YYYY-MM-DD for templates that insert today's; None: the start's
    too_long: Literal["refuse", "drop"] = "refuse"
    max_length: int | None = None  # tokens; None: the context less max_completion_length
    few_shot: int = 0  # solved examples before the question: problems to train on, or
    few_shot_path: str | None = execution(None)  # of this file, whose rows are read as data's are
    few_shot_answer: str | None = None  # the column shown as their answer; None: the answer


@dataclass
class DataConfig:
    # countdown | jsonl | json | csv | parquet | mlx-lm | hf | package.module:function
    source: str = "countdown"
    # Where the files lie may change on resume; the trainer checks that the problems have not.
    path: str | None = execution(None)  # a file; mlx-lm: a folder; hf: owner/name
    eval_path: str | None = execution(None)  # None: `heldout` rows are held out of `path` by a hash
    heldout: int = 100
    revision: str | None = None  # hf: a branch, tag or commit
    subset: str | None = None  # hf: the folder of one of several data sets
    split: str = "train"  # hf: to train on
    eval_split: str | None = None  # hf: held out, instead of some of `split`
    prompt: str = "prompt"  # dotted paths into a row, e.g. reward_model.ground_truth
    answer: str = "answer"
    id: str | None = None  # None: a hash of prompt and answer
    bad_rows: Literal["refuse", "drop"] = "refuse"
    deduplicate: bool = True  # one row of each prompt
    limit: int | None = None  # read at most this many rows
    # What was measured before, as by `simko-mlx probe`: lines with id and pass_rate.
    pass_rates: str | None = execution(None)
    min_pass_rate: float | None = None
    max_pass_rate: float | None = None
    unmeasured: Literal["keep", "drop"] = "keep"  # problems that are not in pass_rates
    # easy-first: by pass rate. focus: prefers those whose last group was neither all right nor all
    # wrong.
    order: Literal["shuffled", "sequential", "easy-first", "focus"] = "shuffled"
    size: int = 1000  # problems to generate, for generators
    seed: int = 7  # of the generator


@dataclass
class SandboxConfig:
    """Where completions' own code runs; see docs/sandbox.md."""

    enabled: bool = execution(False)  # code of completions may run, in the sandbox
    uid: int | None = execution(None)  # Linux, as root only: the user that the sandbox runs as


@dataclass
class VerifierConfig:
    name: str = "countdown"  # one of docs/verifiers.md | package.module:function
    options: dict[str, Any] | None = None  # the verifier's own settings
    # Several verifiers instead of one: each with name, options, weight and decides.
    combine: list[dict[str, Any]] | None = None
    correct_at: float = 1.0  # a user function's reward from here on counts as correct
    timeout: float = execution(10.0)  # seconds for one completion
    workers: int = execution(1)
    memory: float = execution(4.0)  # GB that a worker may take
    # A step in which the machinery failed for a larger share of completions stops the run.
    max_fault_rate: float = execution(0.2)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)


@dataclass
class RolloutConfig:
    problems_per_step: int = 8
    group_size: int = 8
    max_completion_length: int = 256
    temperature: float = 1.0
    # Restrict what training samples are drawn from; the loss then scores another distribution than
    # the one that they come from. Evaluations are not restricted.
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = execution(64)  # completions decoded side by side
    prefill_chunk: int = execution(512)  # prompt tokens per forward pass
    # Completions use one copy of their prompt's keys and values. None: on a CPU.
    share_prompts: bool | None = execution(None)


@dataclass
class AdvantageConfig:
    scale_rewards: bool = True  # divide by the group's standard deviation


@dataclass
class LossConfig:
    name: str = "simko"  # simko | grpo | package.module:function
    alpha: float = 0.01  # share of the gradient spread over the top-K (authors: mix_topk_coef)
    simko_k: int = 3
    entropy_quantile: float = 0.8  # authors: tau
    rank1_penalty: float = 1.1  # authors: lambda_top1
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0  # weight of the k3 estimate of KL(policy || base); needs LoRA
    mask_truncated_completions: bool = False


@dataclass
class OptimConfig:
    learning_rate: float = 1e-5
    lr_schedule: dict[str, Any] | None = None  # as mlx-lm: name, arguments, warmup, warmup_init
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    minibatches: int = 1  # updates that a rollout batch is split into
    num_iterations: int = 1  # times that a rollout batch is gone through
    microbatch_size: int | None = execution(None)  # completions per forward pass; None: a group
    # small groups share a forward pass up to so many tokens; None: 1,024, or where microbatch_size
    # is set none do
    microbatch_tokens: int | None = execution(None)
    head_chunk: int | None = execution(None)  # tokens at a time through the head; None: by memory
    # auto: Metal's kernels once they agreed with plain MLX; metal: without asking
    head_backend: Literal["auto", "portable", "metal", "reference"] = execution("auto")
    # fuses operations of the training step; None: on a GPU (on a CPU the compiler takes up to a
    # minute the first time, for a step that is some 10 % faster)
    compile: bool | None = execution(None)


@dataclass
class EvalConfig:
    problems: int = execution(100)
    n: int = execution(16)  # completions per problem; at least twice the largest k
    k: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"execution": True})
    temperature: float = execution(1.0)
    every: int = execution(0)  # steps between small evaluations; 0: only before and after
    every_problems: int = execution(32)
    every_n: int = execution(4)
    budget_minutes: float = execution(10.0)  # for all evaluations of a run; fewer problems fit
    metric: str = execution("pass@1")  # decides which checkpoint is the best
    group_by: str | None = execution(None)  # column whose values get a pass@1 row each
    before: bool = execution(True)
    after: bool = execution(True)


@dataclass
class CheckpointConfig:
    every: int = execution(25)
    keep: int = execution(2)


@dataclass
class MemoryConfig:
    plan: bool = execution(True)  # tell the peak before training, and stop where it can't fit
    dry_step: bool = execution(True)  # try one step of the largest shape before the first
    # In GB; None: what the machine lets a process use, and what the plan leaves of that
    limit: float | None = execution(None)
    cache_limit: float | None = execution(None)  # of MLX's freed buffers
    wired_limit: float | None = execution(None)  # None: macOS's own is left alone


@dataclass
class HubConfig:
    """Where the adapter goes on the Hugging Face Hub after the last step; see docs/hub.md."""

    repo: str | None = execution(None)  # owner/name; None: nowhere
    private: bool = execution(False)
    to: list[str] = field(default_factory=lambda: ["peft", "mlx"], metadata={"execution": True})


@dataclass
class Config:
    model: str = "embedded"  # embedded | a folder | owner/name on the Hugging Face Hub
    model_revision: str | None = None  # its branch, tag or commit on the Hub
    seed: int = 0
    steps: int = execution(100)
    # Layers compute their inside again for the gradient instead of keeping it: much less memory,
    # for another forward pass.
    grad_checkpoint: bool = execution(False)
    output_dir: str | None = execution(None)  # None: runs/<recipe>-<date>-<time>
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    hub: HubConfig = field(default_factory=HubConfig)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted key, field, value) of every key of a config, in the order of declaration."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item, value


def key_types(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every key that a config can have."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            types.update(key_types(hint, f"{prefix}{name}."))  # type: ignore[arg-type]
        else:
            types[prefix + name] = hint
    return types


def semantic(config: Config) -> dict[str, Any]:
    """The keys that decide what is computed."""
    return {key: value for key, item, value in leaves(config) if not item.metadata}


def set_key(config: Config, key: str, value: Any) -> None:
    """Sets a dotted key that is known to exist."""
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, last, value)


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)
