"""The filter: read as the kernel reads it, for both kinds of machine, and at work."""

import errno
import json
import struct

import pytest

from tests.workers.sandbox.conftest import StartEngine, finish
from workers.sandbox.system_calls import REFUSED, system_call_filter

ALLOWED, KILLED = 0x7FFF_0000, 0x8000_0000
ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
SOCKET, CLONE, CLONE3 = {"x86_64": 41, "aarch64": 198}, {"x86_64": 56, "aarch64": 220}, 435
THREAD, NEW_USER_NAMESPACE = 0x003D_0F00, 0x1000_0000
UNIX, INTERNET, NETLINK = 1, 2, 16

AT_WORK = """
import ctypes, json, threading
libc = ctypes.CDLL(None, use_errno=True)
def error(call, *arguments):
    ctypes.set_errno(0)
    return call(*arguments) < 0 and ctypes.get_errno()
calls = {
    "unshare": (libc.unshare, 0x10000000), "ptrace": (libc.ptrace, 0, 0, 0, 0),
    "mount": (libc.mount, b"none", b"scratch", b"tmpfs", 0, None), "setns": (libc.setns, 0, 0),
    "chroot": (libc.chroot, b"scratch"), "io_uring_setup": (libc.syscall, 425, 1, ctypes.create_string_buffer(120)),
}
found = {name: error(*call) for name, call in calls.items()}
for family in (2, 10, 16, 17, 40):
    found[family] = error(libc.socket, family, 3 if family == 16 else 2, 0)
for pair in (socket.socketpair(), (socket.socket(socket.AF_UNIX),)):
    [end.close() for end in pair]
thread = threading.Thread(target=print)
thread.start(), thread.join()
os.waitpid(os.fork() or os._exit(0), 0)
print(json.dumps(found))
"""


def answer(program: bytes, architecture: int, number: int, first: int = 0) -> int:
    """What a filter returns for a system call."""
    data = struct.pack("<IIQQ", number, architecture, 0, first)
    lines = list(struct.iter_unpack("=HBBI", program))
    held, at = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            at += if_true if holds else if_false
        at += 1


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_most_escapes_begin_with_is_refused(machine: str) -> None:
    program, architecture = system_call_filter(machine), ARCHITECTURES[machine]
    assert program is not None
    for name, numbers in REFUSED.items():
        number = numbers[list(ARCHITECTURES).index(machine)]
        assert answer(program, architecture, number) == 0x5_0000 | errno.EPERM, name
    assert answer(program, architecture, CLONE3) == 0x5_0000 | errno.ENOSYS
    assert answer(program, architecture, CLONE[machine], NEW_USER_NAMESPACE) == 0x5_0000 | errno.EPERM
    assert answer(program, architecture, CLONE[machine], THREAD) == ALLOWED
    for family in (INTERNET, NETLINK):
        assert answer(program, architecture, SOCKET[machine], family) == 0x5_0000 | errno.EAFNOSUPPORT
    assert answer(program, architecture, SOCKET[machine], UNIX) == ALLOWED


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_everything_else_is_allowed_by_its_own_number_alone(machine: str) -> None:
    program, architecture = system_call_filter(machine), ARCHITECTURES[machine]
    assert program is not None
    column = list(ARCHITECTURES).index(machine)
    special = {numbers[column] for numbers in REFUSED.values()} | {CLONE3, SOCKET[machine]}
    others = set(range(460)) - special
    assert {answer(program, architecture, number) for number in others} == {ALLOWED}
    another = next(value for name, value in ARCHITECTURES.items() if name != machine)
    assert answer(program, another, 0) == KILLED
    if machine == "x86_64":
        assert answer(program, architecture, 0x4000_0000 + SOCKET[machine], INTERNET) == KILLED


def test_a_machine_whose_numbers_are_unknown_has_no_filter() -> None:
    assert system_call_filter("riscv64") is None


def test_the_filter_is_at_work_in_the_sandbox(bubblewrap: str, start_engine: StartEngine) -> None:
    if system_call_filter() is None:
        pytest.skip("no filter for this kind of machine")
    running = start_engine(AT_WORK, bubblewrap)
    assert finish(running) == 0, running.log()
    found = json.loads(running.log().splitlines()[-1])
    refused = {name for name, number in found.items() if number == errno.EPERM}
    assert refused == {"unshare", "ptrace", "mount", "setns", "chroot", "io_uring_setup"}
    assert {number for name, number in found.items() if name.isdigit()} == {errno.EAFNOSUPPORT}
