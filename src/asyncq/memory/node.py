"""The state behind brokers in memory: what a RabbitMQ node is to its clients.

Apps come and go, in several loops and threads of one process; the node and what is queued in it stay.

    MemoryBroker ──publish──▶ node ──▶ queue ──▶ subscription of any MemoryBroker on this node
                       │        ▲
                       └─delay──┘ when the clock says so

Invariant: all state changes under one lock, and nothing of a user's runs under it. Delayed messages are released by
the alarm of any open broker, so they need no loop of the node's own, and wait while no broker is open.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from asyncq.broker import Publication, QueueSpec
from asyncq.clock import Clock, SystemClock
from asyncq.control import WorkerName
from asyncq.errors import ConfigurationError, QueueGone
from asyncq.memory.log import MemoryLog
from asyncq.memory.queues import MemoryBarrier, MemoryQueue, Stored
from asyncq.message import Message
from asyncq.rabbitmq.properties import read_message, written_message
from asyncq.rabbitmq.refusals import mismatch
from asyncq.rabbitmq.topology import Names

__all__ = ["Alarm", "Listener", "MemoryNode", "Reply", "node_of"]

_URL = re.compile(r"memory://(?P<name>[A-Za-z0-9_.-]*)/?")


class Alarm(Protocol):
    """Who releases delayed messages when they are due."""

    def rearm(self) -> None:
        """Look at `MemoryNode.next_due_s` again: it has changed. Called from any thread."""
        ...


Reply = Callable[[WorkerName, bytes], None]
"""Takes the answer of a worker. Called from any thread."""


class Listener(Protocol):
    """A worker that hears questions."""

    name: WorkerName

    def hear(self, body: bytes, reply: Reply) -> None:
        """Hear one. Called from any thread."""
        ...


class MemoryNode:
    """Queues and delayed messages in this process. Safe with threads.

    Args:
        clock: What delays go by.
        name: For logs.

    Attributes:
        barriers: Those of chords, by the names of their queues; to be used within `changing`.
    """

    def __init__(self, clock: Clock | None = None, name: str = "memory") -> None:
        self.clock: Clock = clock or SystemClock()
        self.name = name
        self.announced = False
        self._lock = threading.RLock()
        self._queues: dict[str, MemoryQueue] = {}
        self._bindings: set[tuple[str, str]] = set()
        self._delayed: list[tuple[float, int, str, Stored]] = []
        self._numbers = count()
        self._alarms: list[Alarm] = []
        self._leaders: dict[str, object] = {}
        self._leader_queues: set[str] = set()
        self._journals: dict[str, MemoryLog] = {}
        self.barriers: dict[str, MemoryBarrier] = {}
        self._listeners: list[Callable[[], object]] = []
        self._askable: list[Listener] = []
        self._publish_listeners: list[Callable[[Publication], object]] = []

    # --- what is there

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hold the lock, for whoever changes nothing that others wait for."""
        with self._lock:
            yield

    @property
    def queues(self) -> list[str]:
        """The names of all queues, sorted."""
        with self._lock:
            return sorted((*self._queues, *self.barriers))

    def count(self, queue: str) -> int:
        """Return how many messages a queue holds, those included that are handed out and not settled.

        Raises:
            QueueGone: There is no such queue: a 0 for a misspelt name would prove nothing.
        """
        with self._lock:
            found = self._queues.get(queue)
            if found is None:
                raise QueueGone(f"There is no queue {queue!r}. There are: {', '.join(self.queues) or 'none'}.")
            return len(found.ready) + found.unsettled

    def is_waiting(self, queue: str) -> bool:
        """Tell whether a queue holds messages that nobody consumes."""
        with self._lock:
            found = self._queues.get(queue)
            return found is not None and bool(found.ready) and not found.is_consumed

    def is_consumed(self, queue: str) -> bool:
        """Tell whether somebody consumes a queue."""
        with self._lock:
            found = self._queues.get(queue)
            return found is not None and found.is_consumed

    @property
    def delayed(self) -> int:
        """How many messages wait for their time."""
        return len(self._delayed)

    @property
    def busy(self) -> int:
        """How many messages are being worked on, or would be at once: 0 when nothing happens by itself."""
        with self._lock:
            # A leader holds its states for as long as it leads: that is no work.
            queues = sum(queue.busy for queue in self._queues.values() if queue.name not in self._leader_queues)
            return queues + sum(log.unheard for log in self._journals.values())

    def browse(self, queue: str) -> tuple[Stored, ...] | None:
        """Return what is ready, oldest first; None where there is no such queue."""
        with self._lock:
            found = self._queues.get(queue)
            return None if found is None else tuple(found.ready)

    # --- what changes it

    def listen(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back after each change, from whatever thread made it, under the node's lock.

        Returns:
            What ends it.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def on_publish(self, callback: Callable[[Publication], object]) -> Callable[[], None]:
        """Call back with each message that a client sends to a task queue: first sends, no copies.

        Returns:
            What ends it.
        """
        self._publish_listeners.append(callback)
        return lambda: self._publish_listeners.remove(callback)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock, and tell the listeners."""
        with self._lock:
            yield
            for listener in tuple(self._listeners):
                listener()

    def declare(self, names: Names, specs: Collection[QueueSpec]) -> None:
        """Declare task queues with their dead-letter queues; see `asyncq.broker.Broker.ensure`.

        Raises:
            TopologyMismatch: One exists with another delivery limit.
        """
        with self.changing():
            self._make(names.unroutable, None, names)
            for spec in specs:
                self._make(names.dead_queue(spec.name), None, names)
                self._make(spec.name, spec.delivery_limit, names)
                self._bindings.add((names.tasks_exchange, spec.name))

    def declare_own(self, name: str, names: Names) -> MemoryQueue:
        """Declare a queue without limits: for replies, or for dead letters."""
        with self.changing():
            return self._make(name, None, names)

    def declare_leaders(self, name: str, names: Names) -> None:
        """Declare a queue whose consumer leads."""
        with self.changing():
            self._make(name, None, names)
            self._leader_queues.add(name)

    def lead(self, name: str, who: object) -> bool:
        """Tell whether `who` leads under this name: it does from now on, where nobody else does."""
        with self._lock:  # who waits for its turn listens for changes, and must not hear itself
            return self._leaders.setdefault(name, who) is who

    def resign(self, name: str, who: object) -> None:
        """Let others lead. Nothing happens where others do."""
        with self.changing():
            if self._leaders.get(name) is who:
                del self._leaders[name]

    def ask(self, body: bytes, reply: Reply) -> list[WorkerName]:
        """Ask all who can be asked, and return who they are."""
        with self._lock:
            listeners = tuple(self._askable)
            for listener in listeners:
                listener.hear(body, reply)
        return [listener.name for listener in listeners]

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Let a worker be asked; return what ends it."""
        with self._lock:
            self._askable.append(listener)
        return lambda: self._askable.remove(listener)

    def journal(self, name: str) -> MemoryLog:
        """Return the log of a journal, to be used within `changing`. It is made where there is none."""
        return self._journals.setdefault(name, MemoryLog(self.clock))

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all that is in it. Its consumers are told."""
        with self.changing():
            queue = self._queues.pop(name, None)
            self._bindings = {(exchange, key) for exchange, key in self._bindings if key != name}
            if queue is not None:
                queue.delete()
            self.barriers.pop(name, None)
            if (log := self._journals.pop(name, None)) is not None:
                log.delete()

    def purge(self, name: str) -> None:
        """Drop what is ready in a queue."""
        with self.changing():
            if (queue := self._queues.get(name)) is not None:
                queue.ready.clear()

    def find(self, name: str) -> MemoryQueue | None:
        """Return a queue, to be used within `changing`."""
        return self._queues.get(name)

    def is_bound(self, exchange: str, key: str) -> bool:
        """Tell whether an exchange leads to a queue by this key."""
        return (exchange, key) in self._bindings

    def put(self, queue: str, message: Message) -> bool:
        """Put a message into a queue; return whether there is one."""
        stored = self._stored(message)
        with self.changing():
            found = self._queues.get(queue)
            if found is None:
                return False
            found.put(stored)
            return True

    def told(self, publication: Publication) -> None:
        """Tell who listens what a client has sent."""
        for listener in tuple(self._publish_listeners):
            listener(publication)

    # --- delays

    def delay(self, queue: str, message: Message, seconds: float) -> None:
        """Keep a message for so long, then put it into its queue."""
        stored = self._stored(message)
        with self.changing():
            heapq.heappush(self._delayed, (self.clock.monotonic() + seconds, stored.number, queue, stored))
            alarms = tuple(self._alarms) if self._delayed[0][3] is stored else ()
        for alarm in alarms:
            alarm.rearm()

    @property
    def next_due_s(self) -> float | None:
        """In how many seconds the next delayed message is due; None where there is none."""
        with self._lock:
            return max(0.0, self._delayed[0][0] - self.clock.monotonic()) if self._delayed else None

    def release_due(self, names: Names) -> None:
        """Put what is due into its queue; into the unroutable one, where its own was deleted meanwhile."""
        with self.changing():
            while self._delayed and self._delayed[0][0] <= self.clock.monotonic():
                _, _, queue, stored = heapq.heappop(self._delayed)
                found = self._queues.get(queue)
                if found is not None:
                    found.put(dataclasses.replace(stored, number=next(self._numbers)))
                else:  # on RabbitMQ it has expired in the ladder's last queue
                    self._park(names.unroutable, self._dead("", stored, "expired"), queue, names)

    def attach(self, alarm: Alarm) -> None:
        """Let an alarm release what is due."""
        self._alarms.append(alarm)
        alarm.rearm()

    def detach(self, alarm: Alarm) -> None:
        """Let it no longer. Idempotent."""
        if alarm in self._alarms:
            self._alarms.remove(alarm)

    # --- inside

    @staticmethod
    def call(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
        """Call on that loop: at once where it is the running one, else soon. A closed loop hears nothing."""
        try:
            if asyncio.get_running_loop() is loop:
                callback(*args)
                return
        except RuntimeError:
            pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(callback, *args)

    def _stored(self, message: Message) -> Stored:
        return Stored(written_message(message), message.body, next(self._numbers))

    def _make(self, name: str, delivery_limit: int | None, names: Names) -> MemoryQueue:
        queue = self._queues.get(name)
        if queue is None:
            queue = MemoryQueue(name, delivery_limit, lambda stored, why: self._dead_letter(name, stored, why, names))
            self._queues[name] = queue
        elif queue.delivery_limit != delivery_limit:
            raise mismatch(
                f"inequivalent arg 'x-delivery-limit' for queue '{name}' in vhost '{self.name}': received "
                f"'{delivery_limit}' but current is '{queue.delivery_limit}'",
                f"declaring queue {name!r}",
            )
        return queue

    def _dead_letter(self, queue: str, stored: Stored, reason: str, names: Names) -> None:
        """Do what the broker's own dead-lettering does; by its header `x-death` it is told from ours."""
        dead = names.dead_queue(queue)
        self._park(dead if dead in self._queues else names.unroutable, self._dead(queue, stored, reason), queue, names)

    def _dead(self, queue: str, stored: Stored, reason: str) -> Message:
        message = read_message(stored.properties, stored.body)
        death = {
            "count": 1,
            "reason": reason,
            "queue": queue,
            "time": datetime.fromtimestamp(self.clock.now_ms() // 1000, UTC),
            "exchange": "",
            "routing-keys": [queue],
        }
        return dataclasses.replace(message, headers={**message.headers, "x-death": [death]})

    def _park(self, where: str, message: Message, key: str, names: Names) -> None:
        self._make(where, None, names).put(dataclasses.replace(self._stored(message), key=key))


_nodes: dict[str, MemoryNode] = {}
_nodes_lock = threading.Lock()


def node_of(url: str) -> MemoryNode:
    """Return the node that `memory://NAME` means: one for each name in this process.

    Raises:
        ConfigurationError: The URL is another.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigurationError(
            f"{url!r} is no URL of a broker in memory. Write memory:// or, where several are wanted, memory://NAME "
            "(letters, digits, '.', '_', '-')."
        )
    name = found["name"] or "memory"
    with _nodes_lock:
        if name not in _nodes:
            _nodes[name] = MemoryNode(name=name)
        return _nodes[name]
