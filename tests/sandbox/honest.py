# ruff: noqa: E501  programs on few lines
"""Programs that are right, in all the ways in which people and models write them."""

from __future__ import annotations

from typing import Any

from tests.sandbox.problems import CALLS, JSON, LIST, SCRIPT, SET

_SUM = "n * (n + 1) * (2 * n + 1) // 6"


def tests(*asserts: str) -> dict[str, Any]:
    return {"tests": list(asserts)}


def cases(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"tests": [{"input": given, "output": wanted} for given, wanted in pairs]}


def calls(name: str, *pairs: tuple[list[Any], Any]) -> dict[str, Any]:
    return {
        "tests": {
            "fn_name": name,
            "inputs": [a for a, _ in pairs],
            "outputs": [b for _, b in pairs],
        }
    }


HONEST: dict[str, tuple[dict[str, Any], str]] = {
    "formula": (CALLS, f"def f(n):\n    return {_SUM}"),
    "loop": (CALLS, "def f(n):\n    t = 0\n    for i in range(n + 1):\n        t += i * i\n    return t"),
    "lambda": (CALLS, "f = lambda n: sum(i * i for i in range(n + 1))"),
    "recursion": (CALLS, "def f(n):\n    return 0 if n == 0 else n * n + f(n - 1)"),
    "closure": (
        CALLS,
        "def make():\n    seen = {0: 0}\n    def f(n):\n        if n not in seen:\n"
        "            seen[n] = f(n - 1) + n * n\n        return seen[n]\n    return f\nf = make()",
    ),
    "nonlocal": (
        CALLS,
        "def f(n):\n    t = 0\n    def add(i):\n        nonlocal t\n        t += i * i\n"
        "    for i in range(n + 1): add(i)\n    return t",
    ),
    "global state": (
        CALLS,
        "total = 0\ndef f(n):\n    global total\n    total = 0\n    for i in range(n + 1):\n"
        "        total += i * i\n    return total",
    ),
    "class": (
        CALLS,
        "class Sum:\n    def __init__(self, n): self.n = n\n    @property\n"
        "    def value(self): return sum(i * i for i in range(self.n + 1))\n"
        "def f(n): return Sum(n).value",
    ),
    "callable object": (
        CALLS,
        f"class F:\n    def __call__(self, n): return {_SUM}\nf = F()",
    ),
    "generator inside": (
        CALLS,
        "def squares(n):\n    i = 0\n    while i <= n:\n        yield i * i\n        i += 1\n"
        "def f(n): return sum(squares(n))",
    ),
    "yield from": (
        CALLS,
        "def a(n):\n    yield from (i * i for i in range(n + 1))\ndef f(n): return sum(a(n))",
    ),
    "functools.reduce": (
        CALLS,
        "from functools import reduce\ndef f(n): return reduce(lambda a, i: a + i * i, range(n + 1), 0)",
    ),
    "lru_cache": (
        CALLS,
        "from functools import lru_cache\n@lru_cache(maxsize=None)\ndef f(n):\n"
        "    return n and n * n + f(n - 1)",
    ),
    "itertools": (
        CALLS,
        "from itertools import accumulate, count, islice\ndef f(n):\n"
        "    return list(islice(accumulate(i * i for i in count()), n + 1))[-1]",
    ),
    "operator and map": (
        CALLS,
        "import operator\ndef f(n): return sum(map(operator.mul, range(n + 1), range(n + 1)))",
    ),
    "dataclass": (
        CALLS,
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
        "@dataclass(order=True)\nclass P:\n    n: int\n    seen: list[int] = field(default_factory=list)\n"
        "def f(n): return sum(P(i).n ** 2 for i in range(n + 1))",
    ),
    "typing": (
        CALLS,
        "from typing import List, Optional, Dict, Tuple\ndef f(n: int, memo: Optional[Dict[int, int]] "
        "= None) -> int:\n    x: List[int] = [i * i for i in range(n + 1)]\n    return sum(x)",
    ),
    "NamedTuple and Enum": (
        CALLS,
        "from typing import NamedTuple\nfrom enum import Enum, IntEnum\nclass P(NamedTuple):\n    x: int\n"
        "class C(Enum):\n    A = 1\ndef f(n): return sum(P(i).x ** 2 for i in range(n + 1))",
    ),
    "abstract classes": (
        CALLS,
        "from abc import ABC, abstractmethod\nclass A(ABC):\n    @abstractmethod\n"
        "    def g(self, n): ...\nclass B(A):\n    def g(self, n): return n * n\n"
        "def f(n): return sum(B().g(i) for i in range(n + 1))",
    ),
    "match": (
        CALLS,
        "def f(n):\n    match n:\n        case 0: return 0\n        case int(k): return k * k + f(k - 1)",
    ),
    "walrus and f-strings": (
        CALLS,
        "def f(n):\n    t, i = 0, -1\n    while (i := i + 1) <= n:\n        t += int(f'{i * i}')\n    return t",
    ),
    "debug prints": (
        CALLS,
        f"import sys\ndef f(n):\n    print('debug', n)\n    print('err', file=sys.stderr)\n    return {_SUM}\n"
        "print(f(5))",
    ),
    "main guard": (
        CALLS,
        f"def f(n):\n    return {_SUM}\nif __name__ == '__main__':\n    print(f(int(input())))",
    ),
    "own asserts": (CALLS, f"def f(n):\n    return {_SUM}\nassert f(1) == 1"),
    "try and finally": (
        CALLS,
        "def f(n):\n    try:\n        raise ValueError\n    except ValueError as e:\n        pass\n"
        f"    finally:\n        r = {_SUM}\n    return r",
    ),
    "context manager": (
        CALLS,
        "from contextlib import contextmanager, suppress\n@contextmanager\ndef c():\n    yield 1\n"
        f"def f(n):\n    with c() as one:\n        return {_SUM} * one",
    ),
    "decorator": (
        CALLS,
        "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(*a, **k): return g(*a, **k)\n"
        f"    return w\n@d\ndef f(n): return {_SUM}",
    ),
    "decimal and fractions": (
        CALLS,
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "def f(n): return int(sum(Decimal(i) ** 2 * Fraction(1, 1).numerator for i in range(n + 1)))",
    ),
    "IntEnum for int": (
        tests("assert f(1) == 2"),
        "from enum import IntEnum\nclass C(IntEnum):\n    A = 2\ndef f(n): return C.A",
    ),
    "slow but right": (
        tests("assert f(2_000_000) == 1999999000000"),
        "def f(n):\n    t = 0\n    for i in range(n):\n        t += i\n    return t",
    ),
    "sleeps": (CALLS, f"import time\ndef f(n):\n    time.sleep(0.05)\n    return {_SUM}"),
    "deep recursion": (
        tests("assert f(20000) == 20000"),
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)",
    ),
    "deep recursion through a cache": (
        tests("assert f(30000) == 30000"),
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n"
        "@lru_cache(None)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
    ),
    "named as a builtin": (
        tests("assert sum(10, 15) == 6", "assert sum(7, 7) == 8"),
        "def sum(a, b):\n    t = 0\n    for i in range(1, min(a, b) + 1):\n"
        "        if a % i == b % i == 0: t += i\n    return t",
    ),
    "sqlite, pickle, logging": (
        tests("assert f() == 2"),
        "import sqlite3, pickle, logging\nlogging.warning('x')\ndef f():\n"
        "    c = sqlite3.connect(':memory:')\n"
        "    return pickle.loads(pickle.dumps(c.execute('select 1 + 1').fetchone()[0]))",
    ),
    "a byte order mark and carriage returns": (
        tests("assert f(1) == 1"), "\ufeffdef f(n):\r\n    return n\r\n",
    ),
    "much memory": (tests("assert f(10**6) == 10**6"), "def f(n):\n    return len(list(range(n)))"),
    "big numbers": (
        tests("assert f(200) == 2 ** 200", "assert f(5000) == 2 ** 5000"),
        "def f(n): return 1 << n",
    ),
    "negative and large": (tests("assert f(3) == -10**30"), "def f(n): return -10**30"),
    "random with a seed": (
        tests("assert f(3) == 3"),
        "import random\nrandom.seed(1)\ndef f(n): return len(random.sample(range(10), n))",
    ),
    "threads": (
        CALLS,
        "from concurrent.futures import ThreadPoolExecutor\ndef f(n):\n"
        "    with ThreadPoolExecutor(4) as p: return sum(p.map(lambda i: i * i, range(n + 1)))",
    ),
    "threading with a lock and a queue": (
        CALLS,
        "import threading, queue\ndef f(n):\n    q = queue.Queue()\n    lock = threading.Lock()\n"
        "    def work():\n        with lock: q.put(sum(i * i for i in range(n + 1)))\n"
        "    t = threading.Thread(target=work)\n    t.start()\n    t.join()\n    return q.get()",
    ),
    "asyncio": (
        CALLS,
        "import asyncio\nasync def g(i):\n    await asyncio.sleep(0)\n    return i * i\n"
        "async def h(n): return sum(await asyncio.gather(*(g(i) for i in range(n + 1))))\n"
        "def f(n): return asyncio.run(h(n))",
    ),
    "a daemon thread left running": (
        CALLS,
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        f"def f(n): return {_SUM}",
    ),
    "a file of its own": (
        CALLS,
        f"import os, tempfile\ndef f(n):\n    with tempfile.NamedTemporaryFile('w+') as t:\n"
        f"        t.write(str({_SUM}))\n        t.seek(0)\n        return int(t.read())",
    ),
    "json, re, string, datetime": (
        CALLS,
        "import json, re, string, datetime, copy, bisect, statistics, textwrap, hashlib\n"
        f"def f(n): return int(re.findall(r'\\d+', json.dumps([{_SUM}]))[0])",
    ),
    # values of all kinds
    "list": (LIST, "def f(n): return [i * i for i in range(1, n + 1)]"),
    "tuple": (
        tests("assert f((1, 2)) == (2, 1)", "assert f(()) == ()"),
        "def f(t): return tuple(reversed(t))",
    ),
    "list of tuples": (
        tests("assert f([3, 1]) == [(1, 0), (3, 1)]"),
        "def f(a): return [(v, i) for i, v in enumerate(sorted(a))]",
    ),
    "namedtuple for a tuple": (
        tests("assert f(1) == (1, 2)"),
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(n): return P(n, n + 1)",
    ),
    "dict": (
        tests("assert f('aab') == {'a': 2, 'b': 1}"),
        "def f(s): return {c: s.count(c) for c in s}",
    ),
    "Counter for a dict": (
        tests("assert f('aab') == {'b': 1, 'a': 2}"),
        "from collections import Counter\ndef f(s): return Counter(s)",
    ),
    "defaultdict for a dict": (
        tests("assert f([1, 2, 3]) == {0: [2], 1: [1, 3]}"),
        "from collections import defaultdict\ndef f(a):\n    d = defaultdict(list)\n"
        "    for x in a: d[x % 2].append(x)\n    return d",
    ),
    "set": (tests("assert f([1, 1, 2]) == {1, 2}", "assert f([]) == set()"), "def f(a): return set(a)"),
    "set around": (SET, "def f(n): return (i * i for i in range(n, 0, -1))"),
    "frozenset": (tests("assert f([1]) == {1}"), "def f(a): return frozenset(a)"),
    "float": (tests("assert f(1) == 0.5", "assert f(4) == 2"), "def f(n): return n / 2"),
    "near": (
        tests("assert abs(f(3) - 0.333333) < 1e-4", "import math\nassert math.isclose(f(8), .125)"),
        "def f(n): return 1 / n",
    ),
    "None": (tests("assert f([]) is None", "assert f([2]) == 2"), "def f(a):\n    if a: return a[0]"),
    "bool": (
        tests("assert f(2) == True", "assert f(3) is False", "assert not f(5)", "assert f(4)"),
        "def f(n): return n % 2 == 0",
    ),
    "text": (
        tests("assert f('äö') == 'öä'", 'assert f("it\'s") == "s\'ti"'),
        "def f(s): return s[::-1]",
    ),
    "bytes": (tests("assert f('ab') == b'ab'"), "def f(s): return s.encode()"),
    "complex": (tests("assert f(-1) == 1j"), "def f(n): return complex(0, 1)"),
    "infinity": (tests("assert f() == float('inf')"), "import math\ndef f(): return math.inf"),
    "named arguments": (
        tests("assert f(1, b=2) == 3", "assert f(a=1, b=-2) == -1"),
        "def f(a, b=0, *rest, c=0): return a + b + c",
    ),
    "changes its argument": (
        tests("assert f([3, 1]) == [1, 3]", "assert f([3, 1]) == [1, 3]"),
        "def f(a):\n    a.sort()\n    return a",
    ),
    "generator listed": (tests("assert list(f(3)) == [0, 1, 2]"), "def f(n):\n    yield from range(n)"),
    "HumanEval": (
        {
            "test": "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert True\n"
            "    assert candidate([1.0, 2.0]) == 3.0, 'message'\n    x = [1]\n"
            "    assert candidate(x) == 1\n\ncheck(total)\n",
            "entry_point": "total",
        },
        "from typing import List\n\n\ndef total(a: List[float]) -> float:\n    \"\"\" >>> total([1])\n"
        "    1\n    \"\"\"\n    return sum(a)\n",
    ),
    # functions tested with JSON
    "JSON": (JSON, f"def f(n): return {_SUM}"),
    "LeetCode": (
        calls("twoSum", ([[2, 7, 11, 15], 9], [0, 1]), ([[3, 3], 6], [0, 1])),
        "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> Optional[List[int]]:\n"
        "        seen = {}\n        for i, v in enumerate(nums):\n            if target - v in seen:\n"
        "                return [seen[target - v], i]\n            seen[v] = i",
    ),
    "tuple for a list of JSON": (calls("f", ([1, 2], [2, 1])), "def f(a, b): return b, a"),
    "dict of JSON": (
        calls("f", (["ab"], {"1": "a"}), (["c"], {"1": "c"})),
        "def f(s): return {1: s[0]}",
    ),
    "outputs wrapped in lists": (calls("f", ([1], [2]), ([2], [3])), "def f(n): return n + 1"),
    # scripts
    "script": (SCRIPT, f"n = int(input())\nprint({_SUM})"),
    "script with a main": (
        SCRIPT,
        f"import sys\ndef main():\n    n = int(sys.stdin.readline())\n    print({_SUM})\n"
        "if __name__ == '__main__':\n    main()",
    ),
    "script that reads all": (
        SCRIPT,
        f"import sys\nn, *_ = map(int, sys.stdin.read().split())\nsys.stdout.write(str({_SUM}))",
    ),
    "open(0)": (SCRIPT, f"n = int(open(0).read())\nprint({_SUM})"),
    "fast input": (
        SCRIPT,
        "import os, io\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
        f"n = int(input())\nprint({_SUM})",
    ),
    "fast output": (
        SCRIPT,
        "import sys, atexit, io\nout = io.StringIO()\nstdout, sys.stdout = sys.stdout, out\n"
        f"atexit.register(lambda: stdout.write(out.getvalue()))\nn = int(input())\nprint({_SUM})",
    ),
    "bytes to standard output": (
        SCRIPT,
        f"import sys\nn = int(sys.stdin.buffer.readline())\nsys.stdout.buffer.write(b'%d' % ({_SUM}))",
    ),
    "os.write": (SCRIPT, f"import os\nn = int(input())\nos.write(1, str({_SUM}).encode())"),
    "for line in stdin": (
        SCRIPT,
        f"import sys\nfor line in sys.stdin:\n    n = int(line)\n    print({_SUM}, end=' \\n')",
    ),
    "exit()": (SCRIPT, f"n = int(input())\nprint({_SUM})\nexit()\nprint('no')"),
    "sys.exit()": (SCRIPT, f"import sys\nn = int(input())\nprint({_SUM})\nsys.exit(0)"),
    "os._exit after a flush": (
        SCRIPT,
        f"import os, sys\nn = int(input())\nprint({_SUM})\nsys.stdout.flush()\nos._exit(0)",
    ),
    "main in a thread": (
        SCRIPT,
        "import sys, threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size(2**26)\n"
        f"def main():\n    n = int(input())\n    print({_SUM})\n"
        "threading.Thread(target=main).start()",
    ),
    "fileinput": (
        cases(("ab\ncd\n", "ba\ndc")),
        "import fileinput\nfor line in fileinput.input(): print(line.strip()[::-1])",
    ),
    "until end of file": (
        cases(("1\n2\n", "3\n"), ("", "0\n")),
        "t = 0\nwhile True:\n    try:\n        t += int(input())\n    except EOFError:\n        break\n"
        "print(t)",
    ),
    "several lines": (
        cases(("2\n1 2\n3 4\n", "3\n7\n"), ("1\n5 5", "10")),
        "for _ in range(int(input())):\n    a, b = map(int, input().split())\n    print(a + b)",
    ),
    "a decimal fraction": (cases(("1 2", "0.50")), "a, b = map(int, input().split())\nprint(a / b)"),
    "heapq in a script": (
        cases(("3 1 2", "1 2 3")),
        "import heapq\nh = list(map(int, input().split()))\nheapq.heapify(h)\n"
        "print(*[heapq.heappop(h) for _ in range(len(h))])",
    ),
    "deque in a script": (
        cases(("3", "2 1 0")),
        "from collections import deque\nd = deque()\nfor i in range(int(input())): d.appendleft(i)\n"
        "print(*d)",
    ),
    "text in other scripts": (cases(("grüße 你好", "你好 grüße")), "print(*input().split()[::-1])"),
    "much output": (
        cases(("20000", "\n".join(map(str, range(20000))))),
        "print('\\n'.join(map(str, range(int(input())))))",
    ),
    "much input": (cases((" ".join(["7"] * 200000), "1400000")), "print(sum(map(int, input().split())))"),
    "errors on stderr": (
        SCRIPT,
        f"import sys\nn = int(input())\nprint('debug', file=sys.stderr)\nprint({_SUM})",
    ),
}  # fmt: skip
