"""``simko-mlx doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from simko_mlx.doctor import Report


@click.command("doctor")
@click.option("--model", metavar="M", help="Look at this model's head; default: a common shape.")
@click.option("--recheck", is_flag=True, help="Forget earlier verdicts on the Metal kernels.")
@click.option(
    "--sandbox", is_flag=False, flag_value=0, type=int, metavar="[UID]",
    help="Only try the sandbox of the verifier code; as root on Linux, as the user UID.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout.")
def command(model: str | None, recheck: bool, sandbox: int | None, as_json: bool) -> int:
    """Show what this machine offers, and whether the Metal kernels are used.

    Exit code 1 where something that the machine has does not work.
    """
    from . import doctor_sandbox, ui

    if sandbox is not None:
        return doctor_sandbox.tell(sandbox or None, as_json=as_json)
    with ui.user_errors():
        from simko_mlx.doctor import examine

        report = examine(model, recheck=recheck)
    if as_json:
        click.echo(json.dumps(ui.finite(report.to_json()), indent=2, allow_nan=False))
    else:
        rows = _rows(report)
        width = max(len(name) for name, _ in rows)
        click.echo("\n".join(f"{name:{width}}  {ui.clean(value)}" for name, value in rows))
    return 0 if report.healthy else 1


def _rows(report: Report) -> list[tuple[str, str]]:
    found = report.environment
    head = report.head

    def versions(*names: str) -> str:
        return ", ".join(f"{name} {found[name]}" for name in names)

    after = "" if head.scale == 1.0 else f", times {head.scale:g}"
    after += "" if head.softcap is None else f", softcap {head.softcap:g}"
    rows = [
        ("versions", versions("simko-mlx", "mlx", "mlx-lm")),
        ("", versions("python", "numpy", "transformers")),
        ("system", found["platform"]),
        ("device", f"{found['device']}, {report.memory_gib:.1f} GiB to work with"),
    ]
    if report.linux:
        advice = "not found: apt install libopenblas0-pthread makes matrix products much faster"
        rows.append(("OpenBLAS", "loaded" if report.openblas else advice))
        advice = "not found: needed where MLX compiles functions (apt install g++)"
        rows.append(("g++", "found" if report.compiler else advice))
    if report.head_problem:
        return [*rows, ("head", f"{report.head_problem}: training holds full logits")]
    return [
        *rows,
        ("head", f"{head.vocabulary:,} tokens, {head.dtype}{after}"),
        ("at a time", f"{report.chunk} tokens, within {report.chunk_budget_gib:.2f} GiB"),
        ("Metal kernels", _kernels(report)),
    ]


def _kernels(report: Report) -> str:
    verdict = report.kernels
    if verdict.ok:
        when = "earlier" if verdict.cached else f"now, in {verdict.seconds:.1f} s"
        return f"on: they agree with plain MLX (checked {when})"
    return f"off: {verdict.reason}; plain MLX is used"
