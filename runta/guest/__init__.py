"""The service's side of the guest init's protocol (rootfs/init/PROTOCOL.md). Nothing else knows it.

A `Guest` is one runtime's init; a `GuestStream` is one attachment to a task in it. Streams have a connection each, all
other requests share one. Before a dump every connection is closed (`quiesce`); afterwards streams attach again, by
offset, and their users notice nothing (`open_gate`).
"""

from runta.guest.client import Guest
from runta.guest.stream import GuestStream

__all__ = ["Guest", "GuestStream"]
