"""Signatures: of exactly these files by exactly this key, in the form of OpenSSF Model Signing, also for other verifiers."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from test_bundle import BODY, made  # noqa: F401

from digseg_engine import Engine
from digseg_engine.bundle import MANIFEST, SIGNATURE, finish, open_bundle, writing
from digseg_engine.commands.main import dispatch
from digseg_engine.errors import BundleError, UsageError
from digseg_engine.named import SHIPPED_BUNDLE, SHIPPED_CHECKPOINT
from digseg_engine.runtime.source import open_source
from digseg_engine.signatures import PASSWORD, Signer, _check_form, sign, verify

pytest.importorskip("model_signing", reason="extra sign")
pytest.importorskip("OpenSSL", reason="extra sign")
VECTORS = os.environ.get("DIGSEG_TEST_OMS", "")  # the folder test-vectors/v1.0 of github.com/ossf/model-signing-spec


def new_key(folder, name, curve="SECP256R1", password=None):
    """A private key and its public one, as PEM files."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    closed = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    pem = form.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, form.PrivateFormat.PKCS8, closed))
    public = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture
def keys(tmp_path):
    return new_key(tmp_path, "maker")


@pytest.fixture
def signed(made, keys):  # noqa: F811
    sign(open_bundle(made), keys[0], "b")
    return made


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_what_was_signed_is_verified_and_read_as_before(made, tmp_path, curve):  # noqa: F811
    private, public = new_key(tmp_path, "k", curve)
    sign(open_bundle(made), private, "b")
    verify(open_bundle(made), Signer(public))
    assert open_bundle(made).file("note.txt").read_text() == "hello"
    said = json.loads((made / SIGNATURE).read_text())
    assert said["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"


def test_the_packages_own_verifier_agrees(signed, keys):
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=keys[1]).verify(signed, signed / SIGNATURE)
    (signed / "note.txt").write_text("hullo")
    with pytest.raises(ValueError, match="mismatch"):
        verifying.Config().use_elliptic_key_verifier(public_key=keys[1]).verify(signed, signed / SIGNATURE)


def test_what_the_packages_own_signer_made_is_verified(made, keys):  # noqa: F811
    from model_signing import hashing, signing

    ours = hashing.Config().set_ignored_paths(paths=[SIGNATURE])
    signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(ours).sign(made, made / SIGNATURE)
    verify(open_bundle(made), Signer(keys[1]))


def test_another_key_no_signature_and_one_of_another_bundle_are_refused(signed, keys, tmp_path):
    _, other = new_key(tmp_path, "other")
    with pytest.raises(BundleError, match="is not a signature of the key"):
        verify(open_bundle(signed), Signer(other))
    with writing(tmp_path / "c") as room:
        (room / "note.txt").write_text("other")
        finish(room, BODY)
    with pytest.raises(BundleError, match=r"is not signed: it has no model\.sig"):
        verify(open_bundle(tmp_path / "c"), Signer(keys[1]))
    shutil.copy(signed / SIGNATURE, tmp_path / "c")
    with pytest.raises(BundleError, match="is not a signature"):
        verify(open_bundle(tmp_path / "c"), Signer(keys[1]))


def rewritten(folder):
    """The manifest made true again for whatever lies in the folder, as somebody who may write there would."""
    body = json.loads((folder / MANIFEST).read_text())
    finish(folder, {name: value for name, value in body.items() if name != "files"})


def test_true_hashes_by_another_hand_are_refused(signed, keys):
    (signed / "note.txt").write_text("hullo")
    rewritten(signed)
    assert open_bundle(signed)  # complete and undamaged by its own word
    with pytest.raises(BundleError, match="is not a signature"):
        verify(open_bundle(signed), Signer(keys[1]))


def test_what_the_manifest_says_is_signed_too(signed, keys):
    body = json.loads((signed / MANIFEST).read_text())
    body["verification"]["limits"]["relative"] = 1e9
    (signed / MANIFEST).write_text(json.dumps(body))
    assert open_bundle(signed)
    with pytest.raises(BundleError, match="is not a signature"):
        verify(open_bundle(signed), Signer(keys[1]))


@pytest.mark.parametrize("change", ["added", "removed"])
def test_no_file_comes_or_goes(signed, keys, change):
    if change == "added":
        (signed / "more.txt").write_text("more")
    else:
        (signed / "note.txt").unlink()
    rewritten(signed)
    with pytest.raises(BundleError, match="is not a signature"):
        verify(open_bundle(signed), Signer(keys[1]))


def flipped_bytes_are_refused(folder, key, count, seed):
    """`count` times one bit of one byte of one file, chosen by the bytes: how many of them were accepted."""
    draw, paths = random.Random(seed), sorted(path for path in folder.iterdir() if path.name != "key")
    sizes = [path.stat().st_size for path in paths]
    for _ in range(count):
        path = draw.choices(paths, sizes)[0]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(BundleError):
            verify(open_bundle(folder), key)
        path.write_bytes(good)
    verify(open_bundle(folder), key)


def test_one_flipped_byte_anywhere_is_refused(signed, keys):
    """The signature is as large here as the rest, so a good part of them meet it."""
    flipped_bytes_are_refused(signed, Signer(keys[1]), 40, 0)


def test_every_bit_of_the_signature_counts(signed, keys):
    good, signer, bundle = (signed / SIGNATURE).read_bytes(), Signer(keys[1]), open_bundle(signed)
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (signed / SIGNATURE).write_bytes(bad)
        with pytest.raises(BundleError):
            verify(bundle, signer)


@pytest.mark.long
def test_a_thousand_flipped_bytes_of_the_shipped_bundle_are_refused(tmp_path, keys):
    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    sign(open_bundle(tmp_path / "b"), keys[0], "b")
    flipped_bytes_are_refused(tmp_path / "b", Signer(keys[1]), 1000, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(more="x"),
        lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]),
        lambda b: b["dsseEnvelope"]["signatures"].clear(),
        lambda b: b["verificationMaterial"]["publicKey"].pop("hint"),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b.update(mediaType="application/json"),
        lambda b: b.pop("verificationMaterial"),
        lambda b: b.pop("dsseEnvelope"),
    ],
)
def test_odd_signatures_are_refused_in_one_line(signed, keys, change):
    body = json.loads((signed / SIGNATURE).read_text())
    change(body)
    (signed / SIGNATURE).write_text(json.dumps(body))
    with pytest.raises(BundleError) as caught:
        verify(open_bundle(signed), Signer(keys[1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff", b" " * (2 << 20), b'{"a": 1, "a": 1}'])
def test_what_is_no_signature_is_refused_in_one_line(signed, keys, body):
    (signed / SIGNATURE).write_bytes(body)
    with pytest.raises(BundleError, match="is not a signature") as caught:
        verify(open_bundle(signed), Signer(keys[1]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_a_folder_of_links_is_judged_by_what_is_behind_them(signed, keys, tmp_path):
    (tmp_path / "blobs").mkdir()
    for path in list(signed.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    verify(open_bundle(signed), Signer(keys[1]))


def test_a_password_opens_the_key(made, tmp_path, monkeypatch):  # noqa: F811
    private, public = new_key(tmp_path, "closed", password=b"sesame")
    with pytest.raises(UsageError, match="cannot sign"):
        sign(open_bundle(made), private, "b")
    monkeypatch.setenv(PASSWORD, "sesame")
    sign(open_bundle(made), private, "b")
    verify(open_bundle(made), Signer(public))


@pytest.mark.parametrize("body", [b"", b"-----BEGIN PUBLIC KEY-----\n", b"no key"])
def test_what_is_no_key_is_refused_before_any_work(tmp_path, body):
    (tmp_path / "k").write_bytes(body)
    with pytest.raises(UsageError, match="is no public key"):
        Signer(tmp_path / "k").check()
    with pytest.raises(UsageError, match="cannot be read"):
        Signer(tmp_path / "gone").check()


def test_a_key_of_another_kind_is_refused(made, tmp_path):  # noqa: F811
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    pem = form.Encoding.PEM
    (tmp_path / "k").write_bytes(key.private_bytes(pem, form.PrivateFormat.PKCS8, form.NoEncryption()))
    (tmp_path / "k.pub").write_bytes(key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="cannot sign"):
        sign(open_bundle(made), tmp_path / "k", "b")
    with pytest.raises(UsageError, match="another kind of key"):
        Signer(tmp_path / "k.pub").check()


def test_an_engine_asks_for_the_signature_and_for_nothing_beside_it(tmp_path, keys):
    import pickle

    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    with pytest.raises(BundleError, match="is not signed"):
        Engine.load(tmp_path / "b", "onnxruntime", require_signature=keys[1])
    sign(open_bundle(tmp_path / "b"), keys[0], "b")
    engine = Engine.load(tmp_path / "b", "onnxruntime", require_signature=keys[1])
    sent = pickle.dumps(engine)
    assert pickle.loads(sent).source.signer == Signer(keys[1])
    for beside in ({"checkpoint": SHIPPED_CHECKPOINT}, {"engines": tmp_path}):
        with pytest.raises(UsageError, match="not covered by the bundle's signature"):
            Engine.load(tmp_path / "b", "onnxruntime", require_signature=keys[1], **beside)
    with pytest.raises(UsageError, match="carries no signature"):
        open_source(SHIPPED_CHECKPOINT, signer=Signer(keys[1]))
    body = json.loads((tmp_path / "b" / MANIFEST).read_text())
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(body))  # the same words in other bytes
    with pytest.raises(BundleError, match="is not a signature"):
        pickle.loads(sent)


def test_the_command_says_what_it_found(tmp_path, keys, capsys):
    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    assert dispatch(["verify", str(tmp_path / "b")]) == 0
    assert "signature: none" in capsys.readouterr().out
    sign(open_bundle(tmp_path / "b"), keys[0], "b")
    assert dispatch(["verify", str(tmp_path / "b")]) == 0
    assert "signature: not checked" in capsys.readouterr().out
    report = tmp_path / "report.json"
    assert dispatch(["verify", str(tmp_path / "b"), "--key", str(keys[1]), "--json", str(report)]) == 0
    said = capsys.readouterr().out
    assert "over exactly these files" in said and "all hashes match" in said and "yes" in said
    body = json.loads(report.read_text())
    assert body["right"] and {row["backend"]: row["right"] for row in body["backends"]}["onnxruntime"]
    with pytest.raises(UsageError, match="belong together"):
        dispatch(["verify", str(tmp_path / "b"), "--identity", "me@example.org"])
    with pytest.raises(UsageError, match="expected a bundle"):
        dispatch(["verify", str(SHIPPED_CHECKPOINT)])


def test_a_bundle_that_answers_wrongly_is_told(tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    arrays = load_file(tmp_path / "b" / "golden.safetensors")
    arrays["logits"] = -arrays["logits"]
    save_file(arrays, tmp_path / "b" / "golden.safetensors")
    rewritten(tmp_path / "b")
    assert dispatch(["verify", str(tmp_path / "b")]) == 1
    assert "wrong: error" in capsys.readouterr().out


@pytest.mark.skipif(not VECTORS, reason="DIGSEG_TEST_OMS names the specification's test vectors")
def test_the_specifications_vectors_are_read_or_refused_as_it_says():
    found = {path: path.parent.name for path in sorted(Path(VECTORS).rglob("*.json"))}
    assert set(found.values()) == {"valid", "invalid", "invalid-payload"}
    for path, kind in found.items():
        if kind == "valid":
            _check_form(path.read_bytes())
        else:
            with pytest.raises(Exception):  # noqa: B017, PT011 - the package's readers raise their own
                _check_form(path.read_bytes())
