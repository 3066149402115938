"""The grammar of file names: real names of each store, and names that only look like them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.roles import DATABASE_MARKERS, IMMUTABLE, Role, file_number, role_of

REAL: list[tuple[bytes, Role, int | None]] = [
    # RocksDB, Speedb, LevelDB
    (b"000004.log", Role.WAL, 4),
    (b"1234567.log", Role.WAL, 1234567),
    (b"000009.sst", Role.SST, 9),
    (b"000005.ldb", Role.SST, 5),
    (b"000010.blob", Role.BLOB, 10),
    (b"MANIFEST-000005", Role.MANIFEST, 5),
    (b"CURRENT", Role.CURRENT, None),
    (b"OPTIONS-000007", Role.OPTIONS, 7),
    (b"LOG", Role.INFOLOG, None),
    (b"LOG.old", Role.INFOLOG, None),
    (b"LOG.old.1795247722095477", Role.INFOLOG, None),
    (b"data_db_LOG", Role.INFOLOG, None),
    (b"data_db_LOG.old.1795247722095477", Role.INFOLOG, None),
    (b"srv_my-app.v2_LOG.old", Role.INFOLOG, None),
    (b"LOCK", Role.LOCK, None),
    (b"IDENTITY", Role.IDENTITY, None),
    (b"000000.dbtmp", Role.TEMPORARY, 0),
    (b"OPTIONS-000007.dbtmp", Role.TEMPORARY, 7),
    (b"CURRENT.dbtmp", Role.TEMPORARY, None),
    (b"000009.sst.trash", Role.TEMPORARY, None),
    (b"000009.sst1.trash", Role.TEMPORARY, None),
    (b"000004.log.trash", Role.TEMPORARY, None),
    # files to ingest, backups
    (b"users-2024.sst", Role.SST, None),
    (b"import\n1.sst", Role.SST, None),
    (b"000007_123_456.sst", Role.SST, 7),
    (b"000007_sABCDEFGH_456.sst", Role.SST, 7),
    (b"000010_123_456.blob", Role.BLOB, 10),
    (b"000007.sst.tmp", Role.TEMPORARY, None),
    (b".000007_123_456.sst.tmp", Role.TEMPORARY, None),
    # Pebble
    (b"000012-001.log", Role.WAL, 12),
    (b"CURRENT.000003.dbtmp", Role.TEMPORARY, 3),
    (b"temporary.000004.dbtmp", Role.TEMPORARY, 4),
    (b"marker.manifest.000001.MANIFEST-000001", Role.CURRENT, None),
    (b"marker.format-version.000003.005", Role.CURRENT, None),
    (b"REMOTE-OBJ-CATALOG-000001", Role.MANIFEST, 1),
]

NEAR_MISSES = [
    b"",
    b"LOCK2",
    b"LOCK\n",
    b"lock",
    b" LOCK",
    b"CURRENT2",
    b"CURRENT.bak",
    b"IDENTITY.old",
    b"LOG2",
    b"LOG.older",
    b"LOG.old.",
    b"LOG.old.x",
    b"CHANGELOG",
    b"_LOG",
    b"MANIFEST",
    b"MANIFEST-",
    b"MANIFEST-x",
    b"MANIFEST-000001.bak",
    b"OPTIONS",
    b"OPTIONS-x",
    b"12.logx",
    b"12log",
    b".log",
    b"-1.log",
    b"12-.log",
    b"access.log",
    b"access-001.log",
    "١٢.log".encode(),
    b"1" * 21 + b".log",
    b".sst",
    b"12.sst\n",
    b"12.SST",
    b"12.sst.bak",
    b"users.ldb",
    b"photo.blob",
    b".tmp",
    b"tmp",
    b"000012.trashed",
    b"marker",
    b"marker.",
    b"marker.notes",
    b"marker.manifest.x.MANIFEST-000001",
    b"METADB-1",
    b"COMPACTION_PROGRESS-1795247722095477",
    b"rocksdict-config.json",
    b"\xff\xfe\x80",
    b"\xff" * 255,
    b"0" * 255,
]


@pytest.mark.parametrize(("name", "role", "number"), REAL)
def test_name_of_a_store(name: bytes, role: Role, number: int | None) -> None:
    assert (role_of(name), file_number(name)) == (role, number)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_name_of_no_store(name: bytes) -> None:
    assert (role_of(name), file_number(name)) == (Role.OTHER, None)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (b"x" * 251 + b".sst", Role.SST),
        (b"\xff\xfe.sst", Role.SST),
        (b"000007_" + b"9" * 244 + b".sst", Role.SST),
        (b"a" * 251 + b"_LOG", Role.INFOLOG),
        (b"\xff" * 249 + b".trash", Role.TEMPORARY),
    ],
)
def test_long_and_undecodable_names(name: bytes, role: Role) -> None:
    assert len(name) <= 255
    assert role_of(name) is role


@given(st.binary(max_size=255))
def test_any_name_has_a_role(name: bytes) -> None:
    assert role_of(name) in Role
    number = file_number(name)
    assert number is None or number >= 0


@given(st.sampled_from(REAL), st.binary(min_size=1, max_size=8))
def test_what_is_deleted_in_pieces_is_never_immutable(real: tuple[bytes, Role, int | None], more: bytes) -> None:
    assert role_of(real[0] + b".trash") is Role.TEMPORARY
    assert role_of(real[0] + more + b".trash") is Role.TEMPORARY


def test_roles_that_other_parts_build_on() -> None:
    assert {Role.SST, Role.BLOB} == IMMUTABLE
    assert {Role.LOCK, Role.CURRENT, Role.MANIFEST} == DATABASE_MARKERS
    assert [str(role) for role in Role] == [role.value for role in Role]


def test_a_number_fits_64_bits_as_the_stores_write_it() -> None:
    largest = 2**64 - 1
    assert file_number(os.fsencode(f"{largest}.sst")) == largest
