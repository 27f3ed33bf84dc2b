"""Traces of real programs: a web service, and workers as people start them, which export to a receiver of OTLP."""

import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from otlp_receiver import receiving
from support import eventually

pytestmark = pytest.mark.any_version

SHOP = """
import os

from opentelemetry import trace

from asyncq import AsyncQ, Fixed, RetryPolicy, TaskContext

app = AsyncQ("shop")


@app.task(queue="mail", run_in="process")
def receipt(order: int) -> int:
    with trace.get_tracer("shop").start_as_current_span("render receipt"):
        return os.getpid()


@app.task(queue="bank", retry=RetryPolicy(max_attempts=2, backoff=Fixed(0.05)), pass_context=True)
async def pay(ctx: TaskContext, order: int) -> int:
    if ctx.attempt == 1:
        raise ConnectionError("the bank does not answer")
    return order
"""

SERVICE = """
from fastapi import FastAPI

from asyncq.integrations.fastapi import asyncq_lifespan
from shop import app, pay, receipt

api = FastAPI(lifespan=asyncq_lifespan(app))


@api.post("/orders/{order}", status_code=202)
async def order(order: int) -> str:
    handle = await (pay.s(order) | receipt).send()
    return handle.id
"""

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


@contextlib.contextmanager
def web_service(shell, environment):
    """Run `service:api` under uvicorn, and that under `opentelemetry-instrument`; give its URL, and its log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    programs = Path(sys.executable).parent
    command = [programs / "opentelemetry-instrument", programs / "uvicorn", "service:api", "--port", str(port)]
    log = shell.folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=shell.folder, env={**shell.environment, **environment}
        )
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait()


async def test_one_trace_from_the_web_request_to_the_end_of_the_chain(shell, receiver):
    """Through the retry of its first task, in four processes.

    They are the service's, that of a worker under a supervisor, a worker's, and a task's own. It takes some seconds,
    because it starts them all.
    """
    (shell.folder / "shop.py").write_text(SHOP)
    (shell.folder / "service.py").write_text(SERVICE)
    otel = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process",
    }
    workers = [
        shell.start(
            *("worker", "shop:app", "--queue", queue, "--tracing", *more),
            environment={**otel, "OTEL_SERVICE_NAME": f"{queue}-worker"},
        )
        for queue, more in (("bank", ["--processes", "1"]), ("mail", []))
    ]
    web = {
        **otel,
        "OTEL_SERVICE_NAME": "web",
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_BSP_SCHEDULE_DELAY": "50",  # uvicorn ends itself by the signal that has stopped it, and exports no more
    }
    with web_service(shell, web) as (url, log):
        for worker in workers:
            await worker.says("worker consumes", 90)
        await eventually(lambda: "startup complete" in log.read_text(), 90)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            answer = await client.post(f"{url}/orders/7", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
        assert answer.status_code == 202, answer.text
        await workers[1].says("task succeeded", 60)
        await eventually(lambda: any(span.name == "POST /orders/{order}" for span in receiver.spans(TRACE)), 60)
    for worker in workers:  # what waits to be exported goes out at their end
        worker.signal()
        assert await worker.ends(60) == 0
    tree = receiver.tree(TRACE, CALLER)
    print("\n".join(tree))
    assert [line for line in tree if "http s" not in line] == [
        "POST /orders/{order} (web)",
        "  send shop.pay (web)",
        "    process shop.pay 1 retry (bank-worker)",
        "    process shop.pay 2 succeeded (bank-worker)",
        "      send shop.receipt (bank-worker)",
        "        process shop.receipt 1 succeeded (mail-worker)",
        "          render receipt (mail-worker)",
    ]
    asyncq_spans = [span for span in receiver.spans() if span.name.startswith(("send", "process"))]
    assert {span.trace_id for span in asyncq_spans} == {TRACE}
    assert len({span.resource["process.pid"] for span in receiver.spans(TRACE)}) == 4
    logged = re.findall(r"trace_id=(\w+)", workers[0].stderr + workers[1].stderr)
    assert set(logged) == {TRACE}
    assert len(logged) == 3  # a retry, two successes


@pytest.mark.parametrize("command", [("worker",), ("scheduler",)])
def test_an_exporter_that_is_not_installed_is_one_clear_line(offline_shell, command):
    """Before anything is connected."""
    done = offline_shell.run(*command, "shop:app", "--tracing", environment={"OTEL_TRACES_EXPORTER": "nosuch"})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "exported by 'nosuch'" in done.stderr
    assert "package opentelemetry-exporter-nosuch" in done.stderr
