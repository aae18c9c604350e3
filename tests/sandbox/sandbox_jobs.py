"""The work that each role must still do under its profile, with the real libraries. A job that fails raises; a job that does too much is killed."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import datetime
import fcntl
import gc
import hashlib
import logging
import os
import queue
import resource
import select
import signal
import socket
import sqlite3
import ssl
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.backends import default_backend
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

from cliproxy.sandbox.calls import prctl
from cliproxy.sandbox.loop import make_event_loop

Channel = tuple[int, int]
default_backend()


@dataclass(frozen=True, slots=True)
class Workplace:
    """What stands around: a TLS 1.3 server of another process."""

    scratch: str
    uid: int
    certificate: str
    tls_port: int


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    roles: tuple[str, ...]
    prepare: Callable[[Workplace, Channel], Any]
    work: Callable[[Any], object]


def make_workplace(scratch: str, uid: int) -> Workplace:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = Path(scratch, "certificate.pem")
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    chain.chmod(0o644)
    private = Path(scratch, "key.pem")
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    listener = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        prctl(1, signal.SIGKILL)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, private)
        if os.geteuid() == 0 and uid:
            os.setresuid(uid, uid, uid)  # the parent-death signal needs the right to signal
            prctl(1, signal.SIGKILL)
        while True:
            plain, _ = listener.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as secured:
                    while data := secured.recv(65536):
                        secured.sendall(data)
            except OSError:
                continue
    port = listener.getsockname()[1]
    listener.close()
    return Workplace(scratch=scratch, uid=uid, certificate=str(chain), tls_port=port)


# --- worker ----------------------------------------------------------------------------------------------------------
class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("peername")
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.writelines([b"-", data])

    def eof_received(self) -> None:
        self.transport.close()


def prepare_server(place: Workplace, channel: Channel) -> tuple[asyncio.AbstractEventLoop, socket.socket, socket.socket]:
    loop = make_event_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return loop, listener, socket.create_connection(listener.getsockname())


def serve(prepared: tuple[asyncio.AbstractEventLoop, socket.socket, socket.socket]) -> None:
    loop, listener, client = prepared
    client.setblocking(False)
    opened = []

    def accept() -> None:
        opened.append(loop.create_task(loop.connect_accepted_socket(Echo, listener.accept()[0])))

    async def exchange() -> None:
        loop.add_signal_handler(signal.SIGTERM, loop.stop)
        loop.call_later(0.01, int)
        loop.add_reader(listener, accept)  # as dataplane.server does
        for _ in range(3):
            await loop.sock_sendall(client, b"hello")
            got = b""
            while len(got) < 11:
                got += await loop.sock_recv(client, 100)
            assert got == b"hello-hello", got
        client.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(client, 100) == b""
        loop.remove_reader(listener)
        await asyncio.sleep(0.02)

    loop.run_until_complete(asyncio.wait_for(exchange(), 20))
    loop.run_until_complete(asyncio.sleep(0))  # a second run makes its wake-up pair again


# --- egress ----------------------------------------------------------------------------------------------------------
def prepare_tls(place: Workplace, channel: Channel) -> tuple[asyncio.AbstractEventLoop, ssl.SSLContext, Channel, int]:
    context = ssl.create_default_context(cafile=place.certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    dialer = os.fork()
    if dialer == 0:
        prctl(1, signal.SIGKILL)
        with socket.socket(fileno=os.dup(channel[1])) as edge:
            assert edge.recv(10) == b"dial"
            connected = socket.create_connection(("127.0.0.1", place.tls_port))
            socket.send_fds(edge, [b"here"], [connected.fileno()])
        os._exit(0)
    return make_event_loop(), context, channel, dialer


def speak_tls(prepared: tuple[asyncio.AbstractEventLoop, ssl.SSLContext, Channel, int]) -> None:
    loop, context, channel, _ = prepared
    edge = socket.socket(fileno=channel[0])
    edge.send(b"dial")
    _, descriptors, _, _ = socket.recv_fds(edge, 10, 1)
    passed = socket.socket(fileno=descriptors[0])
    passed.setblocking(False)

    async def exchange() -> None:
        answer = loop.create_future()

        class Client(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                if not answer.done():
                    answer.set_result(data)

        transport, _ = await loop.create_connection(Client, sock=passed, ssl=context, server_hostname="localhost")
        assert transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        transport.write(b"a secret" * 100)
        assert (await answer).startswith(b"a secret")
        transport.close()
        await asyncio.sleep(0.05)

    loop.run_until_complete(asyncio.wait_for(exchange(), 20))


def refuse_stranger(prepared: tuple[asyncio.AbstractEventLoop, ssl.SSLContext, Channel, int]) -> None:
    """A failed verification takes OpenSSL's error path, which must not want a file either."""
    loop, _, channel, _ = prepared
    edge = socket.socket(fileno=channel[0])
    edge.send(b"dial")
    _, descriptors, _, _ = socket.recv_fds(edge, 10, 1)
    passed = socket.socket(fileno=descriptors[0])
    passed.setblocking(False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def exchange() -> None:
        try:
            await loop.create_connection(asyncio.Protocol, sock=passed, ssl=context, server_hostname="localhost")
        except ssl.SSLCertVerificationError:
            return
        raise AssertionError("a certificate nobody vouches for was taken")

    loop.run_until_complete(asyncio.wait_for(exchange(), 20))


# --- dialer ----------------------------------------------------------------------------------------------------------
def prepare_dialer(place: Workplace, channel: Channel) -> tuple[Workplace, Channel]:
    return place, channel


def dial(prepared: tuple[Workplace, Channel]) -> None:
    place, channel = prepared

    def connect(host: str) -> socket.socket:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, place.tls_port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                sock.connect(address)
            except ConnectionRefusedError:
                continue
            return sock
        raise AssertionError(f"{host} does not answer")

    edge = socket.socket(fileno=channel[0])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for sock in pool.map(connect, ["localhost", "127.0.0.1", "localhost", "127.0.0.1", "localhost"]):
            socket.send_fds(edge, [b"here"], [sock.fileno()])
        try:
            pool.submit(socket.getaddrinfo, "nowhere.invalid", 443).result(20)
        except (socket.gaierror, concurrent.futures.TimeoutError):
            return
        raise AssertionError("nowhere.invalid has an address")


# --- vault -----------------------------------------------------------------------------------------------------------
def prepare_vault(place: Workplace, channel: Channel) -> sqlite3.Connection:
    path = Path(place.scratch, f"vault-{os.getpid()}.db")
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY"):
        database.execute(f"PRAGMA {pragma}").fetchall()
    database.execute("CREATE TABLE record (id INTEGER PRIMARY KEY, sealed BLOB)")
    database.execute("INSERT INTO record (sealed) VALUES (randomblob(16))")
    return database


def keep_records(database: sqlite3.Connection) -> None:
    key = AESGCM(os.urandom(32))
    for _ in range(40):
        database.execute("BEGIN IMMEDIATE")
        nonce = os.urandom(12)
        database.execute("INSERT INTO record (sealed) VALUES (?)", (nonce + key.encrypt(nonce, bytes(20000), b"record"),))
        database.execute("COMMIT")
    database.execute("BEGIN")
    database.execute("UPDATE record SET sealed = zeroblob(30000)")
    database.execute("ROLLBACK")
    database.execute("DELETE FROM record WHERE id % 2")
    assert database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall() == [(0, 0, 0)]
    database.execute("VACUUM")
    database.execute("CREATE INDEX sealed ON record (sealed)")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    backup = sqlite3.connect(":memory:")
    database.backup(backup)
    assert backup.execute("SELECT count(*) FROM record").fetchone()[0] == 20
    sealed = database.execute("SELECT sealed FROM record WHERE id = 4").fetchone()[0]
    assert key.decrypt(sealed[:12], sealed[12:], b"record") == bytes(20000)


# --- auditor ---------------------------------------------------------------------------------------------------------
def prepare_log(place: Workplace, channel: Channel) -> tuple[int, int, Channel]:
    path = f"{place.scratch}/log-{os.getpid()}"
    writing = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(writing, b"first\n")
    segment = os.open(path + ".next", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    socket.send_fds(socket.socket(fileno=channel[1]), [b"segment"], [segment])
    return writing, os.open(path, os.O_RDONLY), channel


def append_durably(prepared: tuple[int, int, Channel]) -> None:
    writing, reading, channel = prepared
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done = threading.Event()

    def sync() -> None:
        os.fdatasync(waiting.get())
        done.set()

    thread = threading.Thread(target=sync)
    thread.start()
    os.write(writing, b"second\n")
    waiting.put(writing)
    assert done.wait(20)
    thread.join()
    os.lseek(writing, 0, os.SEEK_SET)
    os.write(writing, b"third\n")
    assert os.pread(reading, 100, 0) == b"first\nsecond\nthird\n"
    _, descriptors, _, _ = socket.recv_fds(socket.socket(fileno=channel[0]), 10, 1)
    assert os.write(descriptors[0], b"fourth\n") == 7
    ed25519.Ed25519PrivateKey.generate().sign(hashlib.sha256(b"checkpoint").digest())


# --- admin -----------------------------------------------------------------------------------------------------------
def prepare_admin(place: Workplace, channel: Channel) -> tuple[socket.socket, socket.socket]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place.scratch}/control-{os.getpid()}.sock")
    listener.listen(5)
    client = socket.socket(socket.AF_UNIX)
    client.connect(listener.getsockname())
    return listener, client


def answer_operator(prepared: tuple[socket.socket, socket.socket]) -> None:
    listener, client = prepared
    listener.setblocking(False)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(10_000)
    connection, _ = listener.accept()
    process, _, _ = struct.unpack("iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    assert process == os.getpid()
    client.sendall(b"status\n")
    assert connection.recv(100) == b"status\n"
    connection.sendall(b"fine\n")
    connection.close()
    assert client.recv(100) == b"fine\n"


# --- everybody -------------------------------------------------------------------------------------------------------
class Message(msgspec.Struct):
    text: str
    number: int


def prepare_pair(place: Workplace, channel: Channel) -> tuple[Channel, tuple[socket.socket, socket.socket]]:
    return channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def take_new_peer(prepared: tuple[Channel, tuple[socket.socket, socket.socket]]) -> None:
    channel, (replacement, far) = prepared
    socket.send_fds(socket.socket(fileno=channel[1]), [b"replace"], [replacement.fileno()])
    edge = socket.socket(fileno=channel[0])
    _, descriptors, _, _ = socket.recv_fds(edge, 10, 1)
    os.dup2(descriptors[0], channel[0], inheritable=False)
    os.close(descriptors[0])
    os.write(channel[0], b"hello")
    assert far.recv(10) == b"hello"


def think(prepared: object) -> None:
    """Memory, time, randomness, hashing, encoding, poll, signals."""
    blocks = [bytearray(1 << size) for size in range(10, 25)]
    blocks.reverse()
    del blocks[::2]
    gc.collect()
    assert len({os.urandom(16) for _ in range(10)}) == 10
    time.sleep(0.001)
    time.localtime()
    datetime.datetime.now(datetime.UTC).isoformat()
    hashlib.sha256(bytes(100_000)).hexdigest()
    assert msgspec.json.decode(msgspec.json.encode(Message("é", 1)), type=Message).number == 1
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Message("é", 1)), type=Message).text == "é"
    "münchen.example".encode("idna")
    seen = []
    signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    with select.epoll() as epoll:
        assert epoll.poll(0.001) == []
    os.uname()
    os.getpid()


def complain(prepared: object) -> None:
    """Everything that prints a traceback would like to read the source."""
    collected: list[str] = []

    class Collector:
        def write(self, text: str) -> int:
            collected.append(text)
            return len(text)

        def flush(self) -> None:
            return None

    sys.stderr = Collector()
    logging.basicConfig(stream=sys.stderr, force=True)
    try:
        raise ValueError("a mistake")
    except ValueError:
        traceback.print_exc()
        logging.exception("logged")
        sys.excepthook(*sys.exc_info())

    class Broken:
        def __del__(self) -> None:
            raise ValueError("a broken end")

    Broken()
    warnings.warn("careful", RuntimeWarning, stacklevel=1)
    text = "".join(collected)
    assert text.count("a mistake") == 3, text
    assert "a broken end" in text, text
    assert "careful" in text, text
    assert 'raise ValueError("a mistake")' not in text, text


def open_status(place: Workplace, channel: Channel) -> tuple[int, bool]:
    """The file's permission is asked when it is opened, its content made when it is read."""
    return os.open("/proc/self/status", os.O_RDONLY), os.geteuid() == 0


def stand_as_the_lockdown_left_us(prepared: tuple[int, bool]) -> None:
    descriptor, was_root = prepared
    status = dict(line.split(":\t", 1) for line in os.read(descriptor, 65536).decode().splitlines() if ":\t" in line)
    assert status["Seccomp"] == "2", status["Seccomp"]
    assert status["NoNewPrivs"] == "1"
    assert int(status["Threads"]) == 1
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb", *(("CapBnd",) if was_root else ())):
        assert int(status[capabilities], 16) == 0, (capabilities, status[capabilities])
    if was_root:
        assert not status["Groups"].strip(), status["Groups"]
    assert len(set(status["Uid"].split())) == len(set(status["Gid"].split())) == 1
    assert os.getsid(0) == os.getpid()
    for sign in (3, 39, 21):  # PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP
        assert prctl(sign) == {3: 0, 39: 1, 21: 2}[sign]
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def prepare_settings(place: Workplace, channel: Channel) -> tuple[int, Channel]:
    settings = os.memfd_create("settings")
    os.write(settings, b"generation 2")
    return settings, channel


def read_new_settings(prepared: tuple[int, Channel]) -> None:
    """A reload's settings lie in one memfd that all processes share: nobody may need to move its offset."""
    settings, _ = prepared
    assert os.fstat(settings).st_size == 12
    assert os.pread(settings, 100, 0) == b"generation 2"


def prepare_slot(place: Workplace, channel: Channel) -> Channel:
    return channel


def move_off_the_slot(channel: Channel) -> None:
    """What closes its descriptor itself gets a copy (processes/descriptors.py)."""
    moved = fcntl.fcntl(channel[0], fcntl.F_DUPFD_CLOEXEC, 200)
    os.dup2(0, channel[0], inheritable=False)
    os.write(moved, b"hello")
    assert os.read(channel[1], 10) == b"hello"


def nothing(place: Workplace, channel: Channel) -> None:
    return None


ALL = ("worker", "egress", "dialer", "vault", "auditor", "admin")

JOBS: tuple[Job, ...] = (
    Job("serve clients on an inherited socket", ("worker",), prepare_server, serve),
    Job("speak TLS 1.3 over a passed descriptor", ("egress",), prepare_tls, speak_tls),
    Job("refuse a certificate", ("egress",), prepare_tls, refuse_stranger),
    Job("resolve and connect in a thread", ("dialer",), prepare_dialer, dial),
    Job("commit, check-point and vacuum", ("vault",), prepare_vault, keep_records),
    Job("append durably", ("auditor",), prepare_log, append_durably),
    Job("answer the operator", ("admin",), prepare_admin, answer_operator),
    Job("take a restarted peer's channel", ALL, prepare_pair, take_new_peer),
    Job("stand as the lockdown left us", ALL, open_status, stand_as_the_lockdown_left_us),
    Job("read the settings of a reload", ("egress", "dialer", "vault", "auditor", "admin"), prepare_settings, read_new_settings),
    Job("move a channel off its slot", ("worker", "egress"), prepare_slot, move_off_the_slot),
    Job("think", ALL, nothing, think),
    Job("complain", ALL, nothing, complain),
)


def jobs_of(role: str) -> tuple[Job, ...]:
    return tuple(job for job in JOBS if role in job.roles)
