"""One engine, the application over it, and the command itself as a process."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def engine(bundle):
    """The bundled model's bundle, as Python has it."""
    from digseg_engine import Engine

    with Engine.load(bundle, "onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(engine):
    from serving_cases import client_of

    with client_of({"tiny": engine}) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(bundle):
    from serving_cases import serving

    with serving(bundle) as (address, _):
        yield address
