"""One home for every fact: the header of the C library says what contract.py says."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from digseg_engine import contract

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def contract_header(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import contract_header

    return contract_header


def test_the_header_is_up_to_date(contract_header):
    made = contract_header.HEADER.read_text(encoding="utf-8")
    assert made == contract_header.header(), "run: python scripts/contract_header.py"


def test_every_fact_is_in_it(contract_header, monkeypatch):
    assert contract_header.camel("TOKEN_IDS") == "kTokenIds"
    for name, value in (("BUNDLE_FORMAT", "digseg.bundle/99"), ("CONTRACT_VERSION", 99), ("ABSENT", -99.0),
                        ("TOKEN_BUCKETS", (8, 99)), ("ENCODING", replace(contract.ENCODING, name="e99")),
                        ("LABELS", replace(contract.LABELS, file="l99.onnx")), ("MOST_NAMES", 99),
                        ("GRAPHS", {**contract.GRAPHS, "presence": replace(contract.PRESENCE, file="p99.onnx")})):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(contract, name, value)
            assert "99" in contract_header.header(), name


def test_the_sources_name_no_tensor_or_graph_themselves():
    graphs = (*contract.GRAPHS.values(), contract.LABELS)
    tensors = {tensor.name for graph in graphs for tensor in (*graph.inputs, *graph.outputs)}
    facts = {*tensors, *contract.GRAPHS, *(graph.file for graph in graphs), contract.BUNDLE_FORMAT}
    facts -= {"presence"}  # also a key of the manifest
    for path in sorted((ROOT / "kernels" / "src").glob("*.*pp")):
        if path.name not in ("contract.hpp", "c_api.cpp"):  # c_api.cpp names its callers' arguments
            assert not [fact for fact in facts if f'"{fact}"' in path.read_text(encoding="utf-8")], path.name
