"""Send an object to another archive: by C-STORE, or by DICOMweb (STOW-RS).

* `destination`: "AET@HOST:PORT" or an address -> a function that sends one dataset.
"""

import contextlib
import io
import re
import secrets
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from m3bind.errors import ConfigError, M3BindError
from m3bind.hospital.http import Request, Web
from m3bind.hospital.responses import content, reason_of

if TYPE_CHECKING:
    from httpx import Response
    from pydicom.dataset import Dataset

OURS = "M3BIND"
SECONDS = 30.0
_FAILED = re.compile(  # a sequence of failures that is not empty, in JSON; or the reason of one
    rb"00081198[^{}\[\]]{0,99}\{[^{}\[\]]{0,200}Value[^{}\[\]]{0,99}\[\s{0,99}\{|00081197"
)
_REASON = re.compile(rb"00081197[^0-9\]}]{0,200}?Value\W{0,99}([0-9]{1,5})\b")


class SendError(M3BindError):
    """Another archive refuses an object."""


@contextlib.contextmanager
def destination(
    text: str, kinds: list[str], auth: str = "", aet: str = OURS, tls: ssl.SSLContext | None = None
) -> Iterator[Callable[["Dataset"], None]]:
    """A function that sends one dataset; it raises SendError, WebError or ServerUnavailableError.

    Args:
        text: "AET@HOST:PORT", or the DICOMweb root, http://... or https://...
        kinds: SOP classes of what will be sent.
        auth: value of the header Authorization.
        aet: our title in an association.
        tls: own and trusted certificates; None: a plain association, or https as usual.

    Raises:
        ConfigError: `text` is neither.
        SendError: no server answers there, or the association is refused.
    """
    if text.startswith(("http://", "https://")):
        with Web(text, auth, tls=tls) as web:
            yield lambda dataset: _stow(web, dataset)
        return
    found = re.fullmatch(r"([!-?A-~]{1,16})@(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", text)
    if not found:
        raise ConfigError(f"{text!r}: give a destination as AET@HOST:PORT, or as the address of a DICOMweb root")
    yield from _association(found[1], found[2].strip("[]"), int(found[3]), kinds, aet, tls)


def _association(
    peer: str, host: str, port: int, kinds: list[str], aet: str, tls: ssl.SSLContext | None
) -> Iterator[Callable[["Dataset"], None]]:
    from pynetdicom import AE

    entity = AE(aet)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = SECONDS
    for kind in kinds:
        entity.add_requested_context(kind)
    association = entity.associate(host, port, ae_title=peer, tls_args=(tls, host) if tls else None)
    if not association.is_established:
        why = "refuses the association" if association.is_rejected else "does not answer"
        what = "title, host, port, certificates (--tls-...)" if tls else "title, host, port"
        raise SendError(f"{peer}@{host}:{port} {why}; check {what}, and whether it knows {aet}")

    def send(dataset: "Dataset") -> None:
        try:
            status = association.send_c_store(dataset)
        except (RuntimeError, ValueError):
            raise SendError(f"{peer}@{host}:{port} does not take this kind of object") from None
        code = status.Status if "Status" in status else None
        if code is None or (code != 0 and code >> 12 != 0xB):
            answer = "nothing" if code is None else f"0x{code:04X}"
            raise SendError(f"{peer}@{host}:{port} answers {answer} to an object; check its log")

    try:
        yield send
    finally:
        association.release()


def _stow(web: Web, dataset: "Dataset") -> None:
    """Send by STOW-RS. SendError: the answer reports a failure of the object; WebError: no such answer."""
    file, boundary = io.BytesIO(), secrets.token_hex(16)
    dataset.save_as(file, enforce_file_format=True)
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + file.getvalue() + f"\r\n--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json", "Accept-Encoding": "identity"}

    def read(answer: "Response") -> None:
        data, of = b"".join(content(answer, web.bounds.answer)), answer.headers.get("Content-Type", "")
        if answer.status_code == 409 or _FAILED.search(data):
            code = _REASON.search(data)
            why = f"failure 0x{int(code[1]):04X}" if code else f'"{reason_of(data, of)}"' if data else "a conflict"
            raise SendError(f"{web.host} does not take an object ({why}); check its log")
        if "html" in of.lower():
            raise SendError(f"{web.host} answers with a web page; is this the DICOMweb root, and does it want a login?")

    web.request(Request("POST", "studies", headers, body=body, also=(201, 202, 409)), read)
