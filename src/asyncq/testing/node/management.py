"""Speak to RabbitMQ's management HTTP API, with the standard library only."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from .errors import NodeError

_TIMEOUT_S = 30.0


class ManagementError(NodeError):
    """The management API refused a request, or it could not be reached.

    Args:
        status: The HTTP status, or None when there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Management:
    """The management API of one broker.

    Args:
        url: Its address, such as `http://127.0.0.1:15672`.
        user: A user with the tag `management` or more.
        password: The user's password.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url.rstrip("/")
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        # Loopback needs no proxy, whatever the environment says.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, method: str, path: str, body: object = None, *, timeout_s: float = _TIMEOUT_S) -> Any:
        """Send one request and return the JSON of the answer, or None where it has none.

        Args:
            method: `GET`, `PUT`, `POST` or `DELETE`.
            path: What follows `/api`, such as `/queues/shop/mail`; names in it are percent-encoded.
            body: What to send as JSON.
            timeout_s: How long to wait for the answer.

        Raises:
            ManagementError: The API refused the request, or it could not be reached.
        """
        data = None if body is None else json.dumps(body).encode()
        url = f"{self._url}/api/{path.removeprefix('/').removeprefix('api/')}"
        request = urllib.request.Request(url, data=data, method=method, headers=self._headers)
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise ManagementError(f"{method} {url}: {error.code} {said}", error.code) from None
        except (OSError, http.client.HTTPException) as error:
            raise ManagementError(f"{method} {url}: {error}") from error
        return json.loads(text) if text else None
