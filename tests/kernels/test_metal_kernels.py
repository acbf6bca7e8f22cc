"""The Metal kernels: on a Mac's Metal, elsewhere MLX's own text of them compiled by g++.

Emulated, every call runs under three schedules of its threads that must agree bit for bit.
"""

from __future__ import annotations

import mlx.core as mx
import pytest

from simko_mlx.kernels import metal, metal_cases
from tests.kernels.metal_checks import CHECKS
from tests.kernels.metal_fixture import metal_backend  # noqa: F401
from tests.metal_emulator import EmulatedMetalKernel, EmulatorError, needs_gxx

only_emulated = pytest.mark.skipif(
    mx.metal.is_available(), reason="kernels can't be broken or sanitized on Metal itself"
)

# name -> (the check that must fail, what stands in the text, what to put there)
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "no barrier between simdgroups and the last merge": (
        "plain", "threadgroup_barrier(mem_flags::mem_threadgroup);", ";",
    ),
    "an old maximum is forgotten by the sum": (
        "rising", "rises ? (a.tail + 1.0f) * e", "rises ? a.tail * e",
    ),
    "an old maximum is forgotten by the entropy": (
        "rising", "(a.weighted + d * (a.tail + 1.0f)) * e", "(a.weighted + d * a.tail) * e",
    ),
    "the sum isn't scaled when the maximum rises": (
        "rising", "rises ? (a.tail + 1.0f) * e", "rises ? a.tail + 1.0f",
    ),
    "a merge forgets the lower part's maximum": (
        "plain", "high.tail += (low.tail + 1.0f) * e;", "high.tail += low.tail * e;",
    ),
    "a merge forgets the lower part's depth": (
        "plain", "(low.weighted + d * (low.tail + 1.0f)) * e", "low.weighted * e",
    ),
    "the maximum counts in its own tail": (
        "sure", "tail[row] = broken ? NAN : sums.tail;", "tail[row] = (1.0f + sums.tail) - 1.0f;",
    ),
    "idle lanes pretend to have seen a 0": (
        "all_negative", "used ? group_m[lane] : SIMKO_LOWEST", "used ? group_m[lane] : 0.0f",
    ),
    "the higher index first among ties": ("ties", "v == w && i < j", "v == w && i > j"),
    "masked tokens are never candidates": ("masked", "raw >= bar &&", "raw > bar &&"),
    "a winner stays in its list": ("plain", "bool mine = ids[0] == i;", "bool mine = false;"),
    "the list forgets its last place": (
        "every_k", "for (int j = 0; j + 1 < L; j++) {", "for (int j = 0; j + 2 < L; j++) {",
    ),
    "one token too many is read": ("odd_widths", "if (column < V) {", "if (column <= V) {"),
    "the last round is left out": (
        "odd_widths", "(V + THREADS * RUN - 1) / (THREADS * RUN)", "V / (THREADS * RUN)",
    ),
    "the first row's token for every row": ("plain", "tokens[row]", "tokens[0]"),
    "broken logits are not noticed": ("lost", "broken ? NAN : sums.tail", "sums.tail"),
    "a difference of infinities": (
        "masked", "return metal::max(difference, SIMKO_NEGLIGIBLE);", "return difference;",
    ),
    "no temperature": ("settings", "return z * head.inverse_temperature;", "return z;"),
    "no cap": ("settings", "head.cap * metal::precise::tanh(z / head.cap)", "z"),
    "no scale": ("settings", "float z = raw * head.scale;", "float z = raw;"),
    "the special tokens stay in the tail": ("plain", "O(skipped ? 0.0f : e)", "O(e)"),
    "only the first special token leaves the tail": (
        "plain", "skipped = skipped || skip[j] == column", "skipped = skip[0] == column",
    ),
    "the tail without the cap's slope": (
        "settings", " * simko_slope(raw, settings);", " * simko_slope(0.0f, settings);",
    ),
    "the tail relative to 0": ("plain", "simko_cut(z - below)", "simko_cut(z)"),
    "the tail of the first row only": ("plain", "shift[row]", "shift[0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_agree_with_float64(metal_backend, name):  # noqa: F811
    CHECKS[name]()


@only_emulated
@needs_gxx
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_fails_its_check(metal_backend, monkeypatch, name):  # noqa: F811
    check, old, new = MUTATIONS[name]
    whole = "".join(metal.source(part) for part in ("common", "forward", "tail"))
    assert old in whole, "the text to change is no longer there: change the mutation with it"
    changed = []

    def mutate(text: str) -> str:
        changed.append(old in text)
        return text.replace(old, new)

    monkeypatch.setattr(EmulatedMetalKernel, "mutate", mutate)
    with pytest.raises((AssertionError, EmulatorError)):
        CHECKS[check]()
    assert any(changed), "the check runs no kernel with that text in it"


@only_emulated
@needs_gxx
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("odd_widths", marks=pytest.mark.slow),
        pytest.param("ties", marks=pytest.mark.slow),
        "masked",
        "lost",
        "settings",
        "half_types",
    ],
)
def test_kernels_under_address_and_undefined_behaviour_sanitizers(
    metal_backend,  # noqa: F811
    monkeypatch,
    name,
):
    monkeypatch.setattr(EmulatedMetalKernel, "sanitize", "address,undefined")
    monkeypatch.setattr(EmulatedMetalKernel, "schedules", ("forward",))
    CHECKS[name]()


@only_emulated
@needs_gxx
def test_a_read_past_the_logits_is_seen_by_the_sanitizer(metal_backend, monkeypatch):  # noqa: F811
    monkeypatch.setattr(EmulatedMetalKernel, "sanitize", "address")
    monkeypatch.setattr(
        EmulatedMetalKernel, "mutate", lambda text: text.replace("column < V", "column <= V")
    )
    with pytest.raises(EmulatorError, match="AddressSanitizer"):
        CHECKS["odd_widths"]()


@pytest.mark.parametrize("case", list(metal_cases.cases(2003, "bfloat16", 1.0, 30.0)), ids=str)
def test_kernels_agree_with_the_portable_path(metal_backend, case):  # noqa: F811
    """The cases of the check that a Mac makes before it uses the kernels."""
    assert metal_cases.disagreement(case) is None


@only_emulated
@needs_gxx
@pytest.mark.parametrize("name", sorted(MUTATIONS)[::5])
def test_the_check_before_use_notices_a_broken_kernel(metal_backend, monkeypatch, name):  # noqa: F811
    _, old, new = MUTATIONS[name]
    monkeypatch.setattr(EmulatedMetalKernel, "mutate", lambda text: text.replace(old, new))
    try:
        problem = metal_cases.first_disagreement(1009, "float32")
    except EmulatorError as error:
        problem = str(error)
    assert problem
