"""Extended attributes of captured trees: which belong to one, and the ids in them.

Ids stand in POSIX ACLs and in file capabilities (linux/posix_acl_xattr.h, linux/capability.h). Source for the overlay's
marks: the kernel's overlayfs.rst.
"""

from __future__ import annotations

import struct

_OVERLAY = "trusted.overlay."
# The others name inodes of the source's file systems (origin, upper, uuid), or are the kernel's own bookkeeping.
_OVERLAY_KEPT = frozenset({"opaque", "redirect", "xwhiteouts", "protattr"})
_ACLS = frozenset({"system.posix_acl_access", "system.posix_acl_default"})
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_CAPABILITY = "security.capability"
_CAP_REVISION_MASK, _CAP_REVISION_2, _CAP_REVISION_3 = 0xFF000000, 0x02000000, 0x03000000


def is_kept(name: str) -> bool:
    """Whether an xattr belongs to the tree's content rather than to one mount's bookkeeping."""
    return not name.startswith(_OVERLAY) or name.removeprefix(_OVERLAY) in _OVERLAY_KEPT


def shift_xattr(name: str, value: bytes, shift: int) -> bytes:
    """The xattr with `shift` subtracted from every id in it."""
    if name in _ACLS:
        return _shift_acl(value, shift)
    if name == _CAPABILITY:
        return _shift_capability(value, shift)
    return value


def _shift_acl(value: bytes, shift: int) -> bytes:
    """Each entry after the 4-byte version: tag, permissions, id (u16, u16, u32; only named users and groups have an
    id)."""
    shifted = bytearray(value)
    for offset in range(4, len(value) - 7, 8):
        tag, permissions, number = struct.unpack_from("<HHI", value, offset)
        if tag in (_ACL_USER, _ACL_GROUP):
            struct.pack_into("<HHI", shifted, offset, tag, permissions, unshift(number, shift))
    return bytes(shifted)


def _shift_capability(value: bytes, shift: int) -> bytes:
    """A capability set by the root of a user namespace names that root (revision 3); a plain one does not (revision
    2)."""
    (magic,) = struct.unpack_from("<I", value)
    if magic & _CAP_REVISION_MASK != _CAP_REVISION_3 or len(value) < 24:
        return value
    (root,) = struct.unpack_from("<I", value, 20)
    if root == shift:
        return struct.pack("<I", magic & ~_CAP_REVISION_MASK | _CAP_REVISION_2) + value[4:20]
    return value[:20] + struct.pack("<I", unshift(root, shift))


def unshift(number: int, shift: int) -> int:
    """The id inside; one below the range belongs to the host and stays what it is."""
    return number - shift if number >= shift else number
