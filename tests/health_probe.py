"""What a container probe sees: `/healthz` and `/readyz` of a port, and the address that a command's log tells."""

import json
import re
import urllib.error
import urllib.request

from support import eventually


async def metrics_url(running):
    """Return the address that a command serves metrics and health on, once its log tells it."""
    found = await eventually(lambda: re.search(r"http://[\w.:\[\]]+:\d+", running.stderr), 20)
    return found[0]


def get(url):
    """Return status and text of an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # an environment's proxy is not for loopback
    try:
        with opener.open(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def probe(url, path):
    """Return status and report of a probe."""
    status, text = get(url + path)
    return status, json.loads(text)
