"""A real Orthanc with its DICOMweb plugin, on free loopback ports, with a temporary storage."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLUGINS = (Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),)
USER, PASSWORD = "tester", "only-for-tests"


def find_orthanc() -> tuple[str, Path] | None:
    """(program, plugin), or None if one is missing."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    plugin = next((path for path in PLUGINS if path.exists()), None)
    return (program, plugin) if program and plugin else None


def free_port() -> int:
    """A free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Orthanc:
    """One server process."""

    def __init__(self, program: tuple[str, Path], folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.http, self.dicom = folder, free_port(), free_port()
        config = {
            "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}, "Plugins": [str(program[1])],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, "DicomCheckCalledAet": False,
            "ConcurrentJobs": 2, "OverwriteInstances": True, **options,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(config))
        with open(folder / "log", "wb") as log:
            command = [program[0], str(folder / "orthanc.json")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                self.call("GET", "/system")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError((folder / "log").read_text()[-2000:]) from None
                time.sleep(0.1)

    @property
    def auth(self) -> str:
        """Value of the header Authorization."""
        return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    @property
    def web(self) -> str:
        """The DICOMweb root."""
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def call(self, method: str, path: str, body: bytes | None = None, timeout: float = 120.0) -> Any:
        """An answer of its REST API."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", body, method=method)
        request.add_header("Authorization", self.auth)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    def store(self, files: Iterable[Path]) -> list[str]:
        """Put files in; its ids of them."""
        return [self.call("POST", "/instances", file.read_bytes())["ID"] for file in files]

    def knows(self, aet: str, port: int, tls: bool = False) -> None:
        """Tell it of another application entity on this machine."""
        value = {"AET": aet, "Host": "127.0.0.1", "Port": port, "Timeout": 30, "UseDicomTls": tls}
        self.call("PUT", f"/modalities/{aet.lower()}", json.dumps(value).encode())

    def send(self, aet: str, ids: list[str]) -> Any:
        """Send instances by C-STORE."""
        return self.call("POST", f"/modalities/{aet.lower()}/store", json.dumps({"Resources": ids}).encode())

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
