"""What runs one broker: the seam below `Node`."""

from typing import Protocol

from .configuration import Ports


class Engine(Protocol):
    """Runs one broker, as processes of this machine or as a container."""

    @property
    def how(self) -> str:
        """Say in words what runs the broker."""
        ...

    def ports(self) -> Ports | None:
        """Return the ports of the running broker, or None."""
        ...

    def start(self) -> Ports:
        """Start the broker, or find it running, and wait until it serves."""
        ...

    def stop(self) -> None:
        """Stop the broker, if it runs. Its data stays."""
        ...

    def kill(self) -> None:
        """End the running broker by SIGKILL and wait until it is gone."""
        ...

    def end(self) -> None:
        """End the broker and what belongs to it by SIGKILL, if they run."""
        ...

    def freeze(self) -> None:
        """Stop the broker in its tracks."""
        ...

    def thaw(self) -> None:
        """Let a frozen broker go on."""
        ...

    def remove(self) -> None:
        """End the broker and delete its data."""
        ...

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the broker and return what it prints."""
        ...
