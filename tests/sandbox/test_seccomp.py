"""The system call filter, run in an interpreter of its instructions."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import struct

import pytest

from simko_mlx.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
MACHINES = list(seccomp.ARCHITECTURES)
# What any Python needs: (x86_64, aarch64)
NEEDED = {
    "read": (0, 63), "write": (1, 64), "mmap": (9, 222), "munmap": (11, 215), "brk": (12, 214),
    "openat": (257, 56), "execve": (59, 221), "exit_group": (231, 94), "futex": (202, 98),
    "rt_sigaction": (13, 134), "prlimit64": (302, 261), "getrandom": (318, 278), "lseek": (8, 62),
    "epoll_wait/pwait": (232, 22), "clock_nanosleep": (230, 115), "dup3": (292, 24),
    "unlinkat": (263, 35), "sched_getaffinity": (204, 123), "sendto": (44, 206),
    "madvise": (28, 233), "getpid": (39, 172), "kill": (62, 129),
}  # fmt: skip


def decide(code: bytes, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """The verdict of a filter on one call: classic BPF, as far as seccomp has it."""
    padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<iIQ6Q", number - 2**32 if number >= 2**31 else number, arch, 0, *padded)
    instructions = list(struct.iter_unpack("<HBBI", code))
    accumulator = at = 0
    for _ in range(len(instructions)):
        operation, yes, no, constant = instructions[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x15:
            at += yes if accumulator == constant else no
        elif operation == 0x35:
            at += yes if accumulator >= constant else no
        elif operation == 0x06:
            return constant
        else:
            raise AssertionError(f"unknown instruction {operation:#x}")
    raise AssertionError("no verdict")


@pytest.fixture(params=MACHINES)
def machine(request):
    """(the filter, its architecture's number, its column in the tables)"""
    name = request.param
    return seccomp.program(name), seccomp.ARCHITECTURES[name], MACHINES.index(name)


def test_what_is_denied_fails_with_eperm(machine):
    code, arch, column = machine
    for name, numbers in seccomp.DENIED.items():
        if (number := numbers[column]) is not None:
            assert decide(code, number, arch) == EPERM, name


def test_what_python_needs_is_allowed(machine):
    code, arch, column = machine
    for name, numbers in NEEDED.items():
        assert decide(code, numbers[column], arch) == ALLOW, name


def test_threads_but_no_processes_or_namespaces(machine):
    code, arch, column = machine
    clone, threads = seccomp.CLONE[column], 0x3D0F00  # what pthread_create asks for
    assert decide(code, clone, arch, (threads,)) == ALLOW
    assert decide(code, clone, arch, (threads | 1 << 40,)) == ALLOW
    assert decide(code, clone, arch, (0x1200011,)) == EPERM  # fork()
    assert decide(code, clone, arch, (0x4111,)) == EPERM  # vfork()
    for bit in (0x20000, *(1 << i for i in range(25, 31))):
        assert decide(code, clone, arch, (threads | bit,)) == EPERM, hex(bit)
    assert decide(code, seccomp.CLONE3[column], arch) == ENOSYS  # so that libc tries clone


def test_pairs_of_unix_sockets_only(machine):
    code, arch, column = machine
    assert decide(code, seccomp.SOCKETPAIR[column], arch, (1, 1)) == ALLOW
    for family in (0, 2, 10, 16, 17, 40):
        assert decide(code, seccomp.SOCKETPAIR[column], arch, (family, 1)) == EPERM


def test_nothing_types_into_a_terminal(machine):
    code, arch, column = machine
    assert decide(code, seccomp.IOCTL[column], arch, (0, 0x5412)) == EPERM
    assert decide(code, seccomp.IOCTL[column], arch, (0, 1 << 32 | 0x5412)) == EPERM
    assert decide(code, seccomp.IOCTL[column], arch, (0, 0x541C)) == EPERM
    assert decide(code, seccomp.IOCTL[column], arch, (0, 0x5401)) == ALLOW


def test_another_architecture_or_numbering_gets_nowhere(machine):
    code, arch, _ = machine
    for other in (0x40000003, 0x40000028, 0, *seccomp.ARCHITECTURES.values()):
        if other != arch:
            assert decide(code, 0, other) == KILL
    for number in (0x40000000, 0x40000000 + 41, 2**31, 2**32 - 1):
        assert decide(code, number, arch) == EPERM


def test_calls_newer_than_the_table_do_not_exist(machine):
    code, arch, _ = machine
    for number in (seccomp.NEWEST + 1, 467, 500, 100_000):
        assert decide(code, number, arch) == ENOSYS
    assert decide(code, seccomp.NEWEST, arch) == ALLOW


def test_every_path_through_the_filter_ends_within_it(machine):
    code, arch, _ = machine
    for number in range(seccomp.NEWEST + 2):
        for first in (0, 1, 2, 0x10000, 0x3D0F00):
            assert decide(code, number, arch, (first, 0x5412)) in (ALLOW, EPERM, ENOSYS)
    assert len(code) // 8 <= 4096  # the kernel's limit


def test_there_is_no_filter_for_other_machines():
    with pytest.raises(KeyError):
        seccomp.program("riscv64")


def test_the_numbers_are_those_of_libseccomp():
    name = ctypes.util.find_library("seccomp")
    if name is None:
        pytest.skip("libseccomp is not installed")
    resolve = ctypes.CDLL(name).seccomp_syscall_resolve_name_arch
    resolve.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    special = {
        "clone": seccomp.CLONE,
        "clone3": seccomp.CLONE3,
        "socketpair": seccomp.SOCKETPAIR,
        "ioctl": seccomp.IOCTL,
    }
    wrong = {}
    for call, numbers in {**seccomp.DENIED, **special}.items():
        for arch, number in zip(seccomp.ARCHITECTURES.values(), numbers, strict=True):
            known = resolve(arch, call.encode())
            if known != (number if number is not None else known) or (number is None and known > 0):
                wrong[call] = known
    assert not wrong
