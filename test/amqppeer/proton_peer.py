"""An AMQP 1.0 peer on Qpid Proton: what becomes of a message is in the name of its address.

proton_peer.py PORT listens on 127.0.0.1 and writes a line of JSON for every message and event.
"""

import base64
import json
import os
import signal
import sys
import uuid

from proton import Condition, Delivery
from proton.handlers import MessagingHandler
from proton.reactor import Container

CREDIT = 100


class Output:
    """Lines of JSON on standard output, whole ones only: a signal may come in the middle."""

    busy = False
    marked = False

    @classmethod
    def write(cls, what):
        cls.busy = True
        line = (json.dumps(what) + "\n").encode()
        while line:
            line = line[os.write(1, line):]
        cls.busy = False

    @classmethod
    def mark(cls, *_):
        cls.marked = True
        if not cls.busy:
            cls.write_marks()

    @classmethod
    def write_marks(cls):
        while cls.marked:
            cls.marked = False
            cls.write({"event": "mark"})


def say(**what):
    Output.write(what)
    Output.write_marks()


def typed(value):
    """The value with the name of its type on the wire, as the other peers give it."""
    kind = type(value).__name__
    if isinstance(value, bool):
        return ["bool", value]
    if isinstance(value, (bytes, memoryview)):
        return ["binary", base64.b64encode(bytes(value)).decode()]
    if isinstance(value, float):
        return ["double", value]
    if kind == "timestamp":
        return ["timestamp", int(value)]
    if isinstance(value, int):
        return ["long", int(value)]
    if isinstance(value, (str, uuid.UUID)):
        return ["string", str(value)]
    if isinstance(value, dict):
        return ["map", {str(k): typed(v) for k, v in value.items()}]
    if isinstance(value, (list, tuple)):
        return ["list", [typed(v) for v in value]]
    return [kind, str(value)]


class Peer(MessagingHandler):
    def __init__(self, url):
        super().__init__(prefetch=0, auto_accept=False, auto_settle=False)
        self.url = url

    def on_start(self, event):
        event.container.listen(self.url)
        say(event="listening")

    def on_link_opening(self, event):
        link = event.link
        address = link.remote_target.address
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.snd_settle_mode = link.remote_snd_settle_mode
        if address.startswith("refuse"):
            # A target of no type, and then a detach, say so (AMQP 1.0: 2.6.3).
            link.target.type = 0
            return
        say(event="attached", address=address)

    def on_link_opened(self, event):
        if not event.receiver:
            return
        address = event.link.remote_target.address
        if address.startswith("refuse"):
            event.link.condition = Condition("amqp:not-found", "no such node")
            event.link.close()
        elif address.startswith("credit"):
            event.receiver.flow(int(address.split(".")[1]))
        elif not address.startswith("nocredit"):
            event.receiver.flow(CREDIT)

    def on_message(self, event):
        message, delivery = event.message, event.delivery
        address = event.link.target.address
        body = message.body if isinstance(message.body, (bytes, memoryview)) else str(message.body).encode()
        say(
            event="message", address=address, settled=delivery.settled, id=message.id, body=base64.b64encode(bytes(body)).decode(),
            durable=message.durable, priority=message.priority, ttl=int(message.ttl * 1000), subject=message.subject,
            to=message.address, reply_to=message.reply_to, correlation_id=message.correlation_id, group_id=message.group_id,
            user_id=(message.user_id or b"").decode() or None, content_type=str(message.content_type or "") or None,
            content_encoding=str(message.content_encoding or "") or None, creation_time=int(message.creation_time * 1000),
            properties={k: typed(v) for k, v in (message.properties or {}).items()},
            annotations={str(k): typed(v) for k, v in (message.annotations or {}).items()},
        )
        if not address.startswith("credit"):
            event.receiver.flow(1)
        if delivery.settled or address.startswith("silent"):
            return
        if address.startswith("reject"):
            delivery.local.condition = Condition("amqp:resource-limit-exceeded", "full")
            delivery.update(Delivery.REJECTED)
        elif address.startswith("release"):
            delivery.update(Delivery.RELEASED)
        elif address.startswith("modify"):
            delivery.local.failed = True
            delivery.local.undeliverable = address.startswith("modify-undeliverable")
            delivery.update(Delivery.MODIFIED)
        elif address.startswith("detach"):
            event.link.condition = Condition("amqp:link:detach-forced", "bye")
            event.link.close()
            return
        elif address.startswith("drop"):
            event.connection.transport.close_head()
            event.connection.transport.close_tail()
            return
        elif not address.startswith("settle"):
            delivery.update(Delivery.ACCEPTED)
        delivery.settle()
        if address.startswith("idle"):
            event.link.condition = Condition("amqp:link:detach-forced", "idle for too long")
            event.link.close()

    def on_link_closed(self, event):
        if event.receiver and event.link.remote_target.address:
            say(event="detached", address=event.link.remote_target.address)

    def on_disconnected(self, event):
        say(event="disconnected")


signal.signal(signal.SIGUSR2, Output.mark)
Container(Peer("amqp://127.0.0.1:" + sys.argv[1])).run()
