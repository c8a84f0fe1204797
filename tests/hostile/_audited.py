"""Started by `audit`: carries out actions under an audit hook, or continues as a child Python that one of them started.

    python -P _audited.py LOG PLAN               the actions of PLAN (JSON)
    python -P|-I _audited.py LOG child ARGS      runs `python ARGS`, also under the hook

The hook is installed before m3bind is imported. Each line of LOG is one JSON object; all processes append to it, so the
order of its lines shows during which action an event happened.
"""

import json
import os
import re
import resource
import runpy
import signal
import sys
import threading
import time
import traceback

LOG = int(sys.argv[1]) if sys.argv[1].isdigit() else os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
REFS = os.open("/proc/self/clear_refs", os.O_WRONLY)  # 5 written to it resets VmHWM
KILL = 40.0  # seconds after which an action is ended by a signal, wherever it is
SYSTEM = ("/usr/lib", "/lib", "/usr/local/lib", "/lib64", "/usr/lib64")
# Libraries that write code of their own and run it; code from anywhere else that has no file is reported.
GENERATORS = (
    "/dataclasses.py", "/collections/__init__.py", "/typing.py", "/typing_extensions.py", "/typing_inspection/",
    "/enum.py", "/runpy.py",
    "/attr/_make.py", "/pydantic/", "/numpy/", "/scipy/", "/torch/", "/sympy/", "/mpmath/", "/jinja2/", "/pandas/",
    "/matplotlib/", "/_distutils_hack/", "/sklearn/", "/transformers/utils/import_utils.py", "/decorator.py",
    "/lazy_loader/__init__.py", "/inspect.py", "/fastapi/", "/prometheus_client/", "/functools.py", "/networkx/",
    "/google/protobuf/", "/six.py", "/pymilvus/",
)  # fmt: skip
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
           "socket.sendmsg", "socket.getnameinfo", "urllib.Request", "socket.bind"}  # fmt: skip
PROCESSES = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.startfile"}
OTHER = {"builtins.input", "pickle.find_class", "sqlite3.load_extension", "sqlite3.enable_load_extension",
         "webbrowser.open", "code.interact", "pdb.Pdb"}  # fmt: skip
CHANGES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1,
           "os.truncate": 1, "os.utime": 1, "shutil.rmtree": 1, "shutil.move": 2}  # fmt: skip
AT = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2, "os.utime": 3, "shutil.rmtree": 1}  # of the dir_fd
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def log(**entry: object) -> None:
    """One line of the log; one write, so that lines of several processes never mix."""
    entry = {key: value[:8000] if isinstance(value, str) else value for key, value in entry.items()}
    os.write(LOG, json.dumps({"pid": os.getpid(), **entry}, default=repr).encode() + b"\n")


def within(path: str, folders: "list[str] | tuple[str, ...]") -> bool:
    """Whether a path without links lies in one of the folders."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def inside(path: str, folders: "list[str] | tuple[str, ...]") -> bool:
    """Whether what a path leads to lies in one of the folders."""
    return within(os.path.realpath(path), folders)


class Watch:
    """The hook. `roots`: where code may come from; `writes`, `private`: of the action that runs."""

    def __init__(self, roots: list[str], children: list[list[str]]) -> None:
        self.roots, self.children = roots, children
        self.writes: list[str] = []
        self.private: list[str] = []
        self._busy = threading.local()

    def __call__(self, event: str, args: tuple) -> None:
        """Report what must not happen; a connection and a foreign program are also refused."""
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._look(event, args)
        finally:
            self._busy.now = False

    def _look(self, event: str, args: tuple) -> None:
        if event == "exec":
            self._executed(args[0])
        elif event == "import" and args[1] and not inside(args[1], self.roots):
            log(event="import", detail=args[1])
        elif event == "ctypes.dlopen" and args[0] and "/" in str(args[0]):
            if not inside(str(args[0]), (*self.roots, *SYSTEM)):
                log(event="dlopen", detail=str(args[0]))
        elif event == "open":
            self._opened(*args)
        elif event in CHANGES:
            self._changed(event, args)
        elif event in NETWORK:
            self._connected(event, args)
        elif event == "subprocess.Popen":
            self._started(args[1], args[3])
        elif event in PROCESSES or event in OTHER:
            log(event=event, detail=repr(args)[:300])
            if event in PROCESSES:
                raise PermissionError(f"{event} is not allowed here")

    def _executed(self, code: object) -> None:
        name = getattr(code, "co_filename", "")
        if name.startswith("<frozen "):
            return
        if not name.startswith("<"):
            if not inside(name, self.roots):
                log(event="exec", detail=name)
            return
        frame = sys._getframe(3)
        caller = frame.f_code.co_filename
        if not caller.startswith("<frozen") and not any(part in caller for part in GENERATORS):
            log(event="exec", detail=f"{name} by {caller}:{frame.f_lineno}")

    def _opened(self, path: object, mode: object, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))
        if self.private and inside(name, self.private):
            log(event="open private", detail=name)
        writes = any(letter in str(mode) for letter in "wax+") if mode else bool((flags or 0) & WRITES)
        if writes and not self._may_write(os.path.realpath(name)):
            log(event="write", detail=name)

    def _may_write(self, name: str) -> bool:
        """`name` leads to itself, through no link."""
        name = re.sub(r"/\.([^/]+)\.\d+\.(tmp|old)(?=/|$)", r"/\1", name)  # where `m3bind.core.files.atomic_path` works
        return name.startswith("/dev/") or "/__pycache__" in name or within(name, self.writes)

    def _changed(self, event: str, args: tuple) -> None:
        for position in range(CHANGES[event]):
            path = args[position]
            if (event == "os.symlink" and position == 0) or not isinstance(path, str | bytes | os.PathLike):
                continue
            at = args[AT[event]] if event in AT and AT[event] < len(args) else None
            base = os.readlink(f"/proc/self/fd/{at}") if isinstance(at, int) and at >= 0 else os.getcwd()
            name = os.path.join(base, os.fsdecode(path))
            if event == "os.mkdir" and os.path.isdir(name):
                continue
            folder = os.path.realpath(os.path.dirname(name))  # a link itself is changed, not what it leads to
            if not self._may_write(os.path.join(folder, os.path.basename(name))):
                log(event=event, detail=name)

    def _connected(self, event: str, args: tuple) -> None:
        if _asked_by("/urllib3/util/connection.py"):
            return  # whether this machine has IPv6, asked when it is imported
        address = args[1] if event in ("socket.connect", "socket.bind") and len(args) > 1 else args
        log(event=event, detail=repr(address)[:200])
        raise ConnectionRefusedError(f"{event} is not allowed here")

    def _started(self, command: object, environment: "dict[str, str] | None") -> None:
        if _asked_by("/ctypes/util.py", "/matplotlib/font_manager.py", "/platform.py"):
            return  # where a library or the fonts of the system are, and what machine it is
        if not isinstance(command, list) or not any(command[: len(known)] == known for known in self.children):
            log(event="process", detail=repr(command)[:300])
            raise PermissionError("starting a program is not allowed here")
        path = (os.environ if environment is None else environment).get("PYTHONPATH", "")
        for entry in path.split(os.pathsep) if path and command[1] != "-I" else []:
            if not entry or not inside(entry, self.roots):
                log(event="PYTHONPATH of a child", detail=entry)
        command[2:2] = [os.path.abspath(__file__), _log_name(), "child"]


def _asked_by(*endings: str) -> bool:
    """Whether what happens was begun by one of some files of libraries."""
    frame = sys._getframe(2)
    for _ in range(12):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith(endings):
            return True
        frame = frame.f_back
    return False


def _log_name() -> str:
    return os.readlink(f"/proc/self/fd/{LOG}")


def watch(roots: list[str], children: list[list[str]]) -> Watch:
    """Install the hook, also where Python starts a process without saying so."""
    import _posixsubprocess

    hook = Watch(roots, children)
    fork_exec = _posixsubprocess.fork_exec

    def said(args: object, *more: object) -> int:
        if sys._getframe(1).f_code.co_name != "_execute_child":  # else: audited as subprocess.Popen
            log(event="process", detail=repr(args)[:300])
            raise PermissionError("starting a program is not allowed here")
        return fork_exec(args, *more)

    _posixsubprocess.fork_exec = said
    if "subprocess" in sys.modules:
        sys.modules["subprocess"]._fork_exec = said  # type: ignore[attr-defined]
    sys.addaudithook(hook)
    return hook


def as_child() -> None:
    """Install the hook, then do what Python would have done with the arguments."""
    with open(_log_name() + ".plan", encoding="utf-8") as handle:
        plan = json.load(handle)
    hook = watch(plan["roots"], [])
    hook.writes = plan["writes"]
    sys.argv[:] = sys.argv[3:]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def perform(action: dict) -> dict:
    """Carry out one action; what became of it."""
    from m3bind.errors import M3BindError

    try:
        if action["call"]:
            module, _, name = action["call"].partition(":")
            getattr(__import__(module, fromlist=["_"]), name)(*action["args"])
            return {"code": 0}
        from m3bind.cli import main

        sys.argv[:] = ["m3bind", *action["command"]]
        main()
    except M3BindError as error:
        return {"code": error.exit_code, "error": f"{type(error).__name__}: {error}"}
    except SystemExit as end:
        return {"code": end.code if isinstance(end.code, int) else int(end.code is not None)}
    except BaseException:
        return {"code": -1, "uncaught": traceback.format_exc()[-3000:]}
    return {"code": 0}


def foreign(before: set, hook: Watch) -> None:
    """Report modules from elsewhere that ran nothing (a folder taken for a package), and new paths of modules."""
    for name in set(sys.modules) - before:
        spec = getattr(sys.modules[name], "__spec__", None)
        places = [*(getattr(spec, "submodule_search_locations", None) or ()), getattr(spec, "origin", None) or ""]
        for place in places:
            if str(place).startswith("/") and not inside(str(place), hook.roots):
                log(event="import", detail=f"{name} from {place}")
    for entry in sys.path:
        if not entry or not (inside(entry, hook.roots) or entry.endswith(".zip")):
            log(event="sys.path", detail=entry)


def _harm(known: int) -> int:
    """Report what `audit.HARM` wrote beyond the first `known` bytes; its length now."""
    with open(os.environ["M3BIND_TEST_HARM"], encoding="utf-8") as handle:
        text = handle.read()
    if len(text) > known:
        log(event="HARM was executed by", detail=text[known:])
    return len(text)


def peak() -> int:
    """The largest resident memory of this process since the last `forget_peak`, in KiB."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) for line in handle if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Count the largest resident memory from what it is now."""
    os.write(REFS, b"5")


def as_plan() -> None:
    """Carry out the actions of a plan, one after the other, with what they print in a file each."""
    with open(sys.argv[2], encoding="utf-8") as handle:
        plan = json.load(handle)
    sys.dont_write_bytecode = True
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a command leaves files open, its process ends anyway
    sys.path += plan["paths"]
    hook = watch(plan["roots"], plan["children"])
    hook.writes = plan["writes"]
    for name in plan["warm"]:
        __import__(name)
    harm = 0
    for action in plan["actions"]:
        out = os.open(action["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(out, descriptor)
        os.close(out)
        os.chdir(action["cwd"])
        hook.writes, hook.private = plan["writes"] + action["writes"], action["private"]
        before, start = set(sys.modules), time.monotonic()
        forget_peak()
        log(start=action["name"], memory=peak())
        signal.setitimer(signal.ITIMER_REAL, KILL * plan["patience"])
        done = perform(action)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - start
        sys.stdout.flush()
        sys.stderr.flush()
        hook.private = []
        foreign(before, hook)
        harm = _harm(harm)
        log(end=action["name"], seconds=seconds, memory=peak(), **done)


if __name__ == "__main__":
    (as_child if sys.argv[2] == "child" else as_plan)()
