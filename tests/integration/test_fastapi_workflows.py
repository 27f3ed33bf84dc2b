"""How far a workflow is, as a web service tells it: over real HTTP, with a real broker and a store in a file."""

from fastapi import FastAPI

from asyncq import AsyncQ, chord
from asyncq.integrations.fastapi import asyncq_lifespan, task_router, workflow_router
from support import eventually, working
from web_server import serving


def make_app(broker_url, results):
    """Return the app, as the service and the worker have it."""
    app = AsyncQ("shop", broker=broker_url, results=results)

    @app.task
    async def count(word: str) -> int:
        if not word:
            raise ValueError("no word")
        return len(word)

    @app.task
    async def total(counts: list[int]) -> int:
        return sum(counts)

    return app


async def test_a_service_tells_how_far_each_task_of_a_workflow_is(broker_url, tmp_path):
    """From queued to the end; of one that fails what never runs; and what is none is not found."""
    results = f"sqlite:///{tmp_path}/results.db"
    app, worker_app = make_app(broker_url, results), make_app(broker_url, results)
    count, total = app.tasks["shop.count"], app.tasks["shop.total"]
    api = FastAPI(lifespan=asyncq_lifespan(app))
    api.include_router(task_router())
    api.include_router(workflow_router())

    @api.post("/totals")
    async def send(words: list[str]) -> str:
        return (await chord([count.s(word) for word in words], total).send()).id

    async with serving(api) as client:

        async def ended(workflow_id):
            status = (await client.get(f"/workflows/{workflow_id}")).json()
            return status if status["final"] else None

        good = (await client.post("/totals", json=["a", "bcd"])).json()
        queued = (await client.get(f"/workflows/{good}")).json()
        assert (queued["state"], queued["final"], queued["done"], queued["total"]) == ("queued", False, 0, 3)
        assert [task["path"] for task in queued["tasks"]] == ["0.0.0", "0.1.0", "1"]
        bad = (await client.post("/totals", json=["a", ""])).json()
        async with working(worker_app):
            done = await eventually(lambda: ended(good), 30)
            assert (done["state"], done["done"]) == ("succeeded", 3)
            failed = await eventually(lambda: ended(bad), 30)
            whole = await eventually(lambda: final_task(client, good), 30)
        assert (whole["task"], whole["result"]) == ("chord", 4)
        assert failed["state"] == "failed"
        assert [task["stopped"] for task in failed["tasks"]] == [False, False, True]
        assert failed["tasks"][1]["error"] == {"type": "builtins.ValueError", "message": "no word", "traceback": None}
        short = (await client.get(f"/workflows/{bad}", params={"all_tasks": "false"})).json()
        assert [task["path"] for task in short["tasks"]] == ["0.1.0"]
        assert (await client.get("/workflows/nobody")).status_code == 404
        assert (await client.get(f"/workflows/{'x' * 300}")).status_code == 422


async def final_task(client, task_id):
    """Return what the router of tasks says of a workflow, once it has ended."""
    status = (await client.get(f"/tasks/{task_id}")).json()
    return status if status["final"] else None
