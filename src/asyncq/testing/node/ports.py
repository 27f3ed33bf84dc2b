"""Choose free ports on the loopback interface.

They lie below the range from which the system takes ports for outgoing
connections, so that nobody gets a node's port while the node is down.
"""

import random
import socket

_FIRST, _LAST = 20000, 29999
_TRIES = 200


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: connections of an earlier run that are still winding down do no harm.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Return whether somebody listens on this port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return so many different ports that are free now.

    Raises:
        OSError: There are not enough of them.
    """
    found: list[int] = []
    for _ in range(_TRIES * count):
        port = random.randint(_FIRST, _LAST)
        if port not in found and is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports between {_FIRST} and {_LAST} on 127.0.0.1")
