"""The part of a model card that tells how to use the model, and the prompt that it expects."""

from __future__ import annotations

import shlex
from datetime import date

from simko_mlx.data import load
from simko_mlx.export.card_facts import Facts
from simko_mlx.export.markdown import block, code, literal
from simko_mlx.model_files import EMBEDDED

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
QUESTION = "YOUR QUESTION"
ORIGINAL = "ORIGINAL"  # in commands, for what a quantised base was made from
SHOWN = ("countdown", "instructions")  # problem sources that are made offline, of nobody's data


def usage(facts: Facts) -> list[str]:
    """Paragraphs for each program that the files are for."""
    parts = [_placeholders(facts)]
    if "mlx" in facts.kinds or "fused" in facts.kinds:
        parts += ["### mlx-lm", *_mlx(facts)]
    if facts.in_transformers:
        parts += ["### transformers", *_transformers(facts), "### vLLM", *_vllm(facts)]
    return [part for part in [*parts, "### LM Studio", *_lm_studio(facts)] if part]


def prompt_format(facts: Facts) -> list[str]:
    """What the model was asked like; without it the figures don't hold."""
    prompt = facts.config.prompt
    told = ["The run trained with prompts of this form:", ""]
    if facts.measured.trained is not None:
        told[0] = "The figures hold for prompts in the form that the run trained with:"
    if facts.uses_chat:
        thinking = "on" if prompt.thinking else "off"
        told.append(f"- the tokenizer's chat template, thinking {thinking} (`enable_thinking`)")
        if prompt.date and _has_date(facts):
            told.append(f"- the date that the template inserts: {code(prompt.date)}")
    else:
        told.append("- plain text without a chat template, which the model continues")
    if prompt.few_shot:
        told.append(
            f"- {prompt.few_shot} solved examples before the question, which the code above leaves "
            "out (`prompt.few_shot` in `training/config.yaml`)"
        )
    told.append(
        f"- sampling at temperature {facts.temperature:g} from the whole vocabulary, "
        f"at most {_limit(facts):,} new tokens"
    )
    parts = ["\n".join(told)]
    if prompt.system is not None:
        parts += ["System prompt:", block(prompt.system, "text")]
    if prompt.template != "{prompt}":
        parts += [
            "Around the question, in the place of `{prompt}`:",
            block(prompt.template, "text"),
        ]
    return parts + _example(facts)


def _example(facts: Facts) -> list[str]:
    """A question, where it was generated: one of a file's may not be for everyone to see."""
    data = facts.source.config.data
    if data.source not in SHOWN:
        return []
    question = (load(data).heldout or load(data).train)[0].messages[-1]["content"]
    return ["A question, as the generator makes it:", block(question, "text")]


def _placeholders(facts: Facts) -> str:
    told = []
    if facts.repo is None:
        told.append("`FOLDER` is the folder that these files are in.")
    elif "mlx" in facts.kinds or facts.is_finetune:
        told.append("`FOLDER` is a folder of your choice for the download.")
    if facts.model == "MODEL" and "fused" not in facts.kinds:
        if facts.base.path == EMBEDDED:
            told.append(
                "`MODEL` is the folder that `python -c 'from simko_mlx.model_files import "
                "EMBEDDED; print(EMBEDDED)'` prints, where simko-mlx is installed."
            )
        else:
            told.append(
                f"`MODEL` is the folder of the base model, {code(facts.base_short)}, which is not "
                "on the Hub under a name that the run knew."
            )
    if facts.in_transformers and "fused" not in facts.kinds and _peft_model(facts) == ORIGINAL:
        told.append(f"`{ORIGINAL}` is the model in full precision that the base was made from.")
    return " ".join(told)


def _messages(facts: Facts) -> list[str]:
    """Python that asks the question as the run did."""
    prompt = facts.config.prompt
    text = prompt.template.replace("{prompt}", QUESTION)
    if facts.uses_chat:
        lines = ["messages = ["]
        if prompt.system is not None:
            lines.append(f'    {{"role": "system", "content": {literal(prompt.system)}}},')
        return [*lines, f'    {{"role": "user", "content": {literal(text)}}},', "]"]
    whole = text if prompt.system is None else f"{prompt.system}\n\n{text}"
    return [f"prompt = {literal(whole)}"]


def _has_date(facts: Facts) -> bool:
    return any(name in facts.chat_template for name in ("date_string", "strftime_now"))


def _chat_arguments(facts: Facts) -> dict[str, object]:
    """What the run gives to the chat template."""
    prompt = facts.config.prompt
    given: dict[str, object] = {}
    if prompt.date and "date_string" in facts.chat_template:
        given["date_string"] = date.fromisoformat(prompt.date).strftime("%d %b %Y")
    return {"enable_thinking": prompt.thinking, **given}


def _chat_call(facts: Facts, more: str = "") -> str:
    given = [f"{name}={value!r}" for name, value in _chat_arguments(facts).items()]
    arguments = ", ".join(["messages", "add_generation_prompt=True", *given])
    return f"tokenizer.apply_chat_template({arguments}{more})"


def _limit(facts: Facts) -> int:
    return facts.config.rollout.max_completion_length


def _download(facts: Facts, include: str = "") -> str:
    only = f" --include {shlex.quote(include)}" if include else ""
    return f"hf download {shlex.quote(facts.place)}{only} --local-dir FOLDER"


def _mlx(facts: Facts) -> list[str]:
    if "fused" in facts.kinds:
        model, adapter = facts.place, ""
    else:
        model, adapter = facts.model, f', adapter_path="{facts.mlx_folder}"'
        if facts.base.revision:
            adapter += f', revision="{facts.base.revision}"'
    lines = [
        "from mlx_lm import generate, load",
        "from mlx_lm.sample_utils import make_sampler",
        "",
        f"model, tokenizer = load({literal(model)}{adapter})",
        *_messages(facts),
    ]
    if facts.uses_chat:
        lines.append(f"prompt = {_chat_call(facts)}")
    temperature = repr(facts.temperature)
    lines += [
        f"sampler = make_sampler(temp={temperature})",
        f"print(generate(model, tokenizer, prompt, max_tokens={_limit(facts)}, sampler=sampler))",
    ]
    parts = []
    if facts.repo and "fused" not in facts.kinds:
        parts.append(block(_download(facts, "mlx/*"), "sh"))
    return [*parts, block("\n".join(lines), "python")]


def _transformers(facts: Facts) -> list[str]:
    fused = "fused" in facts.kinds
    model = facts.place if fused else _peft_model(facts)
    pinned = facts.base.revision if not fused and facts.base.quantization is None else None
    revision = f', revision="{pinned}"' if pinned else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if not fused:
        lines.insert(0, "from peft import PeftModel")
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({literal(model)}{revision})",
        f'model = AutoModelForCausalLM.from_pretrained({literal(model)}{revision}, dtype="auto")',
    ]
    if not fused:
        lines.append(f"model = PeftModel.from_pretrained(model, {literal(facts.place)})")
    lines += _messages(facts)
    if facts.uses_chat:
        lines.append(
            f"inputs = {_chat_call(facts, ', return_dict=True, return_tensors=' + literal('pt'))}"
        )
    else:
        lines.append('inputs = tokenizer(prompt, return_tensors="pt")')
    temperature = repr(facts.temperature)
    lines += [  # all of it, since the model's own generation_config.json may say otherwise
        f"output = model.generate(**inputs, max_new_tokens={_limit(facts)}, do_sample=True, "
        f"temperature={temperature}, top_k=0, top_p=1.0, repetition_penalty=1.0)",
        "answer = output[0, inputs['input_ids'].shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    found = [block("\n".join(lines), "python")]
    if not fused and facts.base.quantization is not None:
        found.insert(
            0,
            "PEFT can't load the quantised base that the adapter was trained on. On the model in "
            "full precision the answers differ a little, and the figures above do not hold "
            "exactly.",
        )
    return found


def _peft_model(facts: Facts) -> str:
    """The base model in commands of transformers and vLLM."""
    quantised = facts.base.quantization is not None
    return facts.original_id or ORIGINAL if quantised else facts.model


def _vllm(facts: Facts) -> list[str]:
    name = facts.title
    if "fused" in facts.kinds:
        serve = f"vllm serve {shlex.quote(facts.place)}"
        name = facts.place
    else:
        rank = next((r for r in VLLM_RANKS if r >= facts.rank), facts.rank)
        module = shlex.quote(f"{name}={facts.place}")
        serve = (
            f"vllm serve {shlex.quote(_peft_model(facts))} --enable-lora --max-lora-rank {rank} "
            f"--lora-modules {module}"
        )
    prompt = facts.config.prompt
    text = prompt.template.replace("{prompt}", QUESTION)
    body: dict[str, object] = {"model": name}
    if facts.uses_chat:
        system = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
        body["messages"] = [*system, {"role": "user", "content": text}]
        body["chat_template_kwargs"] = _chat_arguments(facts)
    else:
        body["prompt"] = text if prompt.system is None else f"{prompt.system}\n\n{text}"
    body |= {"max_tokens": _limit(facts), "temperature": facts.temperature}
    # vLLM would take the model's own defaults.
    body |= {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
    way = "chat/completions" if facts.uses_chat else "completions"
    ask = (
        f"curl http://localhost:8000/v1/{way} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(literal(body))}"
    )
    return [block(f"{serve}\n# and in another terminal\n{ask}", "sh")]


def _lm_studio(facts: Facts) -> list[str]:
    folder = "`~/.lmstudio/models/OWNER/NAME`"
    if "fused" in facts.kinds:
        download = f", with `{_download(facts)}` if need be" if facts.repo else ""
        return [f"Put the files into a folder {folder}{download}, and load it there."]
    told = "LM Studio loads whole models, no adapters"
    if "mlx" not in facts.kinds:
        scale = f" --scale {facts.source.scale!r}" if facts.source.scale != 1 else ""
        export = f"simko-mlx export RUN --step {facts.source.step}{scale} --to fused --out FUSED"
        return [f"{told}: where the run is, `{export}` makes one; put it into a folder {folder}."]
    dequantize = " --dequantize" if facts.base.quantization is not None else ""
    fuse = (
        f"mlx_lm.fuse --model {shlex.quote(facts.model)} --adapter-path {facts.mlx_folder} "
        f"--save-path FUSED{dequantize}"
    )
    return [f"{told}. Merge this one with its base, and put `FUSED` into a folder {folder}:",
            block(fuse, "sh")]  # fmt: skip
