"""Jobs by thread name, for made-up names and for real threads."""

import ctypes
import os
import threading
import time

import pytest

from keigo.lsm.threads import Job, job_of_comm, job_of_thread

PR_SET_NAME = 15


@pytest.mark.parametrize(
    ("comm", "job"),
    [
        ("rocksdb:high", Job.FLUSH),
        ("rocksdb:low", Job.COMPACTION),
        ("rocksdb:bottom", Job.COMPACTION),
        ("rocksdb:high0", Job.FLUSH),
        ("rocksdb:low15", Job.COMPACTION),
        ("rocksdb:bottom7", Job.COMPACTION),
        ("speedb:high", Job.FLUSH),
        ("speedb:low", Job.COMPACTION),
        ("speedb:bottom", Job.COMPACTION),
        ("rocksdb:user", Job.UNKNOWN),
        ("rocksdb:bg0", Job.UNKNOWN),
        ("rocksdb:", Job.UNKNOWN),
        ("rocksdb:lower", Job.UNKNOWN),
        ("python", Job.FOREGROUND),
        ("db_bench", Job.FOREGROUND),
        ("rocksdb", Job.FOREGROUND),
        ("my:low", Job.FOREGROUND),
        ("xrocksdb:low", Job.FOREGROUND),
        ("ROCKSDB:LOW", Job.FOREGROUND),
        ("", Job.UNKNOWN),
    ],
)
def test_job_by_name(comm: str, job: Job) -> None:
    assert job_of_comm(comm) is job


def job_of_thread_named(comm: bytes) -> tuple[int, Job]:
    """The id of a thread that gives itself a name, and its job while it lives."""
    libc = ctypes.CDLL(None, use_errno=True)
    named, done = threading.Event(), threading.Event()
    tids: list[int] = []

    def body() -> None:
        assert libc.prctl(PR_SET_NAME, comm, 0, 0, 0) == 0
        tids.append(threading.get_native_id())
        named.set()
        done.wait(10)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert named.wait(10)
        return tids[0], job_of_thread(tids[0])
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("comm", "job"),
    [
        (b"rocksdb:high", Job.FLUSH),
        (b"rocksdb:bottom", Job.COMPACTION),
        (b"speedb:low", Job.COMPACTION),
        (b"a name longer than fifteen", Job.FOREGROUND),
        (b"rocksdb:low\n", Job.FOREGROUND),
        (b"\xff\xfe", Job.FOREGROUND),
        (b"", Job.UNKNOWN),
    ],
)
def test_job_of_a_running_thread(comm: bytes, job: Job) -> None:
    assert job_of_thread_named(comm)[1] is job


def test_a_thread_that_is_gone_is_unknown() -> None:
    tid, job = job_of_thread_named(b"rocksdb:low")
    assert job is Job.COMPACTION
    while os.path.exists(f"/proc/{tid}"):  # join() may return a little before the kernel has removed the thread
        time.sleep(0.001)
    assert job_of_thread(tid) is Job.UNKNOWN


@pytest.mark.parametrize("tid", [0, -1, 2**22 + 1, 2**40])
def test_an_id_of_no_thread_is_unknown(tid: int) -> None:
    assert job_of_thread(tid) is Job.UNKNOWN


def test_main_thread_is_foreground() -> None:
    assert job_of_thread(os.getpid()) is Job.FOREGROUND
