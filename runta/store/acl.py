"""POSIX ACLs: the text a tar holds as the value the kernel takes (linux/posix_acl_xattr.h)."""

from __future__ import annotations

import struct

from runta.errors import InvalidArgument

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"
_VERSION = 2
_NO_ID = 0xFFFFFFFF
_TAGS = {("user", False): 0x01, ("user", True): 0x02, ("group", False): 0x04, ("group", True): 0x08}
_MASK, _OTHER = 0x10, 0x20


def encode_acl(text: str, name: str) -> bytes:
    """An ACL such as `user::rw-,user:1000:r--,mask::r--` as an extended attribute, for the archive's entry `name`."""
    lines = [part.split("#")[0].strip() for part in text.replace("\n", ",").split(",")]
    entries = sorted(_parse(line, name) for line in lines if line)
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _parse(line: str, name: str) -> tuple[int, int, int]:
    kind, _, rest = line.partition(":")
    who, _, rest = rest.partition(":")
    allowed, _, number = rest.partition(":")
    bits = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in allowed)
    kind = {"u": "user", "g": "group", "m": "mask", "o": "other"}.get(kind, kind)
    if kind in ("mask", "other"):
        return (_MASK if kind == "mask" else _OTHER, bits, _NO_ID)
    if (kind, bool(who)) not in _TAGS:
        raise _refuse(line, name)
    if not who:
        return (_TAGS[kind, False], bits, _NO_ID)
    number = number or who
    if not number.isdecimal():
        raise _refuse(line, name)
    return (_TAGS[kind, True], bits, int(number))


def _refuse(line: str, name: str) -> InvalidArgument:
    return InvalidArgument(
        f"the archive's entry {name!r} was refused",
        cause=f"its access list has {line!r}: a name that only the host which packed it can tell the id of",
        hint="pack it with bsdtar, which writes ids, or without access lists",
    )
