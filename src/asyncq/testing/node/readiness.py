"""Wait until a broker serves."""

import time
from collections.abc import Callable

from .configuration import Ports, Setup
from .errors import NodeFailed
from .management import Management, ManagementError
from .ports import accepts

START_TIMEOUT_S = 120.0


def wait_until_it_serves(
    ports: Ports, setup: Setup, *, alive: Callable[[], bool], timeout_s: float = START_TIMEOUT_S
) -> None:
    """Wait until a broker accepts AMQP connections and its management API answers.

    Args:
        ports: Where it listens.
        setup: The user to ask as.
        alive: Whether there is still something to wait for.
        timeout_s: How long to wait.

    Raises:
        NodeFailed: It does not serve; the message says what was last seen.
    """
    management = Management(f"http://127.0.0.1:{ports.management}", setup.user, setup.password)
    deadline = time.monotonic() + timeout_s
    problem = f"nothing listens on its AMQP port {ports.amqp}"
    while time.monotonic() < deadline:
        if not alive():
            raise NodeFailed("its process has ended")
        # While it boots, the API answers some requests already and fails others: this is one of the last.
        if accepts(ports.amqp):
            try:
                management.request("GET", "/overview", timeout_s=5.0)
            except ManagementError as error:
                problem = str(error)
            else:
                return
        time.sleep(0.1)
    raise NodeFailed(f"it does not serve after {timeout_s:g} s: {problem}")
