"""Random workflows of pure functions on RabbitMQ: real workers come to what plain Python computes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asyncq import AsyncQ
from reference_workflows import Description, declare, descriptions, expected, outcome, worker


@pytest.mark.also_on("3.10")
def test_random_workflows_come_to_what_plain_python_computes_on_rabbitmq(broker_url):
    """Four at a time, with one worker; `make prove` runs more of them."""
    app = AsyncQ("shop", broker=broker_url, slots=20)
    declare(app)
    with worker(app) as runner:

        @settings(
            max_examples=8 if settings().max_examples <= 100 else 150,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink a failure would take minutes
        )
        @given(st.lists(descriptions(), min_size=4, max_size=4))
        def check(described: list[Description]) -> None:
            found = runner.run(_outcomes(app, described))
            assert found == [expected(description) for description in described]

        check()


async def _outcomes(app: AsyncQ, described: list[Description]) -> list[object]:
    return await asyncio.gather(*(outcome(app, description) for description in described))
