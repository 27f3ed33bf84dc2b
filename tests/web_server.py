"""A FastAPI service on loopback, in the test's own event loop, and a client for it. Responses stream, as in earnest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI

from support import eventually

TIMEOUT_S = 30


@dataclass(frozen=True)
class Event:
    """One server-sent event, as a browser reads it."""

    id: str
    data: dict


@contextlib.asynccontextmanager
async def serving(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service, and give a client for it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(api, log_config=None, lifespan="on", timeout_graceful_shutdown=5))
        running = asyncio.create_task(server.serve([listening]))
        try:
            await eventually(lambda: server.started or running.done(), timeout=TIMEOUT_S)
            assert server.started, "the service has not started"
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as client:
                yield client
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, TIMEOUT_S)


async def events_in(response: httpx.Response) -> AsyncIterator[Event]:
    """Read the events of a response, until the server ends it. Comments are left out."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(fields["id"], json.loads(fields["data"]))
            fields = {}
