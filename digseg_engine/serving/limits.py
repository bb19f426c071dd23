"""How much one server takes on. Every bound that a request can meet is here, and is an option of the command or a constant."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
IN_MEMORY = 2**28  # bytes of full-size masks that are kept at once; beyond, each is made when it is written


@dataclass(frozen=True)
class Limits:
    """body: bytes of one request; bodies: bytes of all requests that are being read or worked on; pixels: of a decoded picture;
    prompts: of one question, contrast prompts included; size: pixels of the longer side to work at; workers: requests that the
    model works on at once; queue: requests that wait for it. body_seconds, header_seconds: how long a client may take to send
    either. encodings, encoding_bytes, encoding_seconds: how many pictures are kept, in how much memory, for how long after they
    were last asked about. drain_seconds: how long work in progress may take once the server was told to end. connections: open
    ones."""

    body: int = 32 * MIB
    bodies: int = 256 * MIB
    pixels: int = 32_000_000
    prompts: int = 100
    size: int = 1024
    workers: int = 2
    queue: int = 128
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    encodings: int = 256
    encoding_bytes: int = 512 * MIB
    encoding_seconds: float = 900.0
    drain_seconds: float = 30.0
    connections: int = 1024
