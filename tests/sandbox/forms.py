# ruff: noqa: E501  programs on few lines
"""More of what models write, as whole completions, and more ways to want the reward without work.

The tests of a problem are of all three kinds; ``honest.py`` and ``hacks.py`` have single programs.
"""

from __future__ import annotations

from typing import Any

from tests.sandbox.honest import calls, cases, tests
from tests.sandbox.problems import CALLS, HOW, JSON, SCRIPT, TEXT

_SUM = "n * (n + 1) * (2 * n + 1) // 6"
_F = f"def f(n):\n    return {_SUM}\n"


def fence(code: str, mark: str = "python") -> str:
    return f"```{mark}\n{code}\n```\n"


def humaneval(body: str, name: str = "f") -> dict[str, Any]:
    return {"test": f"def check(candidate):\n{body}\n\ncheck({name})\n", "entry_point": name}


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "an example behind it": (CALLS, fence(_F) + "Usage:\n" + fence("print(f(3))  # 14")),
    "its output behind it": (CALLS, fence(_F) + "Output:\n" + fence("14", "")),
    "an example that needs it, of a method": (
        calls("g", ([3], 9)),
        fence("class Solution:\n    def g(self, n: int) -> int:\n        return n * n")
        + fence("print(Solution().g(3))"),
    ),
    "a draft before it": (CALLS, "First:\n" + fence("def f(n):\n    return 0") + fence(_F) + "Done."),
    "tests of its own behind it": (
        CALLS,
        fence(_F) + fence("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(3), 14)"),
    ),
    "a shell command between": (CALLS, fence(_F, "py") + fence("python main.py", "bash")),
    "python3, with prose around": (CALLS, "Sure!\n\n" + fence(_F, "python3") + "\nIt's O(1)."),
    "no mark": (CALLS, "Here:\n" + fence(_F, "") + "The formula is known."),
    "no fence": (CALLS, _F),
    "a title on the fence": (CALLS, fence(_F, 'python title="main.py"')),
    "a lambda and an example": (CALLS, fence(f"f = lambda n: {_SUM}") + fence("f(3)")),
    "a script, then its input": (SCRIPT, fence(f"n = int(input())\nprint({_SUM})") + "Input:\n" + fence("3", "text")),
    # HumanEval
    "HumanEval: the prompt's import left out": (
        humaneval("    assert candidate([1.0], 2) == [3.0]\n    assert candidate([], 1) == []"),
        fence("def f(a: List[float], b: Optional[int] = None) -> List[float]:\n    return [x + b for x in a]"),
    ),
    "HumanEval: METADATA, a docstring, nearness, a stray name": (
        {
            "test": "\n\nMETADATA = {\n    'author': 'jt',\n    'dataset': 'test'\n}\n\n\ndef check(candidate):\n"
            "    '''all'''\n    # simple ones\n    print\n    assert abs(candidate(2.0) - 0.5) < 1e-6\n"
            "    assert candidate(-4) == -0.25, \"it's negative\"\n    assert True, 'edge'\n",
            "entry_point": "f",
        },
        fence("def f(x):\n    return 1 / x"),
    ),
    "HumanEval: a method": (
        {
            "test": "def check(candidate):\n    assert candidate(nums = [3,3], target = 6) == [0, 1]\n",
            "entry_point": "Solution().twoSum",
        },
        fence(
            "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        seen = {}\n"
            "        for i, n in enumerate(nums):\n            if target - n in seen: return [seen[target - n], i]\n"
            "            seen[n] = i"
        ),
    ),
    "HumanEval: helpers below": (
        humaneval("    assert candidate('ab') == 'ba'\n    assert not candidate('')"),
        fence("def f(s):\n    return g(s)\n\ndef g(s):\n    return s[::-1]\n\nif __name__ == '__main__':\n    print(f(input()))"),
    ),
    # asserts
    "a match is true, None is not": (
        tests("assert f('a1')", "assert not f('b')", "assert bool(f('a')) == True", "assert not bool(f(''))"),
        "import re\ndef f(s): return re.match(r'a\\d?$', s)",
    ),
    "an object's own truth": (
        HOW,
        "class P:\n    def __init__(self, n): self.n = n\n    def __bool__(self): return self.n % 2 == 1\ndef f(n): return P(n)",
    ),
    "quotes, newlines, backslashes": (
        tests(r"""assert f("it's \"x\"\n\t\\") == 'it\'s "x"\n\t\\'""", 'assert f("""a\nb""") == "a\\nb"'),
        "def f(s): return s",
    ),
    "implicit joining and unicode": (tests("assert f('a' 'ß') == 'aß😀'"), "def f(s): return s + '😀'"),
    "nested calls of literals": (
        tests("assert f(set([1]), tuple([2, 3]), dict([(1, 2)]), sorted([3, 1])) == (1, 2, 1, 2)"),
        "def f(*a): return tuple(len(x) for x in a)",
    ),
    "deep in tuples, sets and dicts": (
        tests("assert f(1) == {(1, 'a'): [{2, 3}, frozenset([1])], None: ((), [], {}, set())}"),
        "def f(n): return {(1, 'a'): [{3, 2}, {1}], None: ((), [], {}, set())}",
    ),
    "keyword only and defaults": (
        tests("assert f(1, key=(2, 3)) == 6"),
        "def f(n, /, *, key=()): return n + sum(key)",
    ),
    "False is not 0 but the truth": (tests("assert f(4) == False", "assert f(3) is True"), "def f(n): return bool(n & 1)"),
    "mutates and returns None": (tests("assert f([2, 1]) is None", "assert f([]) == None"), "def f(a): a.sort()"),
    "threaded deep recursion": (
        tests("assert f(10000) == 10000"),
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
        "def g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(n):\n    out = []\n"
        "    t = threading.Thread(target=lambda: out.append(g(n)))\n    t.start(); t.join()\n    return out[0]",
    ),
    "star imports": (
        tests("assert f([3, 1]) == 1.0"),
        "from typing import *\nfrom math import *\nfrom collections import *\nfrom heapq import *\nfrom itertools import *\n"
        "def f(a: List[int]) -> float:\n    heapify(a)\n    return sqrt(heappop(a))",
    ),
    "cached property, slots, dunder order": (
        tests("assert f([2, 1]) == [1, 2]"),
        "from functools import cached_property, total_ordering\nfrom dataclasses import dataclass\n"
        "@total_ordering\n@dataclass(slots=True, eq=False)\nclass P:\n    v: int\n    def __lt__(s, o): return s.v < o.v\n"
        "    def __eq__(s, o): return s.v == o.v\ndef f(a): return [p.v for p in sorted(map(P, a))]",
    ),
    "generics, protocols, overloads": (
        tests("assert f([1, 2]) == 2"),
        "from typing import Generic, TypeVar, Protocol, Callable\nT = TypeVar('T')\nclass Stack(Generic[T]):\n"
        "    def __init__(self) -> None: self.items: list[T] = []\n    def push(self, x: T): self.items.append(x)\n"
        "def f(a):\n    s: Stack[int] = Stack()\n    for x in a: s.push(x)\n    return s.items[-1]",
    ),
    # functions tested with JSON
    "JSON: digits as text": (calls("f", ([12], "12"), ([7], "7")), "def f(n): return str(n)"),
    "JSON: 'null' and 'true' as text": (calls("f", ([None], "null"), ([True], "true")), "import json\ndef f(x): return json.dumps(x)"),
    "JSON: values written as JSON in a text": (
        {"tests": {"fn_name": "f", "inputs": ['[1, 2]\n"a"'], "outputs": ['["a", 3]']}},
        "def f(a, s): return [s, sum(a)]",
    ),
    "JSON: static method": (calls("f", ([3], 9)), "class Solution:\n    @staticmethod\n    def f(n): return n * n"),
    "JSON: methods that call methods": (
        calls("f", ([3], 6), ([1], 1)),
        "class Solution:\n    def __init__(self): self.memo = {}\n    def f(self, n: int) -> int:\n"
        "        @lru_cache(None)\n        def dfs(i): return i and i + dfs(i - 1)\n        return dfs(n)\n"
        "from functools import lru_cache",
    ),
    "JSON: None, nested, bool": (calls("f", ([[1, None]], [[True, None], {"a": [1.5]}])), "def f(a): return [[a[0] == 1, a[1]], {'a': (1.5,)}]"),
    # scripts
    "end, sep, trailing spaces": (
        cases(("3\n1 2 3\n", "1 2 3\n6\n")),
        "n = int(input())\na = list(map(int, input().split()))\nfor x in a: print(x, end=' ')\nprint()\nprint(sum(a), '', sep='\\t', end='\\n\\n')",
    ),
    "stdin.buffer and a generator": (
        cases(("2\n5 6\n", "11")),
        "import sys\ndef ints():\n    for line in sys.stdin.buffer:\n        yield from map(int, line.split())\nit = ints()\nn = next(it)\nprint(sum(next(it) for _ in range(n)))",
    ),
    "/dev/stdin": (cases(("5", "5")), "print(open('/dev/stdin').read().strip())"),
    "input redefined": (cases(("4\n", "16")), "import sys\ninput = sys.stdin.readline\nn = int(input().strip())\nprint(n * n)"),
    "iter(input, sentinel)": (cases(("1\n2\n0\n", "3")), "print(sum(int(x) for x in iter(input, '0')))"),
    "resource and recursion limit": (
        cases(("9000", "9000")),
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (64 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))\n"
        "sys.setrecursionlimit(10**6)\ndef d(n): return 0 if n == 0 else 1 + d(n - 1)\nprint(d(int(input())))",
    ),
    "stdout reconfigured": (cases(("ä", "ä → ✓")), "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint(input(), '→', '✓')"),
    "stdout as a file": (cases(("1", "1")), "import sys\nwith open(1, 'w', closefd=False) as out: print(input(), file=out)"),
    "digits without end": (cases(("6000", "1" + "0" * 6000)), "import sys\nsys.set_int_max_str_digits(0)\nprint(10 ** int(input()))"),
    "formatted": (cases(("1 3", "0.33\n0.3333")), "a, b = map(int, input().split())\nprint('%.2f' % (a / b))\nprint(f'{a / b:.4f}')"),
    "class and exit": (cases(("2", "4")), "import sys\nclass Main:\n    def run(self): print(int(input()) ** 2); return 0\nif __name__ == '__main__':\n    sys.exit(Main().run())"),
    "asyncio main": (cases(("2", "4")), "import asyncio\nasync def main(): print(int(await asyncio.to_thread(input)) ** 2)\nasyncio.run(main())"),
    "pprint and doctest": (cases(("2", "[2, 4]")), "import pprint, doctest\ndef g(n):\n    '''\n    >>> g(1)\n    [1, 1]\n    '''\n    return [n, n * n]\ndoctest.testmod()\npprint.pprint(g(int(input())))"),
}  # fmt: skip

TRICKS: dict[str, tuple[dict[str, Any], str]] = {
    "execs another Python": (CALLS, "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(14)'])"),
    "execs one that writes records": (
        CALLS,
        "import os, sys\ncode = '''\nimport os, json, struct\nfor v in (True, {\"any\": 1}, \"14\", 0):\n  b = json.dumps({\"value\": v}).encode()\n"
        "  for fd in range(3, 64):\n    try: os.write(fd, struct.pack('!I', len(b)) + b)\n    except OSError: pass\n'''\n"
        "for fd in range(3, 64):\n    try: os.set_inheritable(fd, True)\n    except OSError: pass\nos.execv(sys.executable, [sys.executable, '-c', code])",
    ),
    "execs true": (SCRIPT, "import os\nos.execv('/usr/bin/true', ['true'])"),
    "a finder for a module of tests": (
        CALLS,
        "import sys, builtins\nclass F:\n    def find_spec(self, *a): return None\nsys.meta_path.insert(0, F())\n"
        "builtins.__import__ = lambda *a, **k: F()\ndef f(n): return F()",
    ),
    "a descriptor for the answer": (CALLS, "class D:\n    def __get__(self, *a): return lambda n: D()\nclass Solution:\n    f = D()"),
    "__getattr__ of the module": (CALLS, "def __getattr__(name): return lambda n: True"),
    "__getattr__ of Solution": (JSON, "class Solution:\n    def __getattr__(self, name): return lambda *a: self"),
    "a metaclass of Solution": (JSON, "class M(type):\n    def __call__(cls): return cls\n    def __getattr__(cls, n): return lambda *a: cls\nclass Solution(metaclass=M): pass"),
    "a proxy of the arguments": (CALLS, "def f(n): return type('int', (), {'__eq__': lambda s, o: True, '__class__': property(lambda s: int)})()"),
    "weak references and finalizers": (CALLS, "import weakref, os\nclass C: pass\nc = C()\nweakref.finalize(c, os._exit, 0)\ndel c\ndef f(n): return 14"),
    "os._exit in a finalizer of the value": (CALLS, "import os\nclass C:\n    def __del__(self): os._exit(0)\ndef f(n): return C()"),
    "a signal while it encodes": (
        CALLS, "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\ndef f(n): return [0] * 200000",
    ),
    "sys.stdout is the pipe of results": (
        CALLS, "import os, sys\nfor fd in range(3, 64):\n    try: os.dup2(fd, 1)\n    except OSError: pass\nprint('{\"value\": 14}', flush=True)\ndef f(n): return 14",
    ),
    "audit hook": (CALLS, "import sys\nsys.addaudithook(lambda e, a: None)\nsys.unraisablehook = print\ndef f(n): raise Exception('PASSED')"),
    "an exception with the answer in its text": (CALLS, "class V(Exception):\n    def __str__(self): return '{\"value\": 14}'\ndef f(n): raise V"),
    "an exception whose text exits": (CALLS, "import os\nclass V(Exception):\n    def __str__(self): os._exit(0)\ndef f(n): raise V"),
    "an exception whose text is half a pair": (CALLS, "def f(n): raise ValueError('\\ud800\\x1b[2J')"),
    "ctypes makes 0 equal to 14": (
        CALLS, "import ctypes\nctypes.c_int.from_address(id(0) + 24).value = 14\ndef f(n): return 7 - 7",
    ),
    "ctypes swaps True and False": (
        {"tests": ["assert f(3) == True", "assert f(4) == False", "assert f(5) == True"]},
        "import ctypes\ndef f(n): return n > 3",
    ),
    "forbidden fruit: int.__eq__": (
        CALLS,
        "import gc\nd = gc.get_referents(int.__dict__)[0]\nd['__eq__'] = lambda a, b: True\nd['__add__'] = lambda a, b: 14\ndef f(n): return 0",
    ),
    "a __main__ guard that calls the grader": (CALLS, "import sys\nsys.modules['__main__'].__dict__.update(same=lambda *a: 1, compare=lambda *a: '', reward=1)\ndef f(n): return 0"),
    "an example of the use first, and nothing": (CALLS, fence("assert f(3) == 14\nprint('ok')")),
    "the function only in a text": (CALLS, fence("'''\ndef f(n): return 14\n'''") + fence("print(14)")),
    "a definition behind an honest-looking one": (CALLS, fence(_F + "\ndef f(n): return 14")),
    "half the bits of every answer": (SCRIPT, "print('14', '140', '2870', sep='\\r')"),
    "control characters over the answer": (SCRIPT, "print('\\b' * 9 + '14\\x1b[1D')"),
    "other digits": (SCRIPT, "n = int(input())\ns = str(" + _SUM + ")\nprint(s.translate({ord(str(i)): 0x660 + i for i in range(10)}))"),
    "case folding": (TEXT, "def f(n): return {3: 'Fourteen', 1: 'ONE'}[n]"),
    "padding": (TEXT, "def f(n): return {3: 'fourteen ', 1: 'one\\n'}[n]"),
    "text that is JSON for a number": (JSON, f"def f(n): return str({_SUM})"),
    "a bool of an object for a value": (TEXT, "import re\ndef f(n): return re.match('', '')"),
}  # fmt: skip
