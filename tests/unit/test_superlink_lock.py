"""Who may work in a SuperLink's folder, also when its owner was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.superlink import _locked
from tacit.errors import StorageError

OWNER = """
import os, sys, time
from pathlib import Path
from server.superlink import _locked
with _locked(Path(sys.argv[1])) as lock:
    # A program that outlives its owner for a moment, as a SuperLink does that is told to stop.
    import subprocess
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[lock])
    print(program.pid, flush=True)
    time.sleep(600)
"""


def test_two_superlinks_never_work_in_one_folder_not_even_when_the_owner_of_the_first_was_killed(
    tmp_path: Path,
) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    program = int(owner.stdout.readline())
    with owner.stdout:
        owner.kill()
        owner.wait()
    with pytest.raises(StorageError, match="another server works"), _locked(tmp_path):
        pass
    os.kill(program, signal.SIGKILL)
    with _locked(tmp_path, patience=30):
        pass
