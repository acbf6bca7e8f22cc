"""Which tasks of reasoning-gym may not be used, and why: data for ``gym.py``."""

from __future__ import annotations

EVALUATED = frozenset(
    [
        *("binary_matrix", "countdown", "intermediate_integration", "n_queens"),
        *("polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix"),
        "string_insertion",
    ]
)

# Their scores compare grids as tuples, which JSON has no word for.
TUPLES = frozenset(["arc_agi", "rearc"])

EXCLUDED: dict[str, str] = {
    "boxnet": "its problems come without an answer, so nothing shows that a right one is accepted",
    "codeio": "its problems differ each time they are made, so that no run could be resumed",
    "coin_flip": "it rewards the answer 0 in full for nearly every problem, as the beginning of "
    "the right decimal number",
    "complex_arithmetic": "it rewards the answer nan in full",
    "composite": "it only mixes other tasks",
    "game_of_life_halting": "it rewards any text in full",
    "propositional_logic": "it rewards repeating a premise in full",
    "puzzle24": "it rewards any four numbers that make 24 in full, not only the given ones",
    "rush_hour": "its problems come without an answer, so nothing shows that a right one is "
    "accepted",
}
