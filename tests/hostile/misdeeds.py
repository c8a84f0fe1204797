"""What `audit` must detect, one function each; its own test runs all of them."""

import ctypes
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path


def execute_text(text: str) -> None:
    exec(text)


def evaluate_text(text: str) -> None:
    eval(text)


def import_from(folder: str, name: str) -> None:
    sys.path.insert(0, folder)
    try:
        __import__(name)
    finally:
        del sys.path[0]


def leave_a_path(folder: str) -> None:
    sys.path.append(folder)


def start(*command: str) -> None:
    subprocess.run(command, check=False)


def start_worker_of(folder: str) -> None:
    environment = {**os.environ, "PYTHONPATH": folder}
    subprocess.run([sys.executable, "-P", "-m", "m3bind.modalities.formats.worker"], env=environment, check=False)


def system(command: str) -> None:
    os.system(command)


def spawn() -> None:
    import multiprocessing

    multiprocessing.get_context("spawn").Process(target=print).start()


def look_up(host: str) -> None:
    socket.getaddrinfo(host, 443)


def connect(host: str) -> None:
    with socket.socket() as channel:
        channel.connect((host, 9))


def unpickle(path: str) -> None:
    pickle.loads(Path(path).read_bytes())


def load_library(path: str) -> None:
    ctypes.CDLL(path)


def write(path: str) -> None:
    Path(path).write_text("x")


def remove(path: str) -> None:
    Path(path).unlink()


def read(path: str) -> None:
    Path(path).read_bytes()


def ask() -> None:
    input("run it? ")


def fail() -> None:
    raise KeyError("text_cfg")


def say(text: str) -> None:
    print(text)


def die() -> None:
    os._exit(3)


def nothing() -> None:
    pass
