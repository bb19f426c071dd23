"""Who made a bundle: a detached signature by OpenSSF Model Signing 1.0, made and checked by its package `model-signing`.

`model.sig` lies in the bundle beside what it signs: every listed file and the manifest, by their SHA-256. What is compared with
it are the hashes that `bundle.open_bundle` computed itself, of the bytes that were parsed, so nothing is read again in between
and a bundle of links (a hub's cache) is judged by what is behind them. No cryptography is written here.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import LARGEST_SIGNATURE, MANIFEST, SIGNATURE, Bundle, open_plain
from digseg_engine.errors import BundleError, UsageError
from digseg_engine.extras import require
from digseg_engine.files import write_bytes

PASSWORD = "DIGSEG_SIGN_PASSWORD"  # of an encrypted private key
IGNORED = (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")  # as the specification excludes them
PREDICATE = "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class Signer:
    """Whose signature a bundle must carry: of a public key (PEM: ECDSA on P-256, P-384 or P-521), or, by Sigstore, of an identity
    that an issuer vouched for. trust: Sigstore's own roots of trust as a file, where they are not those of the public service."""

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None
    trust: Path | None = None

    def __str__(self) -> str:
        return f"the key {self.key}" if self.key else f"{self.identity} ({self.issuer})"

    def check(self) -> None:
        """Raises UsageError for a key that cannot be used and MissingPackageError without the package, before any work."""
        require("a signature", "sign")
        if self.key is None:
            return
        try:
            with open_plain(self.key) as file:
                body = file.read(1 << 16)
            _check_curve(body)
        except OSError as error:
            raise UsageError(
                f"{self.key} cannot be read: {error.strerror or error}; expected a public key (PEM)"
            ) from error
        except Exception as error:  # whatever the reader of keys raises
            raise UsageError(
                f"{self.key} is no public key that signs bundles ({error}); expected PEM, ECDSA on P-256, P-384 or P-521"
            ) from error

    def verifier(self) -> Any:
        from model_signing import verifying

        if self.key is not None:
            return verifying.Config().use_elliptic_key_verifier(public_key=self.key)
        return verifying.Config().use_sigstore_verifier(
            identity=str(self.identity), oidc_issuer=str(self.issuer), trust_config=self.trust
        )


def _check_curve(body: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(body)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("another kind of key")


def sign(bundle: Bundle, private_key: Path, name: str) -> None:
    """Write `model.sig` into a bundle that was just checked. name: what the signature calls the model.

    An encrypted key's password is taken from $DIGSEG_SIGN_PASSWORD. Raises UsageError for a key that cannot sign.
    """
    config = signing_with(private_key)
    with tempfile.TemporaryDirectory(prefix="digseg-") as room:
        config.set_hashing_config(_known(bundle, name)).sign(bundle.folder, Path(room) / SIGNATURE)
        body = (Path(room) / SIGNATURE).read_bytes()
    write_bytes(bundle.folder / SIGNATURE, body)


def signing_with(private_key: Path) -> Any:
    """The package's signer with this key. Raises UsageError for a key that cannot sign, and MissingPackageError without the
    package."""
    require("--sign", "sign")
    from model_signing import signing

    words = os.environ.get(PASSWORD)
    try:
        return signing.Config().use_elliptic_key_signer(
            private_key=private_key,
            password=words.encode() if words else None,  # type: ignore[arg-type]
        )
    except Exception as error:  # whatever the reader of keys raises
        raise UsageError(f"--sign {private_key} cannot sign: {_line(error)}; expected a private key (PEM) for ECDSA on P-256, "
                         f"P-384 or P-521, its password in ${PASSWORD}") from error  # fmt: skip


def verify(bundle: Bundle, signer: Signer) -> None:
    """Raises BundleError unless the bundle carries a signature of `signer` over exactly its files."""
    signer.check()
    path = bundle.folder / SIGNATURE
    try:
        with open_plain(path) as file:
            body = file.read(LARGEST_SIGNATURE + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{bundle.folder} is not signed: it has no {SIGNATURE}; expected one of {signer}; take a signed one, "
                          "or sign it with `digseg-export --sign KEY`") from error  # fmt: skip
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}; copy the whole bundle again") from error
    try:
        if len(body) > LARGEST_SIGNATURE:
            raise ValueError(f"it is larger than {LARGEST_SIGNATURE >> 20} MiB")
        _check_form(body)
        with tempfile.TemporaryDirectory(prefix="digseg-") as room:
            own = Path(room) / SIGNATURE  # what is verified is what was read
            write_bytes(own, body)
            signer.verifier().set_hashing_config(_known(bundle, bundle.folder.name)).verify(bundle.folder, own)
    except Exception as error:  # the package, its parsers and its cryptography each raise their own
        raise BundleError(f"{path} is not a signature of {signer} over this bundle: {_line(error)}; do not use it; take it from "
                          "where it was made") from error  # fmt: skip


def _check_form(body: bytes) -> None:
    """Raises ValueError for a signature of an older form, for one that says a key twice, and for one that says more than is
    understood: each byte of it has one meaning."""
    from model_signing._signing.sign_sigstore_pb import Signature  # the package's own reading of the file

    said = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")
    with tempfile.TemporaryDirectory(prefix="digseg-") as room:
        own = Path(room) / SIGNATURE
        write_bytes(own, body)
        understood = json.loads(Signature.read(own).bundle.to_json())
    if _stripped(said) != _stripped(understood):
        raise ValueError("it holds what no signature holds, or an odd spelling of it")
    envelope, material = understood["dsseEnvelope"], understood["verificationMaterial"]
    if len(envelope["signatures"]) != 1:
        raise ValueError(f"it holds {len(envelope['signatures'])} signatures; expected one")
    if "publicKey" in material and not material["publicKey"].get("hint"):
        raise ValueError("it does not say which key made it")
    if "certificate" in material and not material.get("tlogEntries"):
        raise ValueError("it is by Sigstore and is in no log")
    if (kind := json.loads(base64.b64decode(envelope["payload"]))["predicateType"]) != PREDICATE:
        raise ValueError(f"it is of the kind {kind!r:.80}; expected {PREDICATE}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _stripped(value: Any) -> Any:
    """JSON without what is empty: some writers leave out what others write as nothing."""
    if isinstance(value, dict):
        return {name: inner for name, old in value.items() if (inner := _stripped(old)) not in (None, "", [], {})}
    return [_stripped(inner) for inner in value] if isinstance(value, list) else value


def _known(bundle: Bundle, name: str) -> Any:
    """The hashes of a bundle in the place where the package would hash the folder itself."""
    from model_signing import hashing, manifest

    digest_of = hashing.hashing.Digest
    listed = {MANIFEST: bundle.manifest_sha256, **{n: str(e["sha256"]) for n, e in bundle.manifest["files"].items()}}
    kind = manifest.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(IGNORED)}
    )

    class Known(hashing.Config):  # type: ignore[misc]
        def hash(self, model_path: Any, *, files_to_hash: Iterable[Any] | None = None) -> Any:
            items = [kind.new_item(n, digest_of("sha256", bytes.fromhex(text))) for n, text in listed.items()]
            return manifest.Manifest(name, items, kind)

        def add_ignored_paths(self, *, model_path: Any, paths: Iterable[Any]) -> None:
            """What a signature leaves out is no matter here: every listed file must be in it."""

    return Known()


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()).rstrip(".; ") or type(error).__name__)[:300]
