"""On which versions of RabbitMQ the tests run, and how their nodes are set up."""

from __future__ import annotations

import os

from asyncq.testing.node import Setup

VERSIONS = [
    version.strip() for version in os.environ.get("ASYNCQ_TEST_VERSIONS", "3.10,4.3").split(",") if version.strip()
]

# Statistics are refreshed every 5 s by default; tests wait for what they show.
TEST_SETUP = Setup(
    conf="consumer_timeout = 86400000\ncollect_statistics_interval = 200\n",
    advanced="""\
[{rabbit, [{quorum_tick_interval, 200}]},
 {rabbitmq_management,
  [{management_db_cache_multiplier, 0},
   {sample_retention_policies, [{global, [{60, 1}]}, {basic, [{60, 1}]}, {detailed, [{10, 1}]}]}]}].""",
)
