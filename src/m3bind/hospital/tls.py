"""Certificates for DICOM over TLS (PS3.15, BCP 195 profile: TLS 1.2 or newer), for servers and clients.

* `Certificates`: the files. * `Certificates.of`: from the options of a command, or None.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from m3bind.errors import ConfigError


@dataclass(frozen=True)
class Certificates:
    """PEM files: our own certificate with its key, and the authorities of the other side's."""

    own: Path | None
    key: Path | None
    trusted: Path | None

    @classmethod
    def of(cls, own: Path | None, key: Path | None, trusted: Path | None) -> "Certificates | None":
        """None if no file is named.

        Raises:
            ConfigError: a certificate without its key, or a key without its certificate.
        """
        if (own is None) != (key is None):
            raise ConfigError("a certificate and its key belong together: give both --tls-cert and --tls-key")
        return cls(own, key, trusted) if own or trusted else None

    def server(self) -> ssl.SSLContext:
        """For a listener; with `trusted`, only clients with a certificate signed by those may connect.

        Raises:
            ConfigError: no certificate of our own, or invalid files.
        """
        if self.own is None:
            raise ConfigError("a listener with TLS needs a certificate: --tls-cert FILE --tls-key FILE")
        context = self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        if self.trusted is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        """For a client: the server must have a certificate for the name it is called by.

        Raises:
            ConfigError: invalid files.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.trusted is None:
            context.load_default_certs()
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in filter(None, (self.own, self.key, self.trusted)):
            if path.exists() and not path.is_file():  # reading a pipe or a device may not end
                raise ConfigError(f"{path}: not a plain file; name a file with certificates in PEM")
        try:
            if self.own is not None:
                context.load_cert_chain(self.own, self.key, password="")  # refuse an encrypted key without a prompt
            if self.trusted is not None:
                context.load_verify_locations(self.trusted)
        except (OSError, ValueError) as error:
            files = ", ".join(str(path) for path in (self.own, self.key, self.trusted) if path)
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{files}: no certificates in PEM that fit ({reason}), or a key with a password"
            ) from None
        return context
