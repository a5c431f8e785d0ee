"""A filter on system calls, as classic BPF for seccomp(2): what no job needs and most escapes begin with."""

import errno
import platform
import struct

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers below, and the kernel's AUDIT_ARCH of the machine."""

REFUSED = {  # numbers on x86_64 and aarch64
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_NEW_NAMESPACES = 0x7E02_0000
_AF_UNIX = 1
_X32 = 0x4000_0000

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`; of an argument the lower half, on a little-endian machine."""
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF_0000, 0x8000_0000, 0x0005_0000


def system_call_filter(machine: str = platform.machine()) -> bytes | None:
    """Instructions (`struct sock_filter`) for this kind of machine; None for one whose numbers are not known here.

    Sockets of any family but AF_UNIX are refused, and namespaces, mounts, tracing, keys, io_uring, BPF, modules.
    """
    if machine not in _ARCHITECTURES:
        return None
    column, architecture = _ARCHITECTURES[machine]
    lines = [_line(_LOAD, _ARCHITECTURE), _line(_IF_EQUAL, architecture, 1, 0), _line(_RETURN, _KILL)]
    lines.append(_line(_LOAD, _NUMBER))
    if machine == "x86_64":  # the same calls by other numbers
        lines += [_line(_IF_AT_LEAST, _X32, 0, 1), _line(_RETURN, _KILL)]
    for numbers in REFUSED.values():
        lines += _answer(numbers[column], errno.EPERM)
    # clone3 keeps its flags where a filter cannot look; a libc without it falls back to clone.
    lines += _answer(_CLONE3[column], errno.ENOSYS)
    lines += _unless(_CLONE[column], _line(_IF_ANY_BIT, _NEW_NAMESPACES, 1, 0), errno.EPERM)
    lines += _unless(_SOCKET[column], _line(_IF_EQUAL, _AF_UNIX, 0, 1), errno.EAFNOSUPPORT)
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _answer(number: int, error: int) -> list[bytes]:
    return [_line(_IF_EQUAL, number, 0, 1), _line(_RETURN, _ERROR | error)]


def _unless(number: int, is_harmless: bytes, error: int) -> list[bytes]:
    """`error` for a call unless its first argument passes `is_harmless`, which skips a line where it is not."""
    return [
        _line(_IF_EQUAL, number, 0, 4),
        _line(_LOAD, _FIRST_ARGUMENT),
        is_harmless,
        _line(_RETURN, _ALLOW),
        _line(_RETURN, _ERROR | error),
    ]
