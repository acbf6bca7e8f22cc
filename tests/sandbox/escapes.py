# ruff: noqa: E501  programs on few lines
"""Ways out of the sandbox, each tried on something of the test's own.

A probe is the body of ``def f(o)``, with ``o`` the things to reach; it returns a text that says
what it managed to do, or None. Each is harmless where there is no sandbox at all: it ends by
itself, starts at most one process, signals nothing (kill with 0 only), and writes nowhere but
beside the test's canary. ``OUTSIDE`` are those whose success outside is checked as well: a probe
that can't succeed anywhere shows nothing.
"""

from __future__ import annotations

PRELUDE = """
import ctypes, errno, glob, mmap, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    return libc.syscall(number, *args), ctypes.get_errno()
def reads(path):
    try:
        with open(path) as file: return file.read(1000)
    except (OSError, ValueError): return ''
"""

# Checked outside as well: there it must succeed.
OUTSIDE: dict[str, str] = {
    "connect to a listener": """
        try: socket.create_connection(('127.0.0.1', o['port']), 1).close()
        except OSError: return None
        return 'connected'
    """,
    "connect by IPv6": """
        if not o['port6']: return 'no IPv6 here' if o['outside'] else None
        try: socket.create_connection(('::1', o['port6']), 1).close()
        except OSError: return None
        return 'connected'
    """,
    "send a datagram": """
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.sendto(b'x', ('127.0.0.1', o['udp']))
        except OSError: return None
        return 'sent'
    """,
    "listen": """
        try:
            with socket.socket() as s:
                s.bind(('127.0.0.1', 0))
                s.listen(1)
        except OSError: return None
        return 'listens'
    """,
    "abstract unix socket": """
        try:
            with socket.socket(socket.AF_UNIX) as s: s.connect('\\0' + o['abstract'])
        except OSError: return None
        return 'connected'
    """,
    "unix socket in a folder": """
        try:
            with socket.socket(socket.AF_UNIX) as s: s.connect(o['unix'])
        except OSError: return None
        return 'connected'
    """,
    "datagram through a socket pair": """
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        try: a.sendto(b'x', '\\0' + o['abstract'] + 'd')
        except OSError: return None
        return 'sent'
    """,
    "network interfaces": """
        names = [line.split(':')[0].strip() for line in reads('/proc/net/dev').splitlines()[2:]]
        port = '%04X' % o['port']
        return 'sees the listener' if port in reads('/proc/net/tcp') or o['outside'] and names else None
    """,
    "read a file": "return reads(o['canary'])",
    "stat a file": "return 'there' if os.path.exists(o['canary']) else None",
    "list a folder": """
        try: return ' '.join(os.listdir(o['folder']))
        except OSError: return None
    """,
    "write beside a file": """
        try: open(o['canary'] + '.new', 'w').close()
        except OSError: return None
        return 'written'
    """,
    "append to a file": """
        try: open(o['scratch'], 'a').close()
        except OSError: return None
        return 'opened'
    """,
    "symbolic link to a file": """
        name = 'link%d' % os.getpid()
        try: os.symlink(o['canary'], name)
        except OSError: return None
        found = reads(name)
        os.unlink(name)
        return found
    """,
    "hard link to a file": """
        name = 'hard%d' % os.getpid()
        try: os.link(o['scratch'], name)
        except OSError: return None
        os.unlink(name)
        return 'linked'
    """,
    "through dots": "return reads('/tmp/../tmp/' + '../' * 20 + o['canary'][1:])",
    "through /proc/self/root": "return reads('/proc/self/root' + o['canary'])",
    "through /proc/self/cwd": "return reads('/proc/self/cwd/' + '../' * 20 + o['canary'][1:])",
    "through the roots of all processes": """
        for root in glob.glob('/proc/[0-9]*/root') + glob.glob('/proc/[0-9]*/cwd'):
            found = reads(root + o['canary'])
            if found: return found
    """,
    "bytes in the file system": """
        try: fd = os.open(o['folder'].encode(), os.O_RDONLY | os.O_DIRECTORY)
        except OSError: return None
        os.close(fd)
        return 'opened'
    """,
    "an inherited descriptor": """
        found = []
        for fd in range(3, 64):
            try: found.append(os.pread(fd, 100, 0).decode('latin-1'))
            except OSError: pass
        return 'read it' if any(o['secret'] in text for text in found) else None
    """,
    "an inherited folder": """
        for fd in range(3, 64):
            try: found = os.listdir(fd)
            except OSError: continue
            if found and os.path.basename(o['canary']) in found: return 'listed'
    """,
    "the environment": "return ' '.join(k for k in os.environ if k == o['variable'])",
    "the environments of processes": """
        for path in glob.glob('/proc/[0-9]*/environ'):
            if o['variable'] in reads(path): return path
    """,
    "command lines of processes": """
        for path in glob.glob('/proc/[0-9]*/cmdline'):
            if o['nonce'] in reads(path): return path
    """,
    "signal a process": """
        try: os.kill(o['pid'], 0)
        except OSError: return None
        return 'may signal it'
    """,
    "pidfd of a process": """
        try: fd = os.pidfd_open(o['pid'])
        except (OSError, AttributeError): return None
        os.close(fd)
        return 'opened'
    """,
    "priority of a process": """
        try: os.getpriority(os.PRIO_PROCESS, o['pid'])
        except OSError: return None
        return 'seen'
    """,
    "limits of a process": """
        try: resource.prlimit(o['pid'], resource.RLIMIT_NOFILE)
        except OSError: return None
        return 'read'
    """,
    "memory of a process": "return 'opened' if reads('/proc/%d/maps' % o['pid']) else None",
    "fork": """
        try: pid = os.fork()
        except OSError: return None
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
        return 'forked'
    """,
    "vfork and spawn": """
        try: pid = os.posix_spawn('/usr/bin/true', ['true'], {})
        except OSError: return None
        os.waitpid(pid, 0)
        return 'spawned'
    """,
    "subprocess": """
        try: subprocess.run(['/usr/bin/true'], env={})
        except OSError: return None
        return 'ran'
    """,
    "shell": "return 'ran' if os.system('exit 0') == 0 else None",
    "popen": """
        try:
            with os.popen('echo hello') as stream: return stream.read()
        except OSError: return None
    """,
    "multiprocessing": """
        import multiprocessing
        try:
            process = multiprocessing.get_context('fork').Process(target=len, args=('',))
            process.start()
        except OSError: return None
        process.join()
        return 'started'
    """,
    "pty": """
        import pty
        try: pid, fd = pty.fork()
        except OSError: return None
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
        os.close(fd)
        return 'forked'
    """,
    "memfd": """
        try: os.close(os.memfd_create('x'))
        except (OSError, AttributeError): return None
        return 'made'
    """,
    "more open files": """
        try: fds = [os.dup(0) for _ in range(80)]
        except OSError: return None
        for fd in fds: os.close(fd)
        return '80'
    """,
    "a large file": """
        name = 'large%d' % os.getpid()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open(name, os.O_RDWR | os.O_CREAT)
        os.unlink(name)
        try:
            for _ in range(16): os.write(fd, b'x' * (1 << 20))
        except OSError: return None
        finally: os.close(fd)
        return '16 MB'
    """,
    "a sparse file": """
        name = 'sparse%d' % os.getpid()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open(name, os.O_RDWR | os.O_CREAT)
        os.unlink(name)
        try: os.ftruncate(fd, 1 << 30)
        except OSError: return None
        finally: os.close(fd)
        return '1 GB'
    """,
    "many files": """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fds = []
        try:
            for i in range(8):
                name = 'many%d_%d' % (os.getpid(), i)
                fds.append(os.open(name, os.O_RDWR | os.O_CREAT))
                os.unlink(name)
                for _ in range(4): os.write(fds[-1], b'x' * (1 << 20))
        except OSError: return None
        finally:
            for fd in fds: os.close(fd)
        return '32 MB'
    """,
    "shared memory on disk": """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fds = []
        try:
            for i in range(8):
                name = '/dev/shm/%s_%d' % (o['nonce'], i)
                fds.append(os.open(name, os.O_RDWR | os.O_CREAT))
                os.unlink(name)
                for _ in range(4): os.write(fds[-1], b'x' * (1 << 20))
        except OSError: return None
        finally:
            for fd in fds: os.close(fd)
        return '32 MB'
    """,
    "memory": """
        kept = []
        try:
            for _ in range(40): kept.append(bytearray(16 << 20))
        except MemoryError: return None
        return '640 MB'
    """,
    "mapped memory": """
        kept = []
        try:
            for _ in range(40): kept.append(mmap.mmap(-1, 16 << 20))
        except (OSError, MemoryError): return None
        finally:
            for m in kept: m.close()
        return '640 MB'
    """,
    "threads": """
        go, kept = threading.Event(), []
        threading.stack_size(64 << 10)
        try:
            for _ in range(50):
                kept.append(threading.Thread(target=go.wait, args=(5,)))
                kept[-1].start()
        except RuntimeError: return None
        finally: go.set()
        return '50'
    """,
    "the name of the machine": "return os.uname().nodename if os.uname().nodename == o['host'] else None",
    "the list of users": "return 'there' if os.path.exists('/etc/passwd') else None",
    "sysfs": "return 'there' if os.path.exists('/sys/kernel') else None",
    "mounts": "return 'tells' if o['mounts'] in reads('/proc/self/mountinfo') else None",
}  # fmt: skip

# Outside they fail as well, or mean nothing, or aren't tried.
INSIDE: dict[str, str] = {
    "processes in sight": """
        found = [int(n) for n in os.listdir('/proc') if n.isdigit()]
        return None if len(found) == 2 and os.getpid() == 2 and os.getppid() == 1 else str(found)
    """,
    "marks of the process": """
        status = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())
        caps = [status['Cap' + n].strip('\\t0') for n in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')]
        held = status['NoNewPrivs'].split() == ['1'] and status['Seccomp'].split() == ['2']
        return None if held and not any(caps) and '0' not in status['Uid'].split() else str(caps)
    """,
    "the first process is as confined": """
        status = dict(l.split(':', 1) for l in open('/proc/1/status').read().splitlines())
        caps = [status['Cap' + n].strip('\\t0') for n in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')]
        if any(caps) or status['Seccomp'].split() != ['2']: return str(status)
        for name in ('AS', 'NPROC', 'FSIZE', 'NOFILE', 'CPU', 'CORE'):
            which = getattr(resource, 'RLIMIT_' + name)
            if resource.prlimit(1, which) != resource.getrlimit(which): return name
    """,
    "become root": """
        for name in ('setuid', 'seteuid', 'setgid', 'setegid'):
            try: getattr(os, name)(0)
            except OSError: continue
            return name
    """,
    "groups": """
        try: os.setgroups([0])
        except OSError: return None
        return 'set'
    """,
    "raise the limits": """
        for name in ('AS', 'CPU', 'NOFILE', 'NPROC', 'FSIZE', 'CORE'):
            which = getattr(resource, 'RLIMIT_' + name)
            hard = resource.getrlimit(which)[1]
            try: resource.setrlimit(which, (hard + 1, hard + 1))
            except (OSError, ValueError): continue
            return name
    """,
    "a better priority": """
        try: os.nice(-5)
        except OSError: return None
        return 'nicer'
    """,
    "system places are read-only": """
        places = ['/', '/usr', '/usr/bin', '/usr/lib', '/dev', '/proc/sys', '/proc/sys/kernel',
                  '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern']
        found = [p for p in places if os.access(p, os.W_OK)]
        return ' '.join(found) or None
    """,
    "memory of the kernel": """
        found = [p for p in ('/proc/kcore', '/dev/mem', '/dev/kmem', '/dev/port', '/dev/kmsg')
                 if os.access(p, os.R_OK) and (os.stat(p).st_rdev or p == '/proc/kcore')
                 and os.stat(p).st_rdev != os.stat('/dev/null').st_rdev and os.stat(p).st_size]
        return ' '.join(found) or None
    """,
    "devices": """
        known = {'null', 'zero', 'full', 'random', 'urandom', 'tty', 'ptmx', 'pts', 'shm', 'fd',
                 'stdin', 'stdout', 'stderr', 'core', 'console'}
        return ' '.join(set(os.listdir('/dev')) - known) or None
    """,
    "what lies at the root": """
        known = {'usr', 'bin', 'sbin', 'lib', 'lib32', 'lib64', 'proc', 'dev', 'tmp'}
        known |= {o['prefix'].split('/')[1]}
        return ' '.join(set(os.listdir('/')) - known) or None
    """,
    "programs that change the user": """
        flags = os.statvfs('/usr').f_flag
        return None if flags & os.ST_NOSUID and flags & os.ST_RDONLY else str(flags)
    """,
    "a device node of its own": """
        try: os.mknod('null', 0o600 | 0o020000, os.makedev(1, 3))
        except OSError: return None
        return 'made'
    """,
    "a file that changes the user": """
        try:
            open('x', 'w').close()
            os.chown('x', 0, 0)
        except OSError: return None
        return 'chowned'
    """,
    "type into the terminal": """
        import fcntl
        try: fcntl.ioctl(0, 0x5412, b'x')
        except OSError as e: return None if e.errno == errno.EPERM else str(e)
        return 'typed'
    """,
    "a terminal": """
        controlling = reads('/proc/self/stat').rpartition(')')[2].split()[4]
        return None if controlling == '0' and not os.isatty(0) else controlling
    """,
    "the other numbering of calls": """
        if os.uname().machine != 'x86_64': return None
        result, error = call(0x40000000 + 39)
        return None if error in (errno.EPERM, errno.ENOSYS) else str(result)
    """,
    "other kinds of socket pairs": """
        for family in (2, 10, 16, 17, 40):
            pair = (ctypes.c_int * 2)()
            if libc.socketpair(family, 1, 0, pair) == 0: return str(family)
    """,
    "a namespace by clone": """
        number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]
        result, error = call(number, 0x10000 | 0x10000000, 0, 0, 0, 0)
        return None if error == errno.EPERM else '%s %s' % (result, error)
    """,
    "clone3": """
        result, error = call(435, 0, 0)
        return None if error == errno.ENOSYS else '%s %s' % (result, error)
    """,
    "calls of newer kernels": """
        for number in (463, 467, 470):
            result, error = call(number, -1, 0, 0, 0, 0)
            if error != errno.ENOSYS: return '%s: %s %s' % (number, result, error)
    """,
    "less of a filter": """
        # PR_SET_SECCOMP off, PR_SET_NO_NEW_PRIVS off: both have no meaning to the kernel
        if libc.prctl(22, 0, 0, 0, 0) == 0 or libc.prctl(38, 0, 0, 0, 0) == 0: return 'loosened'
    """,
    "capabilities by prctl": """
        if libc.prctl(47, 2, 21, 0, 0) == 0: return 'ambient'  # raise CAP_SYS_ADMIN
        if libc.prctl(23, 21, 0, 0, 0) == 1: return 'bounding'
    """,
    "writable maps of the user namespace": """
        found = [n for n in ('uid_map', 'gid_map', 'setgroups')
                 if reads('/proc/self/' + n).split() == ['0', '0', '4294967295']]
        return ' '.join(found) or None
    """,
}  # fmt: skip

# Programs that must be ended, with the statuses that this may have.
BOMBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "spin": ("while time.monotonic() < end: pass", ("timeout",)),
    "spin without signals": (
        "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile time.monotonic() < end: pass",
        ("timeout",),
    ),
    "spin in C": (
        "x = [0] * 1000\nwhile time.monotonic() < end: sorted(x)", ("timeout",),
    ),
    "sleep": ("time.sleep(10)", ("timeout",)),
    "sleep in a session of its own": (
        "import os\ntry: os.setsid()\nexcept OSError: pass\ntime.sleep(10)", ("timeout",),
    ),
    "sleep without descriptors": ("import os\nos.closerange(0, 64)\ntime.sleep(10)", ("timeout",)),
    "sleep in a thread": (
        "import threading\nthreading.Thread(target=time.sleep, args=(10,)).start()", ("timeout",),
    ),
    "sleep at exit": ("import atexit\natexit.register(time.sleep, 10)", ("timeout",)),
    "catches everything": (
        "while time.monotonic() < end:\n    try:\n        time.sleep(10)\n    except BaseException: pass",
        ("timeout",),
    ),
    "flood": ("for _ in range(8192): print('x' * 1023)", ("output",)),
    "flood of errors": (
        "import sys\nfor _ in range(8192): sys.stderr.write('x' * 1024)", ("output",),
    ),
    "flood of descriptors": (
        "import os\nfor fd in range(3, 64):\n    try:\n"
        "        for _ in range(128): os.write(fd, b'x' * 1024)\n    except OSError: pass",
        ("output", "crashed", "ok"),
    ),
    "memory": ("x = []\nfor _ in range(64): x.append(bytearray(16 << 20))", ("memory",)),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10**7)\ndef f(n): return n and f(n - 1)\nf(10**6)",
        ("ok", "crashed", "memory", "timeout"),
    ),
    "deep in C": (
        "x = []\nfor _ in range(2 * 10**5): x = [x]\nrepr(x)", ("crashed", "memory"),
    ),
    "a large power": ("x = 9 ** (9 ** 7)\nwhile time.monotonic() < end: x % 7", ("timeout",)),
    "a regular expression": (
        "import re\nfor n in range(18, 28):\n    if time.monotonic() < end:\n"
        "        re.match('(a+)+$', 'a' * n + 'b')\nwhile time.monotonic() < end: pass",
        ("timeout",),
    ),
    "crash": ("import ctypes\nctypes.string_at(0)", ("crashed",)),
    "processes": (
        "import os\nfor _ in range(64):\n    if os.fork() == 0:\n        time.sleep(2)\n        os._exit(0)",
        ("crashed",),
    ),
}  # fmt: skip
