"""Sends one chord, waits for its end, and prints how much memory that took in this process, in MiB.

python large_chord.py MEMBERS
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from asyncq import AsyncQ
from asyncq.message import new_id
from asyncq.program import Fork, Step, Workflow, node_id


def peak_mib() -> float:
    """Return the most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def arguments(number: int) -> bytes:
    """Return those of a member."""
    return b'{"number":%d,"seconds":0}' % number


async def main(size: int) -> None:
    """Send it."""
    workflow_id = new_id()
    async with AsyncQ("faults-producer", broker=os.environ["ASYNCQ_BROKER_URL"]) as app:
        await app.send("faults.mark", {"key": "first"})  # so that all is imported, and connected
        before = peak_mib()
        members = tuple(
            (Step(node_id(workflow_id, f"0.{n}"), "faults.member", "faults", arguments(n), reply=False),)
            for n in range(size)
        )
        end = Step(node_id(workflow_id, "1"), "faults.body", "faults", into="values", reply=False)
        built = peak_mib()
        sent = await app.send_program(
            (Fork(node_id(workflow_id, "0"), members), end), Workflow(workflow_id), expect=[workflow_id]
        )
        print(f"built {built - before:.1f} sending {peak_mib() - built:.1f}", flush=True)
        await asyncio.wait_for(sent[workflow_id].end(), 500)
        final = sent[workflow_id].final
        assert final is not None
        assert final.type == "succeeded", final


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
