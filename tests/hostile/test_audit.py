"""The harness detects what it must detect."""

import pickle
from pathlib import Path

from hostile.audit import HARM, Action, faults, run


def _misdeeds(folder: Path) -> dict[Action, str]:
    """Each with a word of what is reported."""
    (folder / "here" / "namespace").mkdir(parents=True)
    (folder / "here" / "planted.py").write_text(HARM)
    (folder / "here" / "sitecustomize.py").write_text(HARM)
    (folder / "secret").write_text("x")
    (folder / "out").mkdir()
    (folder / "harm.pkl").write_bytes(pickle.dumps(Path))
    here, secret = str(folder / "here"), str(folder / "secret")

    def call(name: str, *args: str, private: tuple[str, ...] = ()) -> Action:
        return Action(f"{name} {args}", call=f"hostile.misdeeds:{name}", args=args, private=private)

    return {
        call("execute_text", "1 + 1"): "exec <string>",
        call("evaluate_text", "1 + 1"): "exec <string>",
        call("import_from", here, "planted"): "exec ",
        call("import_from", here, "namespace"): "import namespace",
        call("start", "true"): "process ['true']",
        call("start_worker_of", here): "PYTHONPATH of a child",
        call("system", "true"): "os.system",
        call("spawn"): "process",
        call("look_up", "huggingface.co"): "socket.getaddrinfo",
        call("connect", "127.0.0.1"): "socket.connect",
        call("unpickle", str(folder / "harm.pkl")): "pickle.find_class",
        call("load_library", str(folder / "evil.so")): "dlopen",
        call("write", str(folder / "written")): "write ",
        call("remove", secret): "os.remove",
        call("read", str(folder / "harm.pkl"), private=(str(folder / "harm.pkl"),)): "open private",
        call("ask"): "builtins.input",
        call("fail"): "uncaught",
        call("say", "ValueError: x"): "says ValueError",
        call("die"): "ended the process",
        call("leave_a_path", here): "sys.path",
    }


def test_what_must_not_happen_is_reported_and_what_may_is_not(tmp_path: Path) -> None:
    misdeeds = _misdeeds(tmp_path / "in")
    fine = [
        Action("nothing", call="hostile.misdeeds:nothing"),
        Action("a folder of its own", call="hostile.misdeeds:write", args=[str(tmp_path / "in" / "out" / "a")],
               writes=[tmp_path / "in" / "out"]),
        Action("wrong use", command=["check"]),
        Action("a command", command=["datasets"], codes=[0]),
    ]  # fmt: skip
    actions = [*fine, *misdeeds]
    reports = run(actions, tmp_path, warm=("m3bind.cli",))
    found = faults(actions, reports)
    for action, word in misdeeds.items():
        assert any(fault.startswith(f"{action.name}: {word}") for fault in found), (action.name, found)
    for action in fine:
        assert not any(fault.startswith(f"{action.name}: ") for fault in found), found
    for name in ("planted", "sitecustomize"):
        assert any("HARM was executed" in fault and f"{name}.py" in fault for fault in found), (name, found)
