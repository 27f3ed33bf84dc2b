"""The mail worker's own work, with a real mail server."""

import email
import email.policy
import socket

import aiosmtplib
import pytest

import mail
from asyncq import Reject

pytestmark = pytest.mark.any_version


def letter(**changes):
    """Return a letter with a report's template."""
    values = {"title": "Sales & <b>costs</b>", "figures": {"rows": "12"}, "problems": []}
    given = {"to": "you@example.org", "subject": "Grüße", "template": "report", "values": values}
    return mail.Letter(**{**given, **changes})


def build(**changes):
    """Build a letter's mail."""
    return mail.build(letter(**changes), message_id=mail.message_id_of("task-1"), attempt=1)


async def test_text_html_and_attachment_arrive_as_they_were(mail_server, mail_settings, tmp_path):
    """Byte for byte, through a real server; the HTML is escaped, the text is not."""
    content = bytes(range(256)) * 50
    (tmp_path / "attachments" / "data.bin").write_bytes(content)
    mail_settings(smtp_port=mail_server.port)
    answer = await mail.deliver(build(attachments=["data.bin"]))
    assert answer == "2.0.0 OK"
    message = email.message_from_bytes(mail_server.mails[0], policy=email.policy.default)
    assert message["From"] == "us@example.org"
    assert message["To"] == "you@example.org"
    assert message["Subject"] == "Grüße"
    assert message["Message-ID"] == "<task-1@example.org>"
    assert "Sales & <b>costs</b>" in message.get_body(("plain",)).get_content()
    assert "Sales &amp; &lt;b&gt;costs&lt;/b&gt;" in message.get_body(("html",)).get_content()
    (attachment,) = message.iter_attachments()
    assert attachment.get_filename() == "data.bin"
    assert attachment.get_content() == content


def test_a_template_without_html_makes_a_mail_of_text_only(mail_settings, tmp_path):
    """HTML is optional."""
    (tmp_path / "note.txt.j2").write_text("Hello {{ name }}")
    mail_settings(templates_dir=tmp_path)
    message = build(template="note", values={"name": "Ada"})
    assert message.get_content_type() == "text/plain"
    assert message.get_content() == "Hello Ada\n"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template": "missing"}, "no template missing.txt.j2"),
        ({"values": {"title": "x"}}, "'figures' is undefined"),
        ({"attachments": ["missing.bin"]}, "is no file"),
        ({"attachments": ["../secret"]}, "outside"),
        ({"attachments": ["/etc/hostname"]}, "outside"),
        ({"attachments": ["link"]}, "outside"),
        ({"attachments": ["."]}, "is no file"),
        ({"attachments": ["small", "large"]}, "up to 'large' are larger than 1000 bytes"),
    ],
)
def test_what_cannot_be_sent_is_rejected_with_the_reason(mail_settings, tmp_path, changes, says):
    """Templates and attachments do not get better by another attempt."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "attachments" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "attachments" / "small").write_bytes(bytes(400))
    (tmp_path / "attachments" / "large").write_bytes(bytes(601))
    mail_settings(attachments_max_bytes=1000)
    with pytest.raises(Reject, match=says):
        build(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"to": "nobody"}, {"subject": ""}, {"subject": "a\nBcc: all@example.org"}, {"template": "../../etc/passwd"}],
)
def test_a_wrong_letter_is_refused_before_it_is_sent(changes):
    """The producer gets pydantic's error; a line break in a subject would be another header."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        letter(**changes)


@pytest.mark.parametrize("answer", ["451 4.7.1 later", "550 5.1.1 unknown", "421 4.3.2 closing"])
async def test_the_servers_no_keeps_its_code(mail_server, mail_settings, answer):
    """The code decides between another attempt and the dead letters."""
    mail_server.answers = [answer]
    mail_settings(smtp_port=mail_server.port)
    with pytest.raises(aiosmtplib.SMTPResponseException) as caught:
        await mail.deliver(build())
    assert caught.value.code == int(answer[:3])


async def test_a_server_that_is_not_there_is_a_connection_error(mail_settings):
    """Which the retry policy names."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        mail_settings(smtp_port=taken.getsockname()[1])
        with pytest.raises(ConnectionError):
            await mail.deliver(build())


async def test_a_server_that_says_nothing_is_a_timeout(mail_settings):
    """Which the retry policy names as well."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mail_settings(smtp_port=silent.getsockname()[1], smtp_timeout_s=0.2)
        with pytest.raises(TimeoutError):
            await mail.deliver(build())


async def test_starttls_is_demanded_where_it_is_set(mail_server, mail_settings):
    """A server without TLS gets no mail then."""
    mail_settings(smtp_port=mail_server.port, smtp_tls="starttls")
    with pytest.raises(aiosmtplib.SMTPException, match="STARTTLS"):
        await mail.deliver(build())
    assert not mail_server.mails


def test_every_attempt_of_a_task_has_the_same_message_id(mail_settings):
    """So that a mailbox can tell a repeated mail."""
    first, second = (mail.build(letter(), message_id=mail.message_id_of("t"), attempt=n) for n in (1, 2))
    assert first["Message-ID"] == second["Message-ID"] == "<t@example.org>"
    assert [first["X-Attempt"], second["X-Attempt"]] == ["1", "2"]
