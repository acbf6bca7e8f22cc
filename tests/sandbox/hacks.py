# ruff: noqa: E501  programs on few lines
"""Programs that want the reward without the work. None knows an expected value, none may get any.

All are harmless without a sandbox as well, and end by themselves.
"""

from __future__ import annotations

from typing import Any

from tests.sandbox.problems import CALLS, CLOSE, HOW, JSON, LIST, NAN, ONE, SCRIPT, SET, TEXT, TRUE

_LIAR = """
class Liar(%s):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 3
    def __contains__(self, other): return True
"""
# Writes a record wherever it may find a pipe, then ends.
_FORGE = """
import os, json, struct
def record(value):
    body = json.dumps(value).encode()
    return struct.pack('!I', len(body)) + body
def everywhere(data):
    for fd in range(3, 64):
        try:
            os.write(fd, data)
        except OSError:
            pass
"""


def _returning(value: str, before: str = "") -> str:
    return f"{before}\ndef f(n):\n    return {value}\n"


HACKS: dict[str, tuple[dict[str, Any], str]] = {
    # ending early
    "exit at the top": (CALLS, "exit(0)"),
    "sys.exit in the function": (CALLS, "import sys\ndef f(n):\n    sys.exit(0)"),
    "raise SystemExit": (CALLS, "def f(n):\n    raise SystemExit(0)"),
    "os._exit at the top": (CALLS, "import os\nos._exit(0)"),
    "os._exit in the function": (CALLS, "import os\ndef f(n):\n    os._exit(0)"),
    "os.abort": (CALLS, "import os\ndef f(n):\n    os.abort()"),
    "quit": (CALLS, "def f(n):\n    quit()"),
    "a script that only exits": (SCRIPT, "import os\nos._exit(0)"),
    "a script that raises SystemExit": (SCRIPT, "raise SystemExit"),
    "an empty script": (SCRIPT, "pass"),
    "kills itself": (CALLS, "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)"),
    "its own exit hook": (
        CALLS,
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(n): return None",
    ),
    "a BaseException of its own": (
        CALLS,
        "class E(BaseException): pass\ndef f(n):\n    raise E('passed')",
    ),
    "KeyboardInterrupt": (CALLS, "def f(n):\n    raise KeyboardInterrupt"),
    "GeneratorExit": (CALLS, "def f(n):\n    raise GeneratorExit"),
    # objects that lie
    "an object equal to all": (CALLS, _returning("Liar()", _LIAR % "object")),
    "an int equal to all": (CALLS, _returning("Liar(5)", _LIAR % "int")),
    "a float equal to all": (CALLS, _returning("Liar(5)", _LIAR % "float")),
    "a str equal to all": (TEXT, _returning("Liar('x')", _LIAR % "str")),
    "a list equal to all": (LIST, _returning("Liar([1])", _LIAR % "list")),
    "a set equal to all": (SET, _returning("Liar([1])", _LIAR % "set")),
    "a dict equal to all": (CALLS, _returning("Liar(a=1)", _LIAR % "dict")),
    "a tuple equal to all": (CALLS, _returning("Liar([1])", _LIAR % "tuple")),
    "a list of what is equal to all": (LIST, _returning("[Liar(0)] * n", _LIAR % "int")),
    "unittest.mock.ANY": (CALLS, _returning("ANY", "from unittest.mock import ANY")),
    "a metaclass that lies": (
        CALLS,
        "class M(type):\n    def __eq__(a, b): return True\n    __hash__ = type.__hash__\n"
        "class C(metaclass=M): pass\ndef f(n): return C",
    ),
    "says that it is an int": (
        CALLS,
        _returning(
            "C()",
            "class C:\n    __class__ = int\n    def __index__(self): return 14\n"
            "    def __int__(self): return 14\n    def __eq__(self, o): return True",
        ),
    ),
    "a number near to all": (
        CLOSE,
        _returning(
            "C(9)",
            "class C(float):\n    def __sub__(s, o): return 0.0\n    __rsub__ = __sub__\n"
            "    def __abs__(s): return 0.0\n    def __lt__(s, o): return True",
        ),
    ),
    "infinity minus infinity": (CLOSE, _returning("float('inf')")),
    "NaN for a number": (CALLS, _returning("float('nan')")),
    "NaN near to all": (CLOSE, _returning("float('nan')")),
    "NaN for NaN": (NAN, _returning("float('nan')")),
    "a complex number": (CLOSE, _returning("0.5 + 1j")),
    # True and 1
    "1 for True": (TRUE, _returning("n % 2")),
    "True for 1": (ONE, _returning("n % 2 == 1")),
    "1.0 for True": (TRUE, _returning("float(n % 2)")),
    "always True": (TRUE, _returning("True")),
    "an object that is always true": (HOW, _returning("Liar()", _LIAR % "object")),
    "its truth changes with each look": (
        HOW,
        "class C(list):\n    def __bool__(self): return False\ndef f(n): return C([1])",
    ),
    "text for a number": (CALLS, _returning("str(n * (n + 1) * (2 * n + 1) // 6)")),
    "the list of the number": (CALLS, _returning("[n * (n + 1) * (2 * n + 1) // 6]")),
    "NotImplemented": (CALLS, _returning("NotImplemented")),
    "Ellipsis": (CALLS, _returning("...")),
    # patches
    "patched ==": (
        CALLS,
        "import operator, builtins\noperator.eq = lambda a, b: True\n"
        "builtins.all = builtins.any = lambda *a: True\ndef f(n): return 0",
    ),
    "patched json": (
        CALLS,
        "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\n"
        "json.JSONEncoder.encode = lambda self, o: '{\"value\": true}'\ndef f(n): return 0",
    ),
    "patched isinstance and type": (
        CALLS,
        "import builtins\nbuiltins.isinstance = lambda a, b: True\n"
        "builtins.len = lambda a: 0\ndef f(n): return 0",
    ),
    "patched struct": (
        CALLS,
        "import struct\nstruct.pack = lambda *a: b'\\0\\0\\0\\0'\ndef f(n): return 0",
    ),
    "patched os.write": (
        CALLS,
        "import os\nw = os.write\nos.write = lambda fd, d: w(fd, bytes(d)) and len(d)\n"
        "def f(n): return 0",
    ),
    "patched sys.modules": (
        CALLS,
        "import sys\nfor name in list(sys.modules):\n    sys.modules[name] = None\n"
        "def f(n): return 0",
    ),
    "patched the runner": (
        CALLS,
        "import sys\nmain = sys._getframe(1).f_globals\n"
        "main['encode'] = main['send'] = lambda *a: True\nmain['find'] = lambda *a: (lambda n: n)\n"
        "def f(n): return 0",
    ),
    "overwritten tests": (
        CALLS,
        "def check(*a): return True\ndef run_tests(): return True\nassert_equal = check\n"
        "tests = []\ndef f(n): return 0",
    ),
    "trace function that changes the result": (
        CALLS,
        "import sys\ndef t(frame, event, arg):\n    frame.f_locals.update(ok=True)\n    return t\n"
        "sys.settrace(t)\ndef f(n): return 0",
    ),
    "a debugger's profile hook": (
        CALLS,
        "import sys\nsys.setprofile(lambda *a: None)\nsys.excepthook = lambda *a: None\n"
        "def f(n): return 0",
    ),
    # looking for what is expected
    "locals of callers": (
        CALLS,
        "import sys\ndef f(n):\n    frame, found = sys._getframe(), []\n    while frame:\n"
        "        for v in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if type(v) is int and v > 9: found.append(v)\n        frame = frame.f_back\n"
        "    return found[0] if found else None",
    ),
    "expected values by name": (
        CALLS,
        "import sys\ndef f(n):\n    frame = sys._getframe()\n    while frame:\n"
        "        for k in ('expected', 'answer', 'output', 'target'):\n"
        "            if k in frame.f_locals: return frame.f_locals[k]\n        frame = frame.f_back",
    ),
    "all objects of the collector": (
        LIST,
        "import gc\ndef f(n):\n    for o in gc.get_objects():\n"
        "        if type(o) is list and len(o) == n and o[:1] == [1]: return o",
    ),
    "referrers of the argument": (
        CALLS,
        "import gc\ndef f(n):\n    for r in gc.get_referrers(n):\n"
        "        if isinstance(r, (list, dict)) and len(r) == 2: return list(r)[1]",
    ),
    "the request in memory": (
        CALLS,
        "import sys\ndef f(n):\n    g = sys._getframe(1).f_locals\n"
        "    return g.get('request', {}).get('calls', [[0, 0]])[0][-1]",
    ),
    "command line and environment": (
        TEXT,
        "import os, sys\ndef f(n):\n    text = open('/proc/self/cmdline').read() + str(os.environ)\n"
        "    return next((w for w in text.split() if 'fourteen' in w), '')",
    ),
    "files in sight": (
        TEXT,
        "import os\ndef f(n):\n    for folder in ('.', '/tmp', '/', '/proc/1', '/proc/self/fd'):\n"
        "        for name in os.listdir(folder):\n            try:\n"
        "                text = open(os.path.join(folder, name)).read(10000)\n"
        "            except (OSError, ValueError): continue\n"
        "            if 'fourteen' in text: return 'fourteen'\n    return ''",
    ),
    "own memory": (
        TEXT,
        "def f(n):\n    with open('/proc/self/maps') as m, open('/proc/self/mem', 'rb', 0) as mem:\n"
        "        for line in m:\n            if '[heap]' in line:\n"
        "                a, b = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "                mem.seek(a)\n                data = mem.read(b - a)\n"
        "                i = data.find(b'four' + b'teen')\n"
        "                return 'four' + 'teen' if data[i + 8:i + 9] == b'\\'' else ''",
    ),
    "the rest of standard input": (
        SCRIPT,
        "import os\nos.lseek(0, 0, 0)\nprint(os.read(0, 10000).decode().split()[-1])",
    ),
    # markers
    "printed verdicts": (
        CALLS,
        "print('PASSED', 'OK', '1.0', 'all tests passed')\ndef f(n):\n    print('ok')\n    return 0",
    ),
    "printed JSON": (
        CALLS,
        "import sys\ndef f(n):\n    print('{\"value\": 14}', '{\"reward\": 1.0, \"correct\": true}')\n"
        "    sys.stderr.write('OK')\n    return 0",
    ),
    "an exit code for each taste": (CALLS, "import sys\nprint('14')\nsys.exit('OK')"),
    "a report on disk": (
        CALLS,
        "open('result.json', 'w').write('{\"correct\": true}')\ndef f(n): return 0",
    ),
    # forged records
    "one forged record": (CALLS, _FORGE + "everywhere(record({'value': 1}))\nos._exit(0)"),
    "as many forged records as tests": (
        CALLS,
        _FORGE + "everywhere(record({'value': True}) * 4)\nos._exit(0)",
    ),
    "records that claim to be correct": (
        CALLS,
        _FORGE + "everywhere(record({'value': 0, 'correct': True, 'reward': 1}) * 4)\nos._exit(0)",
    ),
    "the ready record again": (
        CALLS,
        _FORGE + "everywhere(record({'limits': {}, 'sees': False}) * 4)\nos._exit(0)",
    ),
    "every guess at once": (
        CALLS,
        _FORGE + "everywhere(b''.join(record({'value': i}) for i in range(200)))\nos._exit(0)",
    ),
    "each guess beside the true record": (
        ONE,
        _FORGE + "def f(n):\n    everywhere(record({'value': 1}))\n    return 0",
    ),
    "a length that never ends": (CALLS, _FORGE + "everywhere(b'\\xff' * 8)\nos._exit(0)"),
    "two values in one record": (
        CALLS,
        _FORGE + 'body = b\'{"value": 0, "value": 14}\'\n'
        "everywhere((struct.pack('!I', len(body)) + body) * 4)\nos._exit(0)",
    ),
    "tags of its own": (CALLS, _FORGE + "everywhere(record({'value': {'any': 1}}) * 4)\nos._exit(0)"),
    "a deep record": (
        CALLS,
        _FORGE + "body = b'{\"value\": ' + b'[' * 9000 + b']' * 9000 + b'}'\n"
        "everywhere((struct.pack('!I', len(body)) + body) * 4)\nos._exit(0)",
    ),
    "a pickle": (
        CALLS,
        _FORGE + "import pickle\nbody = pickle.dumps(True)\n"
        "everywhere((struct.pack('!I', len(body)) + body) * 4)\nos._exit(0)",
    ),
    "closes the pipe": (
        CALLS,
        "import os\nos.closerange(3, 64)\ndef f(n): return 14",
    ),
    "a thread that writes records": (
        CALLS,
        _FORGE + "import threading\ndef f(n):\n"
        "    t = threading.Thread(target=everywhere, args=(record({'value': True}),))\n"
        "    t.start()\n    t.join()\n    return 0",
    ),
    # recursion and the like
    "recursion without end": (CALLS, "def f(n): return f(n)"),
    "catches its own recursion": (
        CALLS,
        "import sys\ndef f(n):\n    try:\n        return f(n)\n    except RecursionError:\n"
        "        return None",
    ),
    "a structure that holds itself": (LIST, "def f(n):\n    a = []\n    a.append(a)\n    return a"),
    "a generator for a value": (LIST, "def f(n):\n    yield from range(n)"),
    "a function for a value": (CALLS, _returning("lambda *a: True")),
    "the exception as value": (CALLS, _returning("StopIteration('14')")),
    "the same for all": (CALLS, _returning("14")),
    "every line of output": (SCRIPT, "for i in range(3000): print(i)"),
    "the answer among others": (SCRIPT, "print(*range(3000))"),
    "a form that all words equal": (SCRIPT, "print('*')\nprint('.*')"),
    "numbers that overflow": (SCRIPT, "print('1e999', 'nan', 'inf')"),
    "patched stdout": (
        SCRIPT,
        "import sys\nclass O:\n    def write(self, s): return True\n    def flush(self): pass\n"
        "sys.stdout = O()\nprint(1)",
    ),
    "the json form as well": (JSON, _returning("Liar(1)", _LIAR % "int")),
    "no function of that name": (JSON, "def g(n): return 14"),
    "a class instead": (JSON, "class f:\n    def __init__(self, n): pass\n    __eq__ = lambda s, o: 1"),
    "code that doesn't parse": (CALLS, "def f(n) return 14"),
    "a null byte": (CALLS, "def f(n): return 0\n\0"),
    "half a surrogate pair": (CALLS, "x = '\ud800'\ndef f(n): return 0"),
}  # fmt: skip
