"""Random workflows of pure functions: real workers on the broker in memory come to what plain Python computes.

tests/integration/test_random_workflows.py does it on RabbitMQ.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from asyncq import AsyncQ
from asyncq.program_json import program_from_json, program_json
from asyncq.workflow.compiling import compiled
from reference_workflows import Description, Failed, declare, descriptions, evaluated, expected, outcome, whole, worker

app = AsyncQ("shop", broker="memory://random-workflows", slots=20)
declare(app)


def test_random_workflows_come_to_what_plain_python_computes():
    """Results, and whether they fail."""
    with worker(app) as runner:

        @settings(max_examples=max(60, settings().max_examples // 2))
        @given(descriptions())
        def check(description: Description) -> None:
            assert runner.run(outcome(app, description)) == expected(description)

        check()


@given(descriptions())
def test_random_workflows_are_the_same_after_a_journey_as_json(description):
    """As values, as programs, as pictures."""
    workflow = whole(description, app)
    assert app.workflow_from_json(workflow.to_json()) == workflow
    program = compiled(workflow, "w", 1)
    assert program_from_json(program_json(program)) == program
    assert str(workflow)
    assert workflow.draw().startswith("flowchart")


def test_a_failure_in_the_reference_is_a_failure():
    """So the property can fail."""
    assert expected(("chain", (("call", "fail", {}), ("take", "same", {})))) is Failed
    assert expected(("chord", (("call", "fail", {}),), ("take", "flat", {}), "collect")) == 1000
    with pytest.raises(Failed):
        evaluated(("chord", (("call", "fail", {}),), ("take", "flat", {}), "stop"))
