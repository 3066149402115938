"""devices.yaml: what is valid, and the one line for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keigo.config import POLICIES, CacheConfig, Config, ConfigError, check, default_levels, load
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.policy import Context, TierState
from keigo.policies import PolicyError, make_policy

ROOT = Path(__file__).parents[2]
ONE = "volume: v\ntiers:\n- {name: a, in_place: true}\n"
LISTS = "placement:\n  policy: levels\n  levels:\n"
TWO = "volume: v\ntiers:\n- {name: a, path: /x}\n- {name: b, in_place: true}\n"


def read(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "devices.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


def message(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert text.isprintable()
    return text


def test_the_example_in_the_repository() -> None:
    config = load(ROOT / "devices.yaml")
    assert config.volume == "orders"
    assert [tier.name for tier in config.tiers] == ["nvmm", "nvme", "sata"]
    assert config.tiers[0].capacity == 32 << 30
    assert config.tiers[0].reserve_bytes(1000) == 50
    assert config.tiers[2].in_place
    assert config.placement.policy == "cost"
    assert config.pins == {"archive/*": "sata"}
    assert config.copy_limit == 200 << 20
    assert config.cache == CacheConfig("nvme", 100 << 30, 64 << 10)


def test_what_the_example_offers_instead(tmp_path: Path) -> None:
    head, cost, rest = re.split(r"(?m)^(placement:\n(?:  .*\n)+)", (ROOT / "devices.yaml").read_text())
    assert "policy: cost" in cost
    others = [re.sub("(?m)^# ?", "", block) for block in re.findall(r"(?m)^# placement:.*\n(?:#   .*\n)+", rest)]
    levels, popularity = (read(tmp_path, head + other).placement for other in others)
    assert (levels.policy, levels.levels["sata"]) == ("levels", (4, 5, 6))
    assert (popularity.policy, popularity.period) == ("popularity", 60)


def test_a_cache(tmp_path: Path) -> None:
    found = read(tmp_path, TWO + "cache: {tier: a, capacity: 1GiB}\n").cache
    assert found == CacheConfig("a", 1 << 30, 64 << 10)
    found = read(tmp_path, TWO + "cache: {tier: a, capacity: 1GiB, chunk: 16KiB}\n").cache
    assert found == CacheConfig("a", 1 << 30, 16 << 10)
    for none in ("cache: off\n", "cache: false\n", "cache:\n", ""):
        assert read(tmp_path, TWO + none).cache is None


def test_where_metrics_are(tmp_path: Path) -> None:
    said = {"9123": ("127.0.0.1", 9123), "0.0.0.0:80": ("0.0.0.0", 80), "'[::1]:9123'": ("::1", 9123)}
    for text, wanted in said.items():
        assert read(tmp_path, ONE + f"metrics: {text}\n").metrics == wanted


def test_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, TWO)
    assert config.tiers[0].capacity is None
    assert config.tiers[0].reserve_bytes(1000) == 50
    assert (config.placement.policy, config.placement.period) == ("cost", None)
    assert config.placement.levels == {"a": ("wal", 0, 1), "b": (2, 3, 4, 5, 6)}
    assert (config.catalog, config.copy_limit, config.pins) == (None, None, {})
    assert not config.io_priority


def test_io_priority(tmp_path: Path) -> None:
    assert read(tmp_path, TWO + "io_priority: true\n").io_priority
    assert not read(tmp_path, TWO + "io_priority: false\n").io_priority


def test_a_relative_path_is_beside_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, "volume: v\ntiers: [{name: a, path: fast}]\n")
    assert config.tiers[0].path == tmp_path / "fast"


def test_dots_in_a_path_mean_what_the_kernel_takes_them_for(tmp_path: Path) -> None:
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/deep")
    config = read(tmp_path, "volume: v\ntiers: [{name: a, path: link/../fast}]\n")
    assert config.tiers[0].path is not None
    assert config.tiers[0].path.resolve() == tmp_path / "disk/fast"


@pytest.mark.filterwarnings("error")
def test_an_anchor_may_be_used_again(tmp_path: Path) -> None:
    assert read(tmp_path, "volume: &x v\ntiers:\n- {name: &x a, in_place: true}\n").volume == "v"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_had(tmp_path: Path, policy: str) -> None:
    config = read(tmp_path, TWO + f"placement: {{policy: {policy}}}\n")
    assert config.placement.policy == policy
    assert make_policy(config).name == policy
    assert make_policy(read(tmp_path, TWO), policy).name == policy


@pytest.mark.parametrize(("text", "seconds"), [("5", 5), ("0.5", 0.5), ("90s", 90), ("1.5min", 90), ("'2 h'", 7200)])
def test_a_period_is_of_the_policy_that_has_it(tmp_path: Path, text: str, seconds: float) -> None:
    config = read(tmp_path, TWO + f"placement: {{policy: mutant, period: {text}}}\n")
    assert config.placement.period == seconds
    assert make_policy(config).period == seconds
    assert make_policy(config, "popularity").period == 60


def test_the_levels_of_a_configuration_are_those_of_the_policy(tmp_path: Path) -> None:
    config = read(tmp_path, TWO + LISTS + "    b: [wal, 0]\n    a: [1]\n")
    states = [TierState("a", 100, 0, 100), TierState("b", 100, 0, 100)]
    assert make_policy(config).choose(Context(Role.WAL, Job.FOREGROUND, None, b"x"), 1, states).tier == 1


def test_a_policy_that_is_none_is_one_line_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as error:
        make_policy(read(tmp_path, TWO), "best")
    assert str(error.value) == "'best' is not a policy (known: cost, levels, fill-order, popularity, mutant)"


@pytest.mark.parametrize("count", range(1, 10))
def test_default_levels_are_complete_and_monotone(count: int) -> None:
    names = [f"t{number}" for number in range(count)]
    levels = [level for name in names for level in default_levels(names)[name]]
    assert levels == ["wal", 0, 1, 2, 3, 4, 5, 6]


MISTAKES = [
    ("", 1, "must be a mapping"),
    ("- a\n", 1, "must be a mapping"),
    ("a: [\n", 2, "not YAML"),
    ("volume: v\nvolume: w\ntiers: []\n", 2, "duplicate key"),
    (b"volume: v\n\xff\n", 2, "UTF-8"),
    ("volume: v\n", 1, "tiers: is missing"),
    ("volume: v\ntiers: []\n", 2, "must be a list of tiers"),
    ("volume: v\ntiers: yes\n", 2, "must be a list of tiers"),
    ("tiers:\n- {name: a, in_place: true}\n", 1, "volume: is missing"),
    ("\n\nvolume:\ntiers:\n- {name: a, in_place: true}\n", 3, "volume: is missing"),
    ("volume: a/b\ntiers:\n- {name: a, in_place: true}\n", 1, "'a/b' is not a name"),
    ("volume: 7\ntiers:\n- {name: a, in_place: true}\n", 1, "must be a text, not 7"),
    (ONE + "cache: {tier: a, capacity: 1GiB}\n", 4, "a is the slowest: nothing is slower"),
    (TWO + "cache: {tier: b, capacity: 1GiB}\n", 5, "b is the slowest: nothing is slower"),
    (TWO + "cache: {tier: c, capacity: 1GiB}\n", 5, "'c' is not a tier"),
    (TWO + "cache: {capacity: 1GiB}\n", 5, "must be the name of a tier, not nothing"),
    (TWO + "cache: {tier: a}\n", 5, "cache: capacity: is missing"),
    (TWO + "cache: {tier: a, capacity: much}\n", 5, "'much' is not a size"),
    (TWO + "cache: {tier: a, capacity: 100KiB}\n", 5, "is less than four chunks"),
    (TWO + "cache:\n  tier: a\n  capacity: 1GiB\n  chunk: 48KiB\n", 8, "is not a power of two from 16.0 KiB to"),
    (TWO + "cache:\n  tier: a\n  capacity: 1GiB\n  chunk: 8KiB\n", 8, "is not a power of two from 16.0 KiB to"),
    (TWO + "cache: {tier: a, size: 1GiB}\n", 5, "cache: size: unknown key"),
    (TWO + "cache: on\n", 5, "must be off, or a mapping with tier, capacity, chunk, not 'on'"),
    (TWO + "cache: [a]\n", 5, "must be off, or a mapping"),
    (TWO.replace("/x", "/x, capacity: 1GiB") + "cache: {tier: a, capacity: 1GiB}\n", 5, "leaves no room for files"),
    (ONE + "copy_limt: 3\n", 4, "did you mean copy_limit?"),
    ("volume: v\ntiers:\n- {name: a, pth: /x}\n", 3, "did you mean path?"),
    ("volume: v\ntiers:\n- {path: /x}\n", 3, "name: is missing"),
    ("volume: v\ntiers:\n- {name: a}\n", 3, "needs a path"),
    ("volume: v\ntiers:\n- just text\n", 3, "must be a mapping"),
    ("volume: v\ntiers:\n" + "- {name: a, path: /x}\n" * 65, 2, "has 65 tiers, more than 64"),
    ("volume: v\ntiers:\n- {name: a, path: /x, in_place: true}\n", 3, "has a path and in_place"),
    ("volume: v\ntiers:\n- {name: a, in_place: 1}\n", 3, "must be true or false"),
    ("volume: v\ntiers:\n- {name: a, path: /x}\n- {name: a, in_place: true}\n", 4, "name of two tiers"),
    ("volume: v\ntiers:\n- {name: a, in_place: true}\n- {name: b, in_place: true}\n", 4, "second tier with in_place"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: 3 apples\n", 5, "'3 apples' is not a size"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: 0\n", 5, "above zero"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: -1\n", 5, "negative"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  reserve: 120%\n", 5, "not between"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: 1MiB\n  reserve: 2MiB\n", 6, "leaves nothing"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  reserve: nan%\n", 5, "not between"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: 1.5\n", 5, "must be a size"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: '" + "9" * 400 + ".5'\n", 5, "is not a size"),
    ("volume: v\ntiers:\n- name: a\n  path: /x\n  capacity: 1" + "0" * 400 + "\n", 5, "more than a file system"),
    (ONE + '"a\\nb": 1\n', 4, "a b: unknown key"),
    (ONE + '"a\\e[31mb": 1\n', 4, "a [31mb: unknown key"),
    (ONE + 'pins: {"a\\nb": zz}\n', 4, "pins: a b: 'zz' is not a tier"),
    ("volume: v\ntiers:\n- {name: '1', in_place: true}\npins: {x: 1}\n", 4, "must be the name of a tier, not 1"),
    (
        "volume: v\ntiers:\n- {name: '1', in_place: true}\nplacement:\n  policy: levels\n  levels:\n    1: [0]\n",
        7,
        "must be the name of a tier, not 1",
    ),
    (ONE + "catalog: [a]\n", 4, "must be the name of a tier, not Seq"),
    (ONE + "placement: {policy: best}\n", 4, "'best' is not a policy"),
    (ONE + "placement: {policy: levels, levls: {}}\n", 4, "did you mean levels?"),
    (ONE + LISTS + "    c: [1]\n", 7, "'c' is not a tier"),
    (ONE + LISTS + "    a: 1\n", 7, "must be a list of levels"),
    (ONE + LISTS + "    a: [wall]\n", 7, "'wall' is not a level"),
    (ONE + LISTS + "    a: [true]\n", 7, "is not a level"),
    (TWO + LISTS + "    a: [1]\n    b: [2, 1]\n", 9, "1 is listed for a too"),
    (ONE + "placement:\n  levels: {a: [1]}\n", 5, "levels: is for policy levels only; the policy is cost"),
    (ONE + "placement:\n  policy: mutant\n  levels: {a: [1]}\n", 6, "only; the policy is mutant"),
    (ONE + "placement: {policy: cost, period: 60}\n", 4, "period: is for policy popularity and mutant only"),
    (ONE + "placement: {policy: levels, period: 60}\n", 4, "only; the policy is levels"),
    (ONE + "placement: {policy: mutant, period: soon}\n", 4, "period: 'soon' is not a time"),
    (ONE + "placement: {policy: mutant, period: 0}\n", 4, "period: must be above zero"),
    (ONE + "placement: {policy: mutant, period: -1}\n", 4, "is not a time between 0 and"),
    (ONE + "placement: {policy: mutant, period: .nan}\n", 4, "is not a time between 0 and"),
    (ONE + "placement: {policy: mutant, period: 1" + "0" * 400 + "}\n", 4, "is not a time between 0 and"),
    (ONE + "placement: {policy: mutant, period: true}\n", 4, "must be a time, not True"),
    (ONE + "pins: [a]\n", 4, "must map patterns"),
    (ONE + "pins:\n  '*': c\n", 5, "'c' is not a tier"),
    (ONE + "pins:\n  '': a\n", 5, "is not a pattern"),
    (ONE + "catalog: c\n", 4, "'c' is not a tier"),
    (ONE + "copy_limit: fast\n", 4, "'fast' is not a size"),
    (ONE + "metrics: on\n", 4, "metrics: 'on' is neither a port nor ADDRESS:PORT"),
    (ONE + "metrics: 99999\n", 4, "is neither a port"),
    (ONE + "metrics: host:80\n", 4, "is neither a port"),
    (ONE + "metrics: true\n", 4, "is neither a port"),
    (ONE + "io_priority: 7\n", 4, "must be true or false, not 7"),
]


@pytest.mark.parametrize(("text", "line", "fragment"), MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, text: str | bytes, line: int, fragment: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message(error).startswith(f"{tmp_path}/devices.yaml:{line}: ")
    assert fragment in message(error)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.yaml")


KEYS = (
    "volume tiers placement cache pins catalog copy_limit io_priority metrics tier chunk "
    "name path in_place capacity reserve policy levels period"
)
WORDS = st.sampled_from([*KEYS.split(), *POLICIES, "wal", "a", "5%", "60s", "64MiB", "9" * 400, "nan%", "/x", ""])
SCALARS = WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6),
    max_leaves=30,
)
TIERS = st.lists(st.just({"name": "a", "in_place": True}) | st.dictionaries(WORDS, SCALARS), max_size=3)


@given(st.fixed_dictionaries({"volume": st.just("v"), "tiers": TIERS | TREES}), st.dictionaries(WORDS, TREES))
def test_any_tree_is_valid_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, most: dict[str, object], rest: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    path.write_text(json.dumps(rest | most))
    try:
        load(path)
    except ConfigError as error:
        assert re.fullmatch(rf"{re.escape(str(path))}:1: .+", str(error))
        assert str(error).isprintable()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"!!timestamp 99")
@example(b"? {a: b}\n: c")
@example(b"volume: v\ntiers: [[[]]]")
@example(b"&a [*a]")
@example(b"tiers: &t [*t]\nvolume: v")
def test_any_bytes_are_valid_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(raw)
    try:
        load(path)
    except ConfigError as error:
        assert str(error).isprintable()


class TestCheck:
    """What depends on the machine."""

    def check(self, tmp_path: Path, tiers: str, at: str = "db") -> None:
        path = tmp_path / "devices.yaml"
        path.write_text(f"volume: v\ntiers:\n{tiers}")
        check(load(path), tmp_path / at)

    @pytest.fixture(autouse=True)
    def directories(self, tmp_path: Path) -> None:
        for name in ("db", "fast", "mid", "db/inside", "fast/inside"):
            (tmp_path / name).mkdir()
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "fast")

    def test_valid(self, tmp_path: Path) -> None:
        self.check(tmp_path, "- {name: a, path: fast}\n- {name: b, in_place: true}\n")

    @pytest.mark.parametrize(
        ("tiers", "at", "line", "fragment"),
        [
            ("- {name: a, path: none}\n- {name: b, in_place: true}\n", "db", 3, "no such directory"),
            ("- {name: a, path: file}\n- {name: b, in_place: true}\n", "db", 3, "is not a directory"),
            ("- {name: a, path: fast}\n- {name: b, path: link}\n", "empty", 4, "is the directory of tier a too"),
            ("- {name: a, path: fast}\n- {name: b, path: fast/inside}\n", "empty", 4, "one inside the other"),
            ("- {name: a, path: db/inside}\n- {name: b, in_place: true}\n", "db", 3, "below the mount"),
            ("- {name: a, path: .}\n- {name: b, in_place: true}\n", "db", 3, "contains"),
            ("- {name: a, path: db}\n- {name: b, in_place: true}\n", "db", 3, "write in_place: true"),
            ("- {name: a, path: fast, capacity: 900PiB}\n- {name: b, in_place: true}\n", "db", 3, "above the device's"),
            ("- {name: a, path: fast}\n", "db", 3, "has data"),
            ("- {name: a, path: fast, reserve: 900PiB}\n", "empty", 3, "leaves nothing of the device's"),
            ("- {name: a, in_place: true, reserve: 900PiB}\n", "db", 3, "leaves nothing of the device's"),
            (f"- {{name: a, path: {'x' * 300}}}\n", "empty", 3, "File name too long"),
            ('- {name: a, path: "x\\ny"}\n', "empty", 3, "x y: no such directory"),
            ('- {name: a, path: "x\\0y"}\n', "empty", 3, "x y: is not a path"),
            ("- {name: a, path: file/inside}\n", "empty", 3, "Not a directory"),
        ],
    )
    def test_mistake(self, tmp_path: Path, tiers: str, at: str, line: int, fragment: str) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError) as error:
            self.check(tmp_path, tiers, at)
        assert message(error).startswith(f"{tmp_path}/devices.yaml:{line}: tiers: ")
        assert fragment in message(error)

    def test_the_file_inside_the_mount(self, tmp_path: Path) -> None:
        path = tmp_path / "db" / "devices.yaml"
        path.write_text(ONE)
        with pytest.raises(ConfigError, match="hidden by the mount"):
            check(load(path), tmp_path / "db")

    def test_a_link_to_the_file_inside_the_mount(self, tmp_path: Path) -> None:
        (tmp_path / "devices.yaml").write_text(ONE)
        path = tmp_path / "db" / "linked.yaml"
        path.symlink_to(tmp_path / "devices.yaml")
        with pytest.raises(ConfigError, match="hidden by the mount"):
            check(load(path), tmp_path / "db")

    @pytest.mark.parametrize(
        ("at", "fragment"), [("file", "is not a directory"), ("x" * 300, "File name too long"), ("dangling", "no such")]
    )
    def test_not_a_mount_point(self, tmp_path: Path, at: str, fragment: str) -> None:
        (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(ConfigError, match=f"/{at}: {fragment}"):
            self.check(tmp_path, "- {name: b, in_place: true}\n", at)

    def test_a_mount_point_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "fast/inside/tier").mkdir()
        with pytest.raises(ConfigError, match="below the mount"):
            self.check(tmp_path, "- {name: a, path: fast/inside/tier}\n- {name: b, in_place: true}\n", "link")

    def test_no_such_mount_point(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="absent: no such directory"):
            self.check(tmp_path, "- {name: b, in_place: true}\n", "absent")
