from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from incremental_llm.errors import WorkspaceBusyError
from incremental_llm.lock import exclusive


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        holder = json.loads((tmp_path / "run.holder.json").read_text(encoding="utf-8"))
        with pytest.raises(WorkspaceBusyError, match="Wait until it ends") as busy, exclusive(tmp_path):
            pass
    assert f"process {os.getpid()} on {holder['host']}, running since {holder['since']}" in str(busy.value)


def test_a_failure_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError("?")
    assert not (tmp_path / "run.holder.json").exists()
    with exclusive(tmp_path):
        pass


def test_a_lock_without_a_readable_holder_is_still_a_lock(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        (tmp_path / "run.holder.json").write_text("{", encoding="utf-8")
        with (
            pytest.raises(WorkspaceBusyError, match="one that has just started or is about to end"),
            exclusive(tmp_path),
        ):
            pass


def test_a_killed_run_blocks_nobody(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from incremental_llm.lock import exclusive\n"
        "with exclusive(Path(sys.argv[1])): os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert done.returncode == 9
    assert (tmp_path / "run.holder.json").exists()  # what it left names a process that is gone
    with exclusive(tmp_path):
        assert json.loads((tmp_path / "run.holder.json").read_text(encoding="utf-8"))["pid"] == os.getpid()
