"""TLS of the server: its certificate and key, checked before it listens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from dure.errors import InvalidRequestError


@dataclass(frozen=True)
class Tls:
    """PEM files: the certificate, its chain behind it, and the key."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None) -> Tls | None:
        """Return the pair, or None without a certificate. Raises InvalidRequestError."""
        if certificate is None:
            if key is not None:
                raise InvalidRequestError(
                    "--tls-key was given without --tls-cert.", hint="give both, as PEM files"
                )
            return None
        pair = cls(certificate, key or certificate)
        pair.context()
        return pair

    def context(self) -> ssl.SSLContext:
        """Return what connections are made with. Raises InvalidRequestError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=self._no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InvalidRequestError(
                    f"The key of {self.key} is not that of the certificate in {self.certificate}."
                ) from None
            raise InvalidRequestError(
                f"{self.certificate} and {self.key} hold no certificate and key in PEM form.",
                hint="PEM files begin with -----BEGIN",
            ) from None
        except OSError as error:
            missing = self.key if self.certificate.exists() else self.certificate
            raise InvalidRequestError(f"{missing} cannot be read: {error.strerror}.") from None
        return context

    def _no_password(self) -> str:
        raise InvalidRequestError(
            f"The key in {self.key} is encrypted, and nobody is there to type its password.",
            hint="openssl pkey -in KEY -out PLAIN_KEY",
        )
