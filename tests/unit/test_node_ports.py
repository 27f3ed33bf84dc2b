"""Ports of private nodes are free, different, and nobody else's."""

import socket
from pathlib import Path

import pytest

from asyncq.testing.node.ports import accepts, free_ports, is_free


def test_free_ports_are_different_and_free() -> None:
    """Each of them could be listened on now."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) for port in ports)


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    """It accepts instead."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert accepts(port)
    assert is_free(port)
    assert not accepts(port)


def test_free_ports_are_none_that_the_system_gives_to_outgoing_connections() -> None:
    """Otherwise a client could take a node's port while the node is down."""
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not limits.exists():
        pytest.skip("only Linux tells the range")
    first = int(limits.read_text().split()[0])
    assert all(port < first for port in free_ports(20))
