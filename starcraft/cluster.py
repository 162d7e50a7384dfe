"""Ray, for what runs on several machines: how to connect, and how this code gets there.

Not a script. ray_sc2.py plays StarCraft II with it, extras/sweep.py trains. It needs `pip install
ray==2.60.0` on every machine, in the same version of Python, with this project's requirements.

Machines need not share a file system. What runs there must be picklable without this project:
see `travels`. It gets the rest as `packed` sources.
"""

import hashlib
import io
import os
import shutil
import socket
import sys
import tempfile
import zipfile
from pathlib import Path

from .machine import cores

PATIENCE = 10.0  # seconds in which a cluster must answer
INSTALL = "pip install ray==2.60.0"


def connect(address=None):
    """The module ray, connected to the cluster at `address` ("auto": the one of this machine), or
    to one that is started for this program and hears nothing from outside this machine.

    Raises ValueError, one line: ray is not installed, or there is no cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        # Where Ray offers no clusters, as on a Mac, it keeps to 127.0.0.1; _node_ip_address does
        # not do that: Ray replaces it by an address that others reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise ValueError(f"Ray is not installed; {INSTALL}") from None
    if ray.is_initialized():
        return ray
    host, colon, port = (address or "").rpartition(":")
    if colon:  # Ray itself would try for ten minutes
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no Ray cluster at {address}: {error}; see ray start --help"
            ) from None
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            ray.init("local", num_cpus=cores(), **quiet)
            # Ray's autoscaler: there is nothing to scale, and shutdown would wait a second for it.
            ray._private.worker._global_node.kill_monitor(check_alive=False)
        else:
            ray.init(address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"no Ray cluster at {address}: {why}; see ray start --help") from None
    return ray


def travels(module_name):
    """What that module defines is pickled whole: no machine needs the module to unpickle it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.cloudpickle.register_pickle_by_value(sys.modules[module_name])


def packed(folder, *patterns):
    """The files of a folder that fit one of the patterns, as bytes; the same files, same bytes."""
    paths = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())  # dated 1980
    return file.getvalue()


def unpacked(sources):
    """A folder of this machine with the files of `packed`: the same one for the same files, so that
    numba compiles them only once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "qmix"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / hashlib.sha256(sources).hexdigest()[:16]
    if not folder.exists():
        new = tempfile.mkdtemp(dir=cache)
        with zipfile.ZipFile(io.BytesIO(sources)) as archive:
            archive.extractall(new)
        try:
            os.rename(new, folder)
        except OSError:  # somebody else was first
            shutil.rmtree(new)
    return folder
