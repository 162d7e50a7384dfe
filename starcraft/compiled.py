"""Where numba keeps what it has compiled: imported before anything is compiled.

numba looks only at a function's own file to see whether its compiled code is still good: a rule
changed in battle.py would not reach its callers in simulator.py. Hence a folder for each version of
the rules, inside the first of these that can be written to: $NUMBA_CACHE_DIR, the program's own
folder, the user's cache, a temporary folder that goes when the program ends.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numba

HERE = Path(__file__).parent


def version() -> str:
    """Changes when the rules do, which may be in any file of this folder but its tests."""
    files = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("test_"))
    sources = b"".join(path.read_bytes() for path in files)
    return "qmix_" + hashlib.sha256(sources).hexdigest()[:12]


def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cache_folder() -> str:
    given, folder = os.environ.get("NUMBA_CACHE_DIR"), version()
    places = [Path(given)] if given else []
    if given and places[0].name == folder:  # set by the process that started this one
        places = [places[0].parent]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places += [HERE / "__pycache__", Path(home) / "numba"]
    for place in places:
        if writable(place / folder):
            return str(place / folder)
    global temporary
    temporary = tempfile.TemporaryDirectory(prefix="qmix-numba-", ignore_cleanup_errors=True)
    return temporary.name


os.environ["NUMBA_CACHE_DIR"] = cache_folder()
os.environ.setdefault("NUMBA_OPT", "1")  # compiles sooner than 3, and runs no slower
os.environ.setdefault("NUMBA_LOOP_VECTORIZE", "0")  # gathering records is slower than one by one
numba.core.config.reload_config()
