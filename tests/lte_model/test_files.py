import subprocess
import sys

import pytest

from lte_model.files import UNFINISHED, one_at_a_time, write_atomically


@pytest.mark.parametrize("content", ["naïve\n", b"\x00\xff"])
def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path, content):
    file = tmp_path / "folder" / "file"
    write_atomically(file, "old")
    write_atomically(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_content_that_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "\ud800")
    assert file.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", f"file{UNFINISHED}"}


def test_a_lock_keeps_another_process_out_until_its_block_ends(tmp_path):
    file = tmp_path / "lock"
    asks = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    ask = [sys.executable, "-c", asks, str(file)]
    with one_at_a_time(file):
        assert "BlockingIOError" in subprocess.run(ask, check=False, capture_output=True, text=True).stderr
    assert subprocess.run(ask, check=False, capture_output=True).returncode == 0
