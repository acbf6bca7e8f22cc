"""Problems that programs are judged on, in all forms of tests: the sum of the first n squares."""

from __future__ import annotations

from typing import Any

CALLS: dict[str, Any] = {
    "tests": ["assert f(3) == 14", "assert f(7) == 140", "assert f(0) == 0", "assert f(20) == 2870"]
}
SCRIPT: dict[str, Any] = {
    "tests": [
        {"input": "3\n", "output": "14\n"},
        {"input": "7\n", "output": "140\n"},
        {"input": "20\n", "output": "2870\n"},
    ]
}
JSON: dict[str, Any] = {
    "tests": {"fn_name": "f", "inputs": [[3], [7], [20]], "outputs": [14, 140, 2870]}
}
TRUE: dict[str, Any] = {"tests": ["assert f(3) == True", "assert f(4) == False"]}
ONE: dict[str, Any] = {"tests": ["assert f(3) == 1", "assert f(4) == 0"]}
NAN: dict[str, Any] = {"tests": ["assert f(3) == float('nan')"]}
CLOSE: dict[str, Any] = {"tests": ["assert abs(f(3) - 0.5) < 1e-6"]}
LIST: dict[str, Any] = {"tests": ["assert f(3) == [1, 4, 9]", "assert f(2) == [1, 4]"]}
SET: dict[str, Any] = {"tests": ["assert set(f(3)) == {1, 4, 9}"]}
TEXT: dict[str, Any] = {"tests": ["assert f(3) == 'fourteen'", "assert f(1) == 'one'"]}
HOW: dict[str, Any] = {"tests": ["assert f(3)", "assert not f(4)"]}
