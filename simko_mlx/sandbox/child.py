# Runs inside the sandbox as the text of a -c argument, behind the text of values.py, whose names
# it uses. Python 3.8, nothing of ours to import, nothing that isn't needed: it is part of every
# start. It isn't trusted with anything: whatever it does before the program runs was checked from
# outside, and whatever it sends afterwards may have been sent by the program.
import builtins
import json
import os
import resource
import struct
import sys

PLAIN = (str, bytes, list, tuple, dict, set, frozenset, int, float, complex, type(None))
TYPE_CHECKING = False
if TYPE_CHECKING:
    from simko_mlx.sandbox.values import decode, encode


def main():
    settings = json.loads(sys.argv[1])
    limits = [set_limits(pid, settings["limits"]) for pid in settings["limited"]]
    ready = {"limits": limits, "sees": sees(settings["hidden"])}
    deep_stack()
    send(settings["results"], ready)
    with os.fdopen(settings["requests"], "rb") as stream:
        (length,) = struct.unpack("!I", stream.read(4))
        request = json.loads(stream.read(length))
    del sys.argv[1:]
    sys.argv[0] = "main.py"
    builtins.exit = builtins.quit = sys.exit  # what the module site, left out, would define
    if sys.path[:1] == [""]:
        del sys.path[0]
    if request["stdin"] is None:
        call_function(request, settings["results"])
    else:
        os.close(settings["results"])
        run_script(request)


def set_limits(pid, wanted):
    """Sets each limit, unless it is tighter already, and says what the system then has. Process 0
    is this one."""
    for name, (soft, hard) in wanted.items():
        least = get_limit(pid, name)[1]
        if least != resource.RLIM_INFINITY:
            soft, hard = min(soft, least), min(hard, least)
        which = getattr(resource, name)
        if pid:
            resource.prlimit(pid, which, (soft, hard))
        else:
            resource.setrlimit(which, (soft, hard))
    return {name: list(get_limit(pid, name)) for name in wanted}


def get_limit(pid, name):
    which = getattr(resource, name)
    return resource.prlimit(pid, which) if pid else resource.getrlimit(which)


def deep_stack():
    """Deep recursion of a program is fine; memory is limited elsewhere."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        roomy = 64 << 20
        soft = roomy if hard == resource.RLIM_INFINITY else min(roomy, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    except (OSError, ValueError):
        pass


def sees(path):
    """Whether a file that lies outside can be read."""
    if path is None:
        return False
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def send(fd, message):
    body = json.dumps(message).encode("ascii")
    data = memoryview(struct.pack("!I", len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def module_named(name, typing_names):
    module = type(sys)(name)
    module.__dict__["__builtins__"] = __builtins__
    sys.modules[name] = module
    if typing_names:
        import typing

        module.__dict__.update((n, getattr(typing, n)) for n in typing.__all__)
    return module


def run_script(request):
    """The program as a script: standard input is a file, as its users' tricks expect."""
    fd = os.open("input", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink("input")
    data = memoryview(request["stdin"].encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)
    module = module_named("__main__", False)
    exec(compile(request["source"], "main.py", "exec", dont_inherit=True), module.__dict__)


def call_function(request, results):
    """One record for each call, until one fails."""
    # Before the program runs: what it does to these modules later is its own affair.
    tools = (send, encode, decode, os._exit)
    reply, pack, unpack, leave = tools
    module = module_named("solution", request["typing"])
    try:
        exec(compile(request["source"], "solution.py", "exec", dont_inherit=True), module.__dict__)
        for name, arguments, named, wanted in request["calls"]:
            result = find(module, name)(*unpack(arguments), **unpack(named))
            if wanted and not isinstance(result, PLAIN):
                result = list(result) if wanted == "list" else bool(result)
            reply(results, {"value": pack(result)})
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        reply(results, {"error": describe(error)})
    leave(0)


def find(module, name):
    """The function, or the method of LeetCode's class with a new instance for each call."""
    names = module.__dict__
    if name not in names and isinstance(names.get("Solution"), type):
        return getattr(names["Solution"](), name)
    if name not in names:
        raise NameError("the code defines no %r" % name)  # noqa: UP031
    return names[name]


def describe(error):
    text = " ".join(str(error).split())[:200]
    return "%s: %s" % (type(error).__name__, text) if text else type(error).__name__  # noqa: UP031


if __name__ == "__main__":
    main()
