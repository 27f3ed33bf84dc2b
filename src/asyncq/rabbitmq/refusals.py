"""What it means when the broker refuses a declaration, and how to help.

Pure: the broker's text in, one of our errors out. Invariant: the error names the object, the difference and a
remedy. The broker never says more than the first difference that it finds.
"""

from __future__ import annotations

import re
from shlex import quote

import aiormq.exceptions as amqp

from asyncq.errors import AccessRefused, BrokerError, TopologyMismatch
from asyncq.rabbitmq.failures import broker_text, operation_error

__all__ = ["mismatch", "refusal", "remedy"]

# PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mail' in vhost '/': received 'quorum' but
# current is 'classic'; or: received the value '50' of type 'byte' but current is none
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>queue|exchange) '(?P<name>.*)' in vhost '(?P<vhost>.*)': "
    r"received (?P<ours>.+) but current is (?P<theirs>.+)"
)
_TYPED_VALUE = re.compile(r"the value '(?P<value>.*)' of type '\w+'")

# ACCESS_REFUSED - access to queue 'mail' in vhost '/' refused for user 'shop'; RabbitMQ 3.13 and later put the
# permission in front: configure access to queue ...
_REFUSED = re.compile(
    r"(?:(?P<permission>configure|write|read) )?access to (?P<kind>queue|exchange|topic) '(?P<name>.*)' in vhost "
    r"'(?P<vhost>.*)' refused for user '(?P<user>.*)'"
)


def refusal(error: BaseException, kind: str, name: str, doing: str) -> BrokerError:
    """Return our error for a declaration that the broker refused.

    Args:
        error: What the AMQP client raised.
        kind: `queue`, `exchange` or `binding`.
        name: The object's name.
        doing: What was tried, in words that can follow "while".
    """
    if isinstance(error, amqp.ChannelPreconditionFailed):
        return mismatch(broker_text(error), doing)
    if isinstance(error, amqp.ChannelLockedResource):
        return TopologyMismatch(
            f"{kind.capitalize()} {name!r} exists and is exclusive to another connection, so nobody else can use it. "
            f"Use another {kind} name, or end the program that holds it. The broker said: {broker_text(error)}"
        )
    if isinstance(error, amqp.ChannelAccessRefused):
        return _no_permission(broker_text(error), kind, doing)
    return operation_error(error, doing)


def mismatch(said: str, doing: str) -> TopologyMismatch:
    """Return our error for what exists with other arguments, from the broker's words for it."""
    found = _INEQUIVALENT.search(said)
    if found is None:
        return TopologyMismatch(f"The broker refused while {doing}: {said}")
    argument, kind, name, vhost = (found[part] for part in ("argument", "kind", "name", "vhost"))
    ours, theirs = _value(found["ours"]), _value(found["theirs"])
    return TopologyMismatch(
        f"{kind.capitalize()} {name!r} in virtual host {vhost!r} exists with other arguments: {argument!r} is {theirs} "
        f"there, and asyncq needs {ours} (the broker names one difference; `asyncq topology diff MODULE:APP` shows "
        f"all). RabbitMQ cannot change the arguments of a {kind} that exists. "
        + remedy(kind, name, vhost, argument, theirs)
    )


def _value(text: str) -> str:
    typed = _TYPED_VALUE.fullmatch(text)
    if typed:
        text = typed["value"]
    return "not set" if text == "none" else repr(text.strip("'"))


def remedy(kind: str, name: str, vhost: str, argument: str, theirs: str) -> str:
    """Return what to do about a queue or exchange with another argument: `theirs`, quoted, or `not set`."""
    if kind == "exchange":
        return (
            "Use another namespace (ASYNCQ_NAMESPACE); or, when nobody uses it, delete it (management UI: Exchanges, "
            f"{name}, Delete) and start again."
        )
    keep = "Use another queue name; or, "
    if argument == "x-max-age":
        keep = (
            "All apps of one namespace keep cancellations for the same time (cancellations_kept_s, "
            "ASYNCQ_CANCELLATIONS_KEPT_S; 0 switches cancelling off). Or, "
        )
    if argument == "x-delivery-limit" and theirs != "not set":
        keep = f"Set the delivery limit to {theirs} (ASYNCQ_DELIVERY_LIMIT). Or use another queue name; or, "
    return (
        f"{keep}when its messages are no longer needed and nobody uses it, delete it with "
        f"`rabbitmqctl --vhost {quote(vhost)} delete_queue {quote(name)}` (management UI: Queues, {name}, Delete) "
        "and start again: it is then declared as asyncq needs it."
    )


def _no_permission(said: str, kind: str, doing: str) -> AccessRefused:
    found = _REFUSED.search(said)
    if found is None:
        return AccessRefused(f"The broker refused while {doing}: {said}")
    user, vhost, target = found["user"], found["vhost"], f"{found['kind']} {found['name']!r}"
    # Before 3.13 the broker does not say which one. A binding needs write on its destination and read on its
    # source; a declaration needs configure, and for its dead-letter or alternate exchange read here and write there.
    # Source: https://www.rabbitmq.com/docs/access-control#authorisation
    likely = "write or read" if kind == "binding" else "configure, write or read"
    permission = found["permission"] or likely
    return AccessRefused(
        f"User {user!r} lacks the permission {permission} on {target} in virtual host {vhost!r}, while {doing}. "
        f"Grant it with `rabbitmqctl set_permissions --vhost {quote(vhost)} {quote(user)} CONFIGURE WRITE READ`, each "
        "a regular expression that matches the name ('.*' matches all); or let a user with more rights run "
        "`asyncq topology apply MODULE:APP`."
    )
