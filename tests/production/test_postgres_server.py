"""The PostgreSQL that other tests break keeps its rows after any kind of end, and leaves no process or file behind."""

import psutil
import pytest

from tests.production.postgres_server import MISSING, PostgresServer, installed

pytestmark = pytest.mark.skipif(not installed(), reason=MISSING)


def test_a_killed_server_comes_back_with_what_was_written_and_then_leaves_nothing():
    with PostgresServer("airflow", "mlflow") as server:
        server.sql("mlflow", "create table kept (number int)")
        for number, interrupt in enumerate((server.restart, server.kill, server.stop)):
            server.sql("mlflow", f"insert into kept values ({number})")
            interrupt()
            if interrupt is not server.restart:
                server.start()
        assert server.sql("mlflow", "select number from kept order by number").split() == ["0", "1", "2"]
        assert server.sql("airflow", "select count(*) from pg_tables where tablename = 'kept'").strip() == "0"
        assert "COPY public.kept" in server.dump("mlflow")
        process = psutil.Process(server._server.pid)
        family = [process, *process.children(recursive=True)]
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    assert not server.folder.exists()


def test_nobody_comes_in_without_the_password():
    with PostgresServer("airflow") as server:
        right, server.password = server.password, "wrong"
        with pytest.raises(Exception, match="exit status"):
            server.sql("airflow", "select 1")
        server.password = right
        assert server.sql("airflow", "select 1").strip() == "1"
