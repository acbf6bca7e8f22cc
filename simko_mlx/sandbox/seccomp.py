"""The system calls that programs in the Linux sandbox don't get, as a BPF program.

bwrap loads it just before it starts Python, so that it binds all that follows. What is refused is
what reaches outside or adds attack surface: other processes, mounts and namespaces, keys, kernel
features that programs of this kind never need, sockets, shared memory that no limit counts, and
new processes (threads are fine). ``execve`` can't be refused, bwrap itself needs it.
"""

from __future__ import annotations

import errno
import struct

# name: (x86_64, aarch64); None where the architecture has no such call
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "kcmp": (312, 272), "fork": (57, None), "vfork": (58, None), "execveat": (322, 281),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "pivot_root": (155, 41), "chroot": (161, 51), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "lookup_dcookie": (212, 18), "uselib": (134, None),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None),
    # the machine
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "sethostname": (170, 161),
    "setdomainname": (171, 162), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "clock_settime": (227, 112), "settimeofday": (164, 170),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "vhangup": (153, 58),
    "personality": (135, 92), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450),
    # network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # memory that RLIMIT_AS doesn't see
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180),
}  # fmt: skip
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE, CLONE3, SOCKETPAIR, IOCTL = (56, 220), (435, 435), (53, 199), (16, 29)
NEWEST = 462  # mseal, Linux 6.10: what was added later is refused as if this kernel were older
CLONE_THREAD, CLONE_NEW_ANY = 0x10000, 0x7E020000
AF_UNIX, TIOCSTI, TIOCLINUX = 1, 0x5412, 0x541C

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # offsets into struct seccomp_data
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _UNKNOWN = _FAIL | errno.EPERM, _FAIL | errno.ENOSYS
_X32 = 0x40000000

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def program(machine: str) -> bytes:
    """The filter for ``platform.machine()``; both architectures are little-endian.

    Raises:
        KeyError: there is no table for this architecture.
    """
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in _instructions(machine))


def _instructions(machine: str) -> list[Instruction]:
    architecture = ARCHITECTURES[machine]
    column = list(ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),  # the other numbering of x86_64's calls
        (_RETURN, 0, 0, _REFUSE),
        (_AT_LEAST, 0, 1, NEWEST + 1),
        (_RETURN, 0, 0, _UNKNOWN),
        # The C library falls back on clone, whose flags can be looked at.
        *_when(CLONE3[column], [(_RETURN, 0, 0, _UNKNOWN)]),
        *_when(
            CLONE[column],
            [
                (_LOAD, 0, 0, _FIRST),
                (_AND, 0, 0, CLONE_THREAD | CLONE_NEW_ANY),
                (_EQUAL, 0, 1, CLONE_THREAD),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _REFUSE),
            ],
        ),
        # asyncio wakes itself up through a pair of sockets, which lead nowhere else.
        *_when(
            SOCKETPAIR[column],
            [
                (_LOAD, 0, 0, _FIRST),
                (_EQUAL, 0, 1, AF_UNIX),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _REFUSE),
            ],
        ),
        # Typing into a terminal.
        *_when(
            IOCTL[column],
            [
                (_LOAD, 0, 0, _SECOND),
                (_EQUAL, 1, 0, TIOCSTI),
                (_EQUAL, 0, 1, TIOCLINUX),
                (_RETURN, 0, 0, _REFUSE),
                (_RETURN, 0, 0, _ALLOW),
            ],
        ),
    ]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            code += _when(number, [(_RETURN, 0, 0, _REFUSE)])
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _when(number: int, then: list[Instruction]) -> list[Instruction]:
    """``then`` ends in a return; any other call goes on behind it."""
    return [(_EQUAL, 0, len(then), number), *then]
