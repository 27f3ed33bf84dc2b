"""Send mail by SMTP: text and HTML from templates, with attachments.

One task sends to one recipient, so that an attempt has one end: a list of which one half was accepted could
neither be sent again (the first half would get it twice) nor be given up.

- No connection, a time-out, or an answer of the 400s ("not now"): another attempt later.
- An answer of the 500s ("never"), a bad template or a bad attachment: straight into the dead letters.
- The Message-ID is made from the task's id. Execution is at least once: where a worker dies between the mail
  server's answer and its own, the mail goes out twice, and the recipient can tell by the Message-ID.

Run it with `asyncq worker mail:app` in this folder. Its settings are environment variables, `MAIL_*`.
"""

from __future__ import annotations

import asyncio
import mimetypes
import socket
from email.message import EmailMessage
from email.utils import format_datetime, localtime
from pathlib import Path
from typing import Annotated, Literal

import aiosmtplib
import jinja2
from pydantic import BaseModel, EmailStr, Field, JsonValue, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, Exponential, Reject, Retry, RetryPolicy, TaskContext


class MailSettings(BaseSettings):
    """What the environment says, for example `MAIL_SMTP_HOST=mail.example.org`.

    Attributes:
        smtp_host: The mail server's name or address.
        smtp_port: Its port; 25, 587 (submission) or 465 (TLS from the first byte) as a rule.
        smtp_user: The user to log in as. Without one there is no login.
        smtp_password: That user's password.
        smtp_tls: `tls` from the first byte, `starttls` or no mail at all, `auto` (STARTTLS where the server
            offers it), `off`.
        smtp_timeout_s: How long to wait for each answer of the server, in seconds.
        sender: The address that mail comes from.
        templates_dir: Holds `NAME.txt.j2` and, where a mail is to have HTML too, `NAME.html.j2`.
        attachments_dir: Only files inside this folder can be attached.
        attachments_max_bytes: All attachments of one mail together.
        max_attempts: How often one mail is tried, the first attempt included.
        retry_first_s: The delay after the first failed attempt, in seconds. Each further one doubles it.
        retry_max_s: The longest delay, in seconds.
        time_limit_s: How long one attempt may take, in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="MAIL_", frozen=True)

    smtp_host: str = "localhost"
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 25
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_tls: Literal["auto", "starttls", "tls", "off"] = "auto"
    smtp_timeout_s: Annotated[float, Field(gt=0)] = 20
    # No EmailStr: on a machine without a domain name, local addresses have no dot in them.
    sender: Annotated[str, Field(pattern=r"^[^@\s<>]+@[^@\s<>]+$")] = f"asyncq@{socket.gethostname()}"
    templates_dir: Path = Path(__file__).parent / "templates" / "mail"
    attachments_dir: Path = Path("attachments")
    attachments_max_bytes: Annotated[int, Field(ge=0)] = 10 * 1024 * 1024
    max_attempts: Annotated[int, Field(ge=1)] = 5
    retry_first_s: Annotated[float, Field(ge=0)] = 30
    retry_max_s: Annotated[float, Field(ge=0)] = 3600
    time_limit_s: Annotated[float, Field(gt=0)] = 120


class Receipt(BaseModel):
    """What the mail server accepted.

    Attributes:
        message_id: The mail's Message-ID.
        attempt: The attempt that was accepted; 1 is the first.
        answer: The server's answer.
        size_bytes: The size of the whole mail.
    """

    message_id: str
    attempt: int
    answer: str
    size_bytes: int


class Letter(BaseModel):
    """A mail before it is built.

    Attributes:
        to: The recipient.
        subject: One line.
        template: The name of the templates, without folder and endings.
        values: What the templates can use.
        attachments: Files, relative to `MAIL_ATTACHMENTS_DIR`.
    """

    to: EmailStr
    subject: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]+$")]
    template: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "plain"
    values: dict[str, JsonValue] = {}
    attachments: list[str] = []


settings = MailSettings()
app = AsyncQ("mail")


@app.task(
    pass_context=True,
    retry=RetryPolicy(
        on=(ConnectionError, TimeoutError),
        max_attempts=settings.max_attempts,
        backoff=Exponential(first=settings.retry_first_s, factor=2, max=settings.retry_max_s),
    ),
    time_limit=settings.time_limit_s,
)
async def send_email(ctx: TaskContext, letter: Letter) -> Receipt:
    """Build one mail and hand it to the mail server."""
    await ctx.progress(1, 3, label="building", attempt=ctx.attempt)
    message = await asyncio.to_thread(build, letter, message_id=message_id_of(ctx.task_id), attempt=ctx.attempt)
    await ctx.progress(2, 3, label=f"sending by {settings.smtp_host}:{settings.smtp_port}", attempt=ctx.attempt)
    try:
        answer = await deliver(message)
    except aiosmtplib.SMTPResponseException as exc:
        said = f"{exc.code} {exc.message}"
        if 400 <= exc.code < 500:
            ctx.log.warning("mail server says: not now", answer=said, attempt=ctx.attempt)
            raise Retry(f"the mail server said {said}") from exc
        raise Reject(f"the mail server refused the mail to {letter.to}: {said}") from exc
    await ctx.progress(3, 3, label="accepted", attempt=ctx.attempt)
    return Receipt(
        message_id=message["Message-ID"],
        attempt=ctx.attempt,
        answer=answer,
        size_bytes=len(message.as_bytes()),
    )


def message_id_of(task_id: str) -> str:
    """Return the Message-ID of a task's mail, the same for every attempt and every redelivery."""
    return f"<{task_id}@{settings.sender.rpartition('@')[2]}>"


def build(letter: Letter, *, message_id: str, attempt: int) -> EmailMessage:
    """Return the finished mail.

    Raises:
        Reject: A template or an attachment cannot be used. Another attempt would not change that.
    """
    message = EmailMessage()
    message["From"] = settings.sender
    message["To"] = letter.to
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = message_id
    message["X-Attempt"] = str(attempt)
    text, html = render(letter)
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    for name, content in read_attachments(letter.attachments):
        guessed, packed = mimetypes.guess_type(name)
        kind = guessed if guessed and not packed else "application/octet-stream"
        maintype, _, subtype = kind.partition("/")
        message.add_attachment(content, maintype=maintype, subtype=subtype, filename=name)
    return message


def render(letter: Letter) -> tuple[str, str | None]:
    """Return the mail's text and, where there is a template for it, its HTML.

    Raises:
        Reject: The text's template is missing or wrong, or a value that it needs is missing.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(settings.templates_dir),
        undefined=jinja2.StrictUndefined,  # a hole in a mail is worse than no mail
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = {"to": letter.to, "subject": letter.subject, **letter.values}
    names = templates.list_templates()
    html_name = f"{letter.template}.html.j2"
    try:
        text = templates.get_template(f"{letter.template}.txt.j2").render(values)
        html = templates.get_template(html_name).render(values) if html_name in names else None
    except jinja2.TemplateNotFound as exc:
        raise Reject(f"there is no template {exc.name} in {settings.templates_dir}") from exc
    except jinja2.TemplateError as exc:
        raise Reject(f"the template {letter.template!r} cannot be filled in: {exc}") from exc
    return text, html


def read_attachments(names: list[str]) -> list[tuple[str, bytes]]:
    """Return name and content of each attachment.

    Raises:
        Reject: A file is missing, is no plain file, lies outside the folder (symbolic links are followed
            first), or all together are too large.
    """
    folder = settings.attachments_dir.resolve()
    found: list[tuple[str, bytes]] = []
    room = settings.attachments_max_bytes
    for name in names:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise Reject(f"attachment {name!r} lies outside {folder} (MAIL_ATTACHMENTS_DIR)")
        if not path.is_file():
            raise Reject(f"attachment {name!r} is no file in {folder} (MAIL_ATTACHMENTS_DIR)")
        with path.open("rb") as file:
            content = file.read(room + 1)  # never more than fits, however large the file is
        room -= len(content)
        if room < 0:
            limit = settings.attachments_max_bytes
            raise Reject(f"the attachments up to {name!r} are larger than {limit} bytes (MAIL_ATTACHMENTS_MAX_BYTES)")
        found.append((path.name, content))
    return found


async def deliver(message: EmailMessage) -> str:
    """Hand the mail to the server and return its answer.

    Raises:
        ConnectionError: The server cannot be reached, or hung up.
        TimeoutError: The server did not answer in time.
        aiosmtplib.SMTPResponseException: The server said no; its code tells for how long.
    """
    password = settings.smtp_password.get_secret_value() if settings.smtp_password else None
    starttls = {"auto": None, "starttls": True, "tls": False, "off": False}[settings.smtp_tls]
    try:
        _, answer = await aiosmtplib.send(
            message,
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            username=settings.smtp_user,
            password=password,
            timeout=settings.smtp_timeout_s,
            use_tls=settings.smtp_tls == "tls",
            start_tls=starttls,
        )
    except aiosmtplib.SMTPRecipientsRefused as exc:
        raise exc.recipients[0] from None  # one recipient, one answer
    return answer
