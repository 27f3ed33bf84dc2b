"""What the bookshop's tests share."""

import pytest

from bookshop import mail


@pytest.fixture
def mailbox(monkeypatch):
    """What was delivered, in place of a mail server."""
    delivered = []

    def deliver(to, subject):
        delivered.append((to, subject))
        return f"<{len(delivered)}@bookshop.example>"

    monkeypatch.setattr(mail, "deliver", deliver)
    return delivered
