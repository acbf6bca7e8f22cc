"""A GGUF file of the fused model, made by llama.cpp's own converter where there is one.

The converter is a script of llama.cpp's repository and needs torch, transformers, sentencepiece and
gguf in the Python that runs it. No package has it, so where it isn't found ``commands`` are what
the user has to run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from simko_mlx.export.base import Base
from simko_mlx.export.fused import fuse
from simko_mlx.export.peft import check_faithful
from simko_mlx.export.source import Source
from simko_mlx.export.torch_process import find_python
from simko_mlx.types import UserError, require

CONVERTER = "convert_hf_to_gguf.py"
LORA_CONVERTER = "convert_lora_to_gguf.py"
REPOSITORY = "https://github.com/ggml-org/llama.cpp"
REQUIREMENTS = "requirements/requirements-convert_hf_to_gguf.txt"
VARIABLE = "LLAMA_CPP"


def find_converter(llama_cpp: Path | None = None) -> Path | None:
    """llama.cpp's converter: in the folder given, else in that of ``LLAMA_CPP``, else on PATH.

    Raises:
        UserError: a folder was named and has none.
    """
    named = os.environ.get(VARIABLE)
    folder = llama_cpp or (Path(named) if named else None)
    if folder is None:
        found = shutil.which(CONVERTER)
        return Path(found).resolve() if found else None
    script = folder.expanduser().resolve() / CONVERTER
    given = "--llama-cpp" if llama_cpp else VARIABLE
    require(
        script.is_file(),
        f"{given} is {folder}, which has no {CONVERTER}: name a checkout of {REPOSITORY}.",
    )
    return script


def write_gguf(
    source: Source,
    base: Base,
    folder: Path,
    converter: Path,
    *,
    python: str | None = None,
    dtype: str | None = None,
) -> list[str]:
    """Writes ``<model>-<type>.gguf`` into a folder; sentences that the user should read.

    The fused model is written beside it first, in full, and removed at the end.

    Args:
        source: the run's checkpoint and the scale of its effect.
        base: its base model.
        folder: made if need be.
        converter: as ``find_converter`` returns it.
        python: the Python that runs the converter; default this one.
        dtype: f32, f16 or bf16. None: the converter's choice, by the weights' own type.

    Raises:
        UserError: as ``fuse``, or the converter fails; its own last words are quoted.
    """
    name = base.name.rstrip("/").rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".gguf-") as temporary:
        fused = Path(temporary) / f"{name}-step-{source.step}"  # GGUF keeps the folder's name
        notes = fuse(source, base, fused, dtype)
        file = Path(temporary) / f"{fused.name}-{{ftype}}.gguf"  # it fills in what it chose
        arguments = [str(fused), "--outfile", str(file), "--outtype", dtype or "auto"]
        _convert([find_python(python), str(converter), *arguments], converter)
        made = sorted(Path(temporary).glob("*.gguf"))
        require(bool(made), f"{converter} wrote no file: run it by hand to see why.")
        for file in made:
            os.replace(file, folder / file.name)
    return notes


def _convert(command: list[str], converter: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise UserError(f"{command[0]} can't be run ({error.strerror}): see --python.") from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else f"exit code {done.returncode}"
    if "ModuleNotFoundError" in last or "ImportError" in last:
        raise UserError(
            f"{CONVERTER} lacks a package in {command[0]} ({last}): `pip install -r "
            f"{converter.parent / REQUIREMENTS}` in an environment of its own, and name its Python "
            "with --python."
        )
    raise UserError(
        f"{CONVERTER} failed ({last}): llama.cpp may not know this model; --to fused makes the "
        "folder that it was given."
    )


def _has_peft(source: Source, base: Base) -> bool:
    try:
        check_faithful(source, base)
    except UserError:
        return False
    return True


def commands(source: Source, base: Base, dtype: str | None = None) -> str:
    """What to run for a GGUF file, where no converter is found; lines for a shell."""
    run, name = shlex.quote(str(source.run_dir)), base.name.rstrip("/").rpartition("/")[2]
    fused, peft = shlex.quote(f"{name}-fused"), shlex.quote(f"{name}-peft")
    scale = "" if source.scale == 1 else f" --scale {source.scale:g}"
    export = f"simko-mlx export {run} --step {source.step}{scale}"
    typed = "" if dtype is None else f" --dtype {dtype}"
    lines = [
        "# once: llama.cpp's converter, in an environment of its own",
        f"git clone --depth 1 {REPOSITORY}",
        "python3 -m venv llama.cpp/.venv",
        f"llama.cpp/.venv/bin/pip install -r llama.cpp/{REQUIREMENTS}",
        "# then either all of it at once",
        f"{export} --to gguf{typed} --llama-cpp llama.cpp --python llama.cpp/.venv/bin/python "
        "--out DIR",
        "# or in two steps",
        f"{export} --to fused --out {fused}",
        f"llama.cpp/.venv/bin/python llama.cpp/{CONVERTER} {fused} --outfile "
        f"{shlex.quote(name + '.gguf')} --outtype {dtype or 'auto'}",
    ]
    if _has_peft(source, base):
        original = shlex.quote(str(base.path)) if base.quantization is None else "BASE"
        lines += [
            "# or the adapter alone, for llama-server --lora",
            f"{export} --to peft --out {peft}",
            f"llama.cpp/.venv/bin/python llama.cpp/{LORA_CONVERTER} {peft} --base {original} "
            f"--outfile {shlex.quote(name + '-lora.gguf')}",
        ]
    return "\n".join(lines) + "\n"
