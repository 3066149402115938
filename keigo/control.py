"""The control socket: how commands talk to a volume's daemon.

A Unix socket `VOLUME.sock` in the runtime directory, mode 0600. A request is one line of JSON, `{"op": NAME, ...}`;
the answer is any number of lines `{"progress": ...}`, then one `{"result": ...}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from keigo.errors import KeigoError
from keigo.mounts import mount_at, real_path

log = logging.getLogger(__name__)

_LINE_MAX: Final = 1 << 16  # a request is a name and a pattern or two
_PATIENCE: Final = 10.0  # seconds that a client may take to say what it wants

Progress = Callable[[Any], None]
Operation = Callable[[Mapping[str, Any], Progress], Any]


class ControlError(KeigoError):
    """A request failed; the text is one line for the user."""


def runtime_dir() -> Path:
    """Where sockets live: /run/keigo for root, the user's runtime directory else."""
    if os.geteuid() == 0:
        return Path("/run/keigo")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/keigo-{os.geteuid()}") / "keigo"  # noqa: S108


def socket_path(volume: str) -> Path:
    """The control socket of a volume."""
    return runtime_dir() / f"{volume}.sock"


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.connection.settimeout(_PATIENCE)  # else one who says nothing would keep the daemon from ending
        try:
            line = self.rfile.readline(_LINE_MAX)
        except OSError:
            return
        if not line:
            return
        self.connection.settimeout(None)
        try:
            answer = {"result": self.server.answer(line, self._progress)}
        except KeigoError as error:
            answer = {"error": str(error)}
        except Exception as error:  # a defect must not end the daemon; it is logged and told
            log.exception("request failed: %r", line[:200])
            answer = {"error": f"the daemon failed: {error!r}; see its log"}
        self._send(answer)

    def _progress(self, value: Any) -> None:  # noqa: ANN401
        self._send({"progress": value})

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self.wfile.write(msgspec.json.encode(message) + b"\n")
        except OSError as error:
            log.debug("the client is gone: %s", error)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, path: Path, listening: socket.socket | None) -> None:
        self.operations: Mapping[str, Operation] = {}
        self._spare = -1
        self._keep_spare()
        super().__init__(str(path), _Handler, bind_and_activate=listening is None)
        if listening is not None:
            self.socket.close()
            self.socket = listening

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client. Raises OSError; where there is no descriptor for it, it is turned away.

        One that stays in the queue would have us look again at once, for ever.
        """
        try:
            self._keep_spare()
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(os.strerror(error.errno))
            raise

    def _turn_away(self, why: str) -> None:
        self._drop_spare()
        client, _ = self.socket.accept()
        with client:
            client.send(msgspec.json.encode({"error": f"the daemon cannot answer now: {why}"}) + b"\n")
        self._keep_spare()

    def _keep_spare(self) -> None:
        if self._spare < 0:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def server_close(self) -> None:
        """Wait for requests under way, and close."""
        super().server_close()
        self._drop_spare()

    def answer(self, line: bytes, progress: Progress) -> Any:  # noqa: ANN401
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ControlError(f"not a request: {error}") from None
        operation = self.operations.get(str(request.get("op")))
        if operation is None:
            raise ControlError(f"unknown request {request.get('op')!r}")
        return operation(request, progress)


def _own_directory(path: Path) -> None:
    """Make the directory of the sockets, or make sure that nobody else can put one there. Raises ControlError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (path, path.parent) if path.parent.name.startswith("keigo-") else (path,):
        status = place.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ControlError(f"{place}: is not a directory that only this user can write to; remove it")


class ControlServer:
    """Answers requests, each in a thread of its own."""

    def __init__(self, volume: str, listening: int | None = None) -> None:
        """Clients can connect from now on, and are answered after `start`.

        With `listening` take over the socket of an earlier daemon. Raises ControlError, OSError.
        """
        path = socket_path(volume)
        self._path = path
        if listening is None:
            self._server = self._bind(volume, path)
        else:
            self._server = _Server(path, socket.socket(fileno=listening))
        self._thread = threading.Thread(target=self._server.serve_forever, name="keigo-control", daemon=True)

    def fileno(self) -> int:
        """The descriptor of the socket that clients connect to."""
        return self._server.socket.fileno()

    @staticmethod
    def _bind(volume: str, path: Path) -> _Server:
        _own_directory(path.parent)
        if is_served(volume):
            raise ControlError(
                f"volume {volume}: is mounted already, maybe from another directory (its daemon answers on {path}); "
                f"each directory needs a `volume:` of its own"
            )
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            return _Server(path, None)
        finally:
            os.umask(before)

    def start(self, operations: Mapping[str, Operation]) -> None:
        """Begin to answer; `operations` are functions by the name of their request."""
        self._server.operations = operations
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests and remove the socket; requests under way go on."""
        self._path.unlink(missing_ok=True)
        if self._thread.is_alive():
            # The server looks for an end twice a second, or when the socket wakes it, which a closed one does.
            self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
        self._server.socket.close()

    def join(self) -> None:
        """Wait until every request under way is answered."""
        self._server.server_close()


def is_served(volume: str) -> bool:
    """Whether a daemon answers for a volume."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(socket_path(volume)))
        except OSError:
            return False
        return True


def request(volume: str, op: str, **arguments: Any) -> Iterator[Any]:  # noqa: ANN401
    """Send a request; yields what the daemon reports on the way, and last the result.

    Raises ControlError with the daemon's own words, or when it is not there or goes away.
    """
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(socket_path(volume)))
        except OSError as error:
            hint = "" if os.geteuid() == 0 else " (a volume that root mounted answers only to root)"
            if isinstance(error, ConnectionRefusedError):
                hint = "; it has died: stop the database, umount, and mount again"
            text = f"volume {volume}: no daemon on {socket_path(volume)}: {error.strerror}{hint}"
            raise ControlError(text) from None
        for message in _messages(client, {"op": op, **arguments}):
            if "error" in message:
                raise ControlError(message["error"])
            if "result" in message:
                yield message["result"]
                # The daemon ends the connection once it has done what it promised (an unmount: its own end).
                return
            yield message["progress"]
    raise ControlError(f"volume {volume}: the daemon went away before it answered")


def _messages(client: socket.socket, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask; what is answered, a message a line, up to the end of the connection, whichever way it ends."""
    try:
        client.sendall(msgspec.json.encode(asked) + b"\n")
        with client.makefile("rb") as answers:
            for line in answers:
                yield msgspec.json.decode(line, type=dict[str, Any])
    except (ConnectionError, msgspec.MsgspecError):
        return  # it died with a request of ours unread, or in the middle of a line


def volume_of(directory: Path) -> str:
    """Name of the volume mounted at a directory. Raises ControlError where there is none."""
    mount = mount_at(real_path(directory))
    if mount is None or mount.volume is None:
        raise ControlError(f"{directory}: no volume is mounted here")
    return mount.volume


def ask(volume: str, op: str, **arguments: Any) -> Any:  # noqa: ANN401
    """Send a request and return its result."""
    *_, result = request(volume, op, **arguments)
    return result
