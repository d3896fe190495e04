"""A mail server on loopback that stores the messages it receives."""

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.loopback import free_port


@dataclass
class Mailbox:
    """A running mail server. `environment` configures Airflow's SMTP notifier and connection to use it."""

    port: int
    messages: list[EmailMessage] = field(default_factory=list)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AIRFLOW__LTE__NOTIFIER": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
            "AIRFLOW__LTE__NOTIFIER_ARGUMENTS": '{"from_email": "airflow@shop.example", "to": "team@shop.example"}',
            "AIRFLOW_CONN_SMTP_DEFAULT": f"smtp://127.0.0.1:{self.port}?disable_ssl=true&disable_tls=true",
        }


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """A mailbox that runs until the block ends."""
    port = free_port()
    box = Mailbox(port)
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()
