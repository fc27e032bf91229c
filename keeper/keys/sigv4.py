"""AWS Signature Version 4, for requests without a query: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks; `token` is there for temporary credentials only."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a signature is good for; `at` is a UTC time as `20150830T123600Z`."""

    at: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.at[:8]}/{self.region}/{self.service}/aws4_request"


def authorization(
    method: str, path: str, headers: Mapping[str, str], body: bytes, scope: Scope, who: Credentials
) -> str:
    """The `Authorization` header over all `headers`, among which `host` and `x-amz-date` must be."""
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in headers.items())
    names = ";".join(name for name, _ in lines)
    canonical = "\n".join(
        (method, path, "", *(f"{name}:{value}" for name, value in lines), "", names, _sha256(body))
    )
    text = "\n".join((_ALGORITHM, scope.at, str(scope), _sha256(canonical.encode())))
    key = b"AWS4" + who.secret_access_key.encode()
    for part in (scope.at[:8], scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return (
        f"{_ALGORITHM} Credential={who.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
