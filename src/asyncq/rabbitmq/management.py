"""RabbitMQ's management HTTP API, read only, by the standard library.

It tells what AMQP cannot: arguments, bindings, permissions, alarms. Where it cannot be reached, a tool goes on
without it, and says what it could not see.

Invariant: the password goes to the named host only; a redirect is an error.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from yarl import URL

from asyncq.errors import AccessRefused, BrokerError, BrokerUnavailable, ConfigurationError

__all__ = ["ManagementApi", "management_url", "path_of"]

_PORT = 15672
_TLS_PORT = 15671
_FAILED_CHECK = 503
_STUMBLED = 500
_TRIES_AGAIN_AFTER_S = (0.2, 1.0)


def management_url(broker: URL) -> str:
    """Return where RabbitMQ's defaults put the management API of a broker: its host, port 15672, or 15671 with TLS."""
    host = broker.host or "localhost"
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{_TLS_PORT}" if broker.scheme == "amqps" else f"http://{host}:{_PORT}"


def path_of(*parts: str) -> str:
    """Return a path with each part percent-encoded, the slash of the virtual host "/" included."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


class ManagementApi:
    """The management API of one broker.

    Args:
        url: `http://host:15672`, or `https://`. A user and a password in it win over the broker's.
        broker: The broker's URL, for user and password.
        timeout_s: For each answer, in seconds.

    Raises:
        ConfigurationError: The URL cannot be used.
    """

    def __init__(self, url: str, broker: URL, timeout_s: float) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None  # its text is not passed on: it may hold a password
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(
                "The management URL (--management-url, ASYNCQ_MANAGEMENT_URL) cannot be read. "
                "It looks like http://host:15672, or https:// for TLS."
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
        self.user = unquote(parts.username) if parts.username else (broker.user or "guest")
        password = unquote(parts.password or "") if parts.username else (broker.password or "guest")
        token = base64.b64encode(f"{self.user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}"}
        self._timeout_s = timeout_s
        # No proxy: it stands beside the broker, which is reached without one.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)

    async def get(self, path: str) -> Any:
        """Return the JSON of `/api` + path; of a health check also where it has failed.

        Raises:
            AccessRefused: The user may not read this.
            BrokerUnavailable: No management API answers there.
        """
        for pause_s in _TRIES_AGAIN_AFTER_S:
            with suppress(_Stumbled):
                return await asyncio.to_thread(self._get, path)
            await asyncio.sleep(pause_s)
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/api{path}", headers=self._headers)  # noqa: S310 - http(s), checked
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                body = error.read(100_000)
            if error.code == _FAILED_CHECK:
                with suppress(ValueError):
                    return json.loads(body)
            refused = self._refused(error, body.decode(errors="replace"))
            raise (_Stumbled(str(refused)) if error.code == _STUMBLED else refused) from None
        except (OSError, http.client.HTTPException) as error:
            raise BrokerUnavailable(f"no management API answers at {self.url}: {_said(error)}") from None
        except ValueError:
            raise BrokerUnavailable(f"what answers at {self.url} is no management API: it sends no JSON") from None

    def _refused(self, error: urllib.error.HTTPError, said: str) -> BrokerError:
        if error.code not in {401, 403}:
            return BrokerUnavailable(f"what answers at {self.url} says {error.code} {error.reason}")
        for words, tag in _TAGS.items():
            if words in said:
                return AccessRefused(f"user {self.user!r} has not the tag `{tag}`, which the management API wants")
        return AccessRefused(f"the management API at {self.url} does not accept user {self.user!r} with this password")


class _Stumbled(BrokerUnavailable):
    """It has answered 500, as RabbitMQ 3.10 does to who lists queues while a stream is being declared."""


_TAGS = {
    "Not management user": "management",
    "Not monitor user": "monitoring",
    "Not administrator user": "administrator",
}


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the password to another place."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nowhere: urllib then takes the redirect for the error that it is."""
