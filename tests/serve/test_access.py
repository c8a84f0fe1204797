"""Access control: token, cookie, host names, other sites; and the headers of every answer."""

import pytest

from m3bind.errors import ConfigError
from m3bind.serve.access import COOKIE, Access, read_token
from m3bind.serve.run import is_loopback, refuse_open
from serve.conftest import client_of, until

TOKEN = "correct-horse-battery"
QUESTION = {"parts": [{"kind": "text", "value": "a lung"}]}


@pytest.fixture(scope="module")
def guarded(world):
    from m3bind.serve.app import make_app

    with client_of(make_app(world.space, world.index, token=TOKEN)) as made:
        until(lambda: made.get("/readyz").status_code == 200)  # the warm-up runs in the background
        yield made


@pytest.fixture
def stranger(guarded):
    guarded.cookies.clear()
    return guarded


def test_without_the_token_only_the_page_and_health_answer(stranger):
    open_ones = {route: stranger.get(route).status_code for route in ("/", "/healthz", "/readyz", "/static/app.js")}
    assert open_ones == dict.fromkeys(open_ones, 200)
    for route in ("/api/about", "/api/items/i000", "/api/items/i000/thumbnail", "/metrics", "/api/openapi.json",
                  "/api/map", "/nothing"):  # fmt: skip
        answer = stranger.get(route)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "token"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert stranger.post("/api/search", json=QUESTION).status_code == 401
    assert stranger.post("/api/uploads", files={"file": b"x"}).status_code == 401


@pytest.mark.parametrize("line", ["Bearer wrong", "Bearer ", "Basic x", TOKEN, "Bearer " + TOKEN[:-1], "Bearer \xe9"])
def test_wrong_tokens(stranger, line):
    headers = {"Authorization": line.encode("latin-1")}
    assert stranger.get("/api/about", headers=headers).status_code == 401


def test_the_header_and_the_cookie_of_a_login(stranger):
    assert stranger.get("/api/about", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert stranger.post("/api/login", json={"token": "wrong"}).status_code == 401
    told = stranger.post("/api/login", json={"token": TOKEN})
    line = told.headers["set-cookie"]
    assert told.status_code == 204 and "HttpOnly" in line and "samesite=strict" in line.lower() and TOKEN not in line
    behind = stranger.post("/api/login", json={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in behind.headers["set-cookie"] and "Secure" not in line
    stranger.cookies.clear()
    stranger.post("/api/login", json={"token": TOKEN})
    assert stranger.get("/api/about").status_code == 200
    assert stranger.post("/api/search", json=QUESTION).status_code == 200
    value = stranger.cookies[COOKIE]
    stranger.cookies.clear()
    for forged in (value[:-1] + ("0" if value[-1] != "0" else "1"), "9" + value, "x", ".", f"{TOKEN}."):
        answer = stranger.get("/api/about", headers={"Cookie": f"{COOKIE}={forged}"})
        assert answer.status_code == 401


def test_a_cookie_ends_with_its_time_and_with_the_token():
    now = [1000.0]
    access = Access(TOKEN, 60, lambda: now[0])
    headers = {"cookie": f"{COOKIE}={access.cookie()}"}
    assert access.allows(headers) and not Access("another-token-of-16", 60, lambda: now[0]).allows(headers)
    now[0] += 61
    assert not access.allows(headers)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:8000", "[::2]"])
def test_a_bent_name_is_refused(client, host):
    answer = client.get("/api/about", headers={"Host": host})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "host"


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:8000"])
def test_the_machines_own_names_are_not(client, host):
    assert client.get("/api/about", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_what_other_sites_send_is_refused(client, headers):
    for answer in (
        client.post("/api/search", json=QUESTION, headers=headers),
        client.post("/api/uploads", files={"file": b"x"}, headers=headers),
        client.get("/api/items/i000/thumbnail", headers=headers),
    ):
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "cross_site"
        assert "access-control-allow-origin" not in answer.headers
    assert client.get("/", headers=headers).status_code == 200


def test_the_own_page_may_ask(client):
    headers = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/search", json=QUESTION, headers=headers).status_code == 200


def test_every_answer_has_the_lines_that_protect(client):
    for answer in (
        client.get("/"),
        client.get("/static/app.js"),
        client.get("/api/about"),
        client.get("/nothing"),
        client.get("/api/about", headers={"Host": "evil.example"}),
        client.post("/api/search", content=b"{", headers={"Content-Type": "application/json"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers
    assert client.get("/api/about").headers["cache-control"] == "no-store"


def test_other_machines_need_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="token is needed"):
            refuse_open(host, None)
        refuse_open(host, TOKEN)
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"):
        refuse_open(host, None)


def test_a_token_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("M3BIND_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("M3BIND_TOKEN", f" {TOKEN}\n")
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text("a-token-in-a-file\n")
    assert read_token(tmp_path / "token") == "a-token-in-a-file"
    (tmp_path / "token").write_text("short")
    with pytest.raises(ConfigError, match="at least 16") as told:
        read_token(tmp_path / "token")
    assert "short" not in str(told.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_further_names_and_any_name(world):
    from m3bind.serve.app import make_app

    for hosts, expected in ((["Clinic.example"], 403), (None, 200)):
        app = make_app(world.space, world.index, hosts=hosts, token=TOKEN)
        made, headers = client_of(app), {"Authorization": f"Bearer {TOKEN}"}
        assert made.get("/healthz", headers={**headers, "Host": "clinic.example:8443"}).status_code == 200
        assert made.get("/healthz", headers={**headers, "Host": "evil.example"}).status_code == expected


def test_no_way_around_the_token(live):
    served = live(token=TOKEN)
    paths = ["/static/../api/about", "/static/%2e%2e/api/about", "//api/about", "/api/login/../about", "/api/about/",
             "/static/../../serve/app.py", "/static/%2e%2e/%2e%2e/serve/app.py", "http://x/static/about"]  # fmt: skip
    for path in paths:
        with served.socket() as wire:
            wire.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            data = b""
            while piece := wire.recv(65536):
                data += piece
        assert data.split()[1] in (b"401", b"404", b"307") and b"modalities" not in data and b"import" not in data
