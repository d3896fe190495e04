"""Who may read the pages, and that the server shows nothing but the pages."""

import base64
import http.client
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from infra.local.pages import pages_server, required_password
from lte_model.errors import LTEError
from lte_model.settings import Settings
from tests.repository import REPOSITORY

PASSWORD = "correct horse battery"


@contextmanager
def pages(tmp_path, password):
    """Asks the pages' server: (path, credentials) → (status, body)."""
    settings = Settings(home=str(tmp_path), reports=str(tmp_path / "reports"), data_docs=str(tmp_path / "docs"))
    with pages_server(settings, "127.0.0.1", 0, password) as server:
        (tmp_path / "reports" / "report.html").write_text("the report")
        (tmp_path / "docs" / "site" / "index.html").write_text("the docs")
        (tmp_path / "secret").write_text("the password")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def get(path, credentials=None, method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            headers = (
                {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()} if credentials else {}
            )
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read().decode()
            connection.close()
            return answer.status, body

        try:
            yield get
        finally:
            server.shutdown()
            thread.join()


def test_on_loopback_the_pages_are_open_and_nothing_else_is(tmp_path):
    with pages(tmp_path, "") as get:
        assert get("/reports/report.html") == (200, "the report")
        assert get("/data_docs/") == (200, "the docs")
        assert get("/")[0] == 200
        for path in ("/secret", "/reports/../secret", "/reports/%2e%2e/secret", "/reports//etc/passwd", "/docs/site/"):
            status, body = get(path)
            assert status == 404 and "the password" not in body, path


def test_with_a_password_nothing_is_read_without_it(tmp_path):
    with pages(tmp_path, PASSWORD) as get:
        for path in ("/", "/index.html", "/reports/report.html", "/reports/", "/data_docs/index.html"):
            for wrong in (None, "admin:", "admin:wrong", f"other:{PASSWORD}", f"admin:{PASSWORD} ", "é:è"):
                assert get(path, wrong) == (401, ""), (path, wrong)
                assert get(path, wrong, "HEAD") == (401, ""), (path, wrong)
            assert get(path, f"admin:{PASSWORD}")[0] == 200
        assert get("/health") == (200, "ok")


def test_no_other_address_without_a_password(monkeypatch):
    monkeypatch.delenv("UI_PASSWORD", raising=False)
    assert required_password("127.0.0.1", "it") == ""
    for host in ("0.0.0.0", "10.0.0.5", "127.0.0.2"):
        monkeypatch.delenv("UI_PASSWORD", raising=False)
        for given in (None, "", "short"):
            if given is not None:
                monkeypatch.setenv("UI_PASSWORD", given)
            with pytest.raises(
                LTEError, match=f"host {host} is not 127.0.0.1, and it would be open .*; set UI_PASSWORD"
            ):
                required_password(host, "it")
        monkeypatch.setenv("UI_PASSWORD", PASSWORD)
        assert required_password(host, "it") == PASSWORD


def test_the_pages_need_no_packages_but_those_of_mlflows_image():
    program = (
        "import sys, infra.local.pages; print(*{'torch', 'pyspark', 'airflow', 'polars', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
