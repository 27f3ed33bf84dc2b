"""The way to the mail server."""

import smtplib
from email.message import EmailMessage

HOST = "localhost"


def deliver(to: str, subject: str) -> str:
    """Hand a mail to the server, and return its message id.

    Raises:
        ConnectionError: Nobody answers.
    """
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "shop@bookshop.example", to, subject
    mail["Message-ID"] = f"<{abs(hash((to, subject)))}@bookshop.example>"
    with smtplib.SMTP(HOST, timeout=10) as server:
        server.send_message(mail)
    return str(mail["Message-ID"])
