"""One HTTP connection byte by byte: what a client library would not send, and answers read in their order.

with Wire(server) as wire:
    wire.send(post("/v2/models/linear/infer", body))
    status, headers, answer = wire.answer()
"""

from __future__ import annotations

import re
import socket

from testkit.runtime_process import RuntimeProcess


class Wire:
    """One connection, read by Content-Length."""

    def __init__(self, server: RuntimeProcess, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes:  # of the kernel's buffer, so that a client that does not read is noticed soon
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(("127.0.0.1", server.port))
        self._seen = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._seen:
            self._receive()
        head, _, self._seen = self._seen.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        while len(self._seen) < length:
            self._receive()
        body, self._seen = self._seen[:length], self._seen[length:]
        return int(first.split()[1]), headers, body

    def is_closed(self) -> bool:
        return self.socket.recv(1) == b""

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._seen += data


def post(path: str, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def read_ways(server: RuntimeProcess) -> dict[tuple[str, str], int]:
    """How many requests were read and answered how, by torchmodel_http_requests_total: (head, way)."""
    found = re.findall(
        r'^torchmodel_http_requests_total{head="(\w+)",model="[^"]*",way="(\w+)"} (\S+)$',
        read_metrics(server),
        re.MULTILINE,
    )
    return {(head, way): int(float(value)) for head, way, value in found}


def read_metrics(server: RuntimeProcess) -> str:
    """The text of /metrics."""
    text: bytes = server.get("/metrics")[1]
    return text.decode()


def read_metric(server: RuntimeProcess, name: str, **labels: str) -> float:
    """The value of one sample, 0 where there is none yet; labels: those it must have at least."""
    for line in read_metrics(server).splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and all(f'{key}="{wanted}"' in sample for key, wanted in labels.items()):
            return float(value)
    return 0.0
