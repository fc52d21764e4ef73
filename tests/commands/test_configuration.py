"""Keys, types and configurations: what is accepted, what is refused, and in which words."""

import inspect
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal, Optional

import pytest
from omegaconf import OmegaConf
from runners import ROOT

from ntm.commands.command import compose
from ntm.commands.configuration import (
    FREE,
    GOVERNED,
    ConfigurationError,
    build,
    check_evaluation,
    check_governed,
    check_type,
    check_types,
    check_values,
    differences,
    flatten,
    one_line,
    plain,
)

CONFIGS = ROOT / "configs"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


class Thing:
    """What the nodes of these tests describe."""

    def __init__(
        self,
        size: int,
        rate: float = 1.0,
        name: str = "",
        loud: bool = False,
        upper: int | None = None,
        old: Optional[float] = None,  # noqa: UP045, libraries still write it so
        mode: Literal["a", "b"] = "a",
        lengths: list[int] | None = None,
        pair: Sequence[float] = (),
        inner: Any = None,
        activation: str | Callable = "tanh",
    ) -> None:
        if size < 0:
            raise ValueError(f"size must be at least 0,\n  got {size}")
        self.size = size
        self.rate = rate
        self.inner = inner


class Sub(Thing):
    """Takes what its base takes, unseen by its signature."""

    def __init__(self, extra: int = 0, **arguments: Any) -> None:
        super().__init__(**arguments)


def make(size: int, rate: float = 1.0) -> Thing:
    return Thing(size, rate)


def node(**arguments: Any):
    target = arguments.pop("target", "Thing")
    return OmegaConf.create({"_target_": f"{__name__}.{target}", **arguments})


GOOD = [
    {"size": 3},
    {"rate": 0.5},
    {"rate": 2},
    {"name": "x"},
    {"loud": True},
    {"upper": None},
    {"upper": 4},
    {"old": 3},
    {"old": None},
    {"mode": "b"},
    {"lengths": [1, 2]},
    {"lengths": []},
    {"lengths": None},
    {"pair": [1, 2.5]},
    {"inner": 3},
    {"inner": [1, "a"]},
    {"activation": "relu"},
]
BAD = [
    {"size": 3.0},
    {"size": True},
    {"size": "3"},
    {"size": None},
    {"size": [3]},
    {"rate": "0.5"},
    {"rate": True},
    {"rate": None},
    {"name": 1},
    {"name": None},
    {"loud": 1},
    {"loud": "true"},
    {"upper": 1.5},
    {"upper": "1"},
    {"upper": False},
    {"old": "x"},
    {"mode": "c"},
    {"mode": 1},
    {"lengths": [1, 2.0]},
    {"lengths": [1, None]},
    {"lengths": [True]},
    {"lengths": 3},
    {"lengths": "12"},
    {"pair": [1, "b"]},
    {"pair": 0.5},
    {"activation": 3},
]


class TestTypes:
    @pytest.mark.parametrize("arguments", GOOD, ids=str)
    def test_accepts(self, arguments):
        check_types(node(**arguments), "thing")

    @pytest.mark.parametrize("arguments", BAD, ids=str)
    def test_refuses_by_key_with_what_it_got(self, arguments):
        ((name, value),) = arguments.items()
        with pytest.raises(ConfigurationError) as caught:
            check_types(node(**arguments), "thing")
        text = str(caught.value)
        accepted = "one of a or b" if name == "mode" else "of type "
        assert text.startswith(f"thing.{name} must be {accepted}")
        assert f"got {value!r}" in text
        assert "\n" not in text

    @pytest.mark.parametrize(
        ("hint", "value", "fits"),
        [
            (int, 1, True),
            (int, True, False),
            (float, 1, True),
            (float, False, False),
            (Optional[int], None, True),  # noqa: UP045
            (int | str | None, 1.5, False),
            (Literal[1, 2], 2, True),
            (Literal[1, 2], 3, False),
            (list[int], [1], True),
            (list[int], ["a"], False),
            (list[str | int], ["a", 1], True),
            (tuple[int, int], [1, 2], True),
            (tuple[int, int], [1, "b"], False),
            (Any, 2j, True),
            (Thing, 3, False),
            pytest.param(Thing, Thing(1), True, id="Thing-a thing-True"),
        ],
        ids=str,
    )
    def test_of_one_value(self, hint, value, fits):
        if fits:
            check_type("key", value, hint)
        else:
            with pytest.raises(ConfigurationError, match=r"^key must be (of type|one of) "):
                check_type("key", value, hint)

    @pytest.mark.parametrize(
        ("hint", "words"),
        [
            (int, "of type int"),
            (Optional[int], "of type int or null"),  # noqa: UP045
            (int | float | None, "of type int, float or null"),
            (list[int] | str, "of type list[int] or str"),
            (Literal[16, 32] | Literal["32", "bf16"] | None, "one of 16, 32, bf16 or null"),
            (Literal["a"], "one of a"),
            (Thing | Callable, "of type Thing or Callable"),
        ],
        ids=str,
    )
    def test_what_is_accepted_is_said_in_words(self, hint, words):
        with pytest.raises(ConfigurationError) as caught:
            check_type("key", 1.5 if hint != int | float | None else "x", hint)
        assert str(caught.value).startswith(f"key must be {words}, got ")

    def test_unknown_argument_lists_the_known(self):
        with pytest.raises(ConfigurationError) as caught:
            check_types(node(sise=3), "thing")
        text = str(caught.value)
        assert text.startswith("thing.sise is unknown")
        known = list(inspect.signature(Thing).parameters)
        assert ", ".join(known) in text

    def test_arguments_passed_on_are_not_unknown(self):
        check_types(node(target="Sub", size=3), "thing")
        with pytest.raises(ConfigurationError, match=r"^thing\.extra must be of type int"):
            check_types(node(target="Sub", extra="x"), "thing")

    @pytest.mark.parametrize("depth", ["inner", "inner.inner", "list"])
    def test_nodes_inside_are_held_too(self, depth):
        wrong = node(size="x")
        outer = {
            "inner": node(inner=wrong),
            "inner.inner": node(inner=node(inner=wrong)),
            "list": OmegaConf.create({"a": {"b": wrong}}),
        }[depth]
        key = {"inner": "inner", "inner.inner": "inner.inner", "list": "a.b"}[depth]
        with pytest.raises(ConfigurationError, match=rf"^thing\.{key}\.size must"):
            check_types(outer, "thing")

    def test_a_function_is_held_like_a_class(self):
        check_types(node(target="make", size=1), "thing")
        with pytest.raises(ConfigurationError, match=r"^thing\.sise is unknown"):
            check_types(node(target="make", sise=1), "thing")
        with pytest.raises(ConfigurationError, match=r"^thing\.size must be of type int"):
            check_types(node(target="make", size="x"), "thing")

    def test_a_target_that_is_not_there(self):
        with pytest.raises(ConfigurationError, match=r"^thing\._target_ .*Nothing"):
            check_types(node(target="Nothing"), "thing")

    @pytest.mark.parametrize("value", [None, 3, "x", [1], {}], ids=str)
    def test_what_is_no_node_passes(self, value):
        check_types(OmegaConf.create({"x": value}).x, "thing")


class TestBuild:
    def test_builds_with_arguments_from_code_first(self):
        made = build(node(size=1, rate=2), "thing", size=5)
        assert isinstance(made, Thing)
        assert (made.size, made.rate) == (5, 2)

    def test_builds_what_is_inside(self):
        assert build(node(size=1, inner=node(size=2)), "thing").inner.size == 2

    def test_a_refusal_is_one_line_with_the_key(self):
        with pytest.raises(ConfigurationError) as caught:
            build(node(size=-1), "thing")
        assert str(caught.value) == "thing.size must be at least 0, got -1"

    def test_a_refusal_inside_names_the_whole_key(self):
        with pytest.raises(ConfigurationError) as caught:
            build(node(size=1, inner=node(size=-1)), "thing")
        assert str(caught.value) == "thing.inner.size must be at least 0, got -1"

    def test_types_are_held_before_anything_is_built(self):
        with pytest.raises(ConfigurationError, match=r"^thing\.rate must be of type float"):
            build(node(size=-1, rate="x"), "thing")

    @pytest.mark.parametrize(
        ("key", "override", "text"),
        [
            ("task", "task.bits=0", "task.bits must be at least 1, got 0"),
            (
                "task",
                "task.max_length=0",
                "task.max_length must be at least min_length = 1, got 0",
            ),
            (
                "model.network",
                "model.network.memory_size=0",
                "model.network.memory_size must be at least 1, got 0",
            ),
            (
                "model.network",
                "model.network.controller.hidden_size=0",
                "model.network.controller.hidden_size must be at least 1, got 0",
            ),
            (
                "model.network",
                "model.network.word_size=2.5",
                "model.network.word_size must be of type int, got 2.5 (float)",
            ),
        ],
        ids=lambda value: value if "=" in value and " " not in value else "",
    )
    def test_real_nodes(self, key, override, text):
        config = compose(CONFIGS, "train", [override])
        sizes = {"input_size": 9, "output_size": 8} if key == "model.network" else {}
        with pytest.raises(ConfigurationError) as caught:
            build(OmegaConf.select(config, key), key, **sizes)
        assert str(caught.value) == text


class TestValues:
    @pytest.mark.parametrize(
        ("override", "text"),
        [
            ("seed=-1", "seed must be at least 0, got -1"),
            ("sequences=0", "sequences must be at least 1, got 0"),
            ("batch_size=0", "batch_size must be at least 1, got 0"),
            ("validate_every=0", "validate_every must be at least 1, got 0"),
            ("threads=0", "threads must be at least 1, got 0"),
            ("num_workers=-1", "num_workers must be at least 0, got -1"),
            ("callbacks.keep_every=0", "callbacks.keep_every must be at least 1, got 0"),
            ("callbacks.keep_last=0", "callbacks.keep_last must be at least 1, got 0"),
            ("callbacks.pictures_every=0", "callbacks.pictures_every must be at least 1, got 0"),
            ("name=a/b", "name must be the name of one folder, got 'a/b'"),
            ("name=..", "name must be the name of one folder, got '..'"),
            ("name=''", "name must be the name of one folder, got ''"),
            ("evaluation.sequences=0", "evaluation.sequences must be at least 1, got 0"),
        ],
    )
    def test_refuses_by_key(self, override, text):
        with pytest.raises(ConfigurationError) as caught:
            check_values(compose(CONFIGS, "train", [override]))
        assert str(caught.value) == text

    @pytest.mark.parametrize("seed", [0, 7])
    def test_accepts_seeds(self, seed):
        check_values(compose(CONFIGS, "train", [f"seed={seed}"]))

    @pytest.mark.parametrize("key", sorted(GOVERNED))
    def test_governed_arguments_name_the_key_to_set(self, key):
        with pytest.raises(ConfigurationError) as caught:
            check_governed(key)
        assert str(caught.value).startswith(f"trainer.{key} ")
        assert GOVERNED[key] in str(caught.value)

    @pytest.mark.parametrize(
        ("overrides", "key"),
        [
            ([], "run"),
            (["run=x", "checkpoint=newest"], "checkpoint"),
            (["run=x", "threads=0"], "threads"),
            (["run=x", "lengths=[]"], "lengths"),
            (["run=x", "lengths=[0]"], "lengths"),
            (["run=x", "lengths=[3]", "at=[3]"], "lengths"),
            (["run=x", "sequences=0"], "sequences"),
        ],
        ids=str,
    )
    def test_evaluation(self, overrides, key):
        with pytest.raises(ConfigurationError, match=rf"^{key} must "):
            check_evaluation(compose(CONFIGS, "eval", overrides))
        check_evaluation(compose(CONFIGS, "eval", ["run=x"]))


class TestDifferences:
    OLD = OmegaConf.create(
        {
            "seed": 0,
            "name": "copy",
            "folder": "outputs/${name}",
            "overwrite": False,
            "init_from": None,
            "engine": "reference",
            "task": {"_target_": "ntm.tasks.Copy", "bits": 8},
            "model": {"name": "ntm", "network": {"memory_size": 128}},
            "optimizer": {"lr": 0.003},
            "curriculum": {"upper": [5, None]},
            "trainer": {"accelerator": "auto", "profiler": None, "log_every_n_steps": None},
            "logger": {},
            "callbacks": {"keep_every": None},
        }
    )

    def changed(self, **changes: Any) -> list[str]:
        new = self.OLD.copy()
        for key, value in changes.items():
            OmegaConf.update(new, key.replace("__", "."), value, force_add=True)
        return differences(self.OLD, new)

    def test_none(self):
        assert self.changed() == []
        # The folder has plain values, a command its interpolations.
        assert differences(plain(self.OLD), self.OLD) == []

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("seed", 1),
            ("init_from", "outputs/x"),
            ("engine", "fused"),
            ("task__bits", 7),
            ("task__extra", None),
            ("model__name", "lstm"),
            ("model__network__memory_size", 64),
            ("optimizer__lr", 0.1),
            ("curriculum__upper", [5, 10]),
            ("trainer__accelerator", "cpu"),
            ("trainer__accumulate_grad_batches", 2),
        ],
    )
    def test_what_counts(self, key, value):
        assert self.changed(**{key: value}) == [key.replace("__", ".")]

    def test_are_sorted_and_complete(self):
        assert self.changed(seed=1, engine="fused", task__bits=2) == ["engine", "seed", "task.bits"]

    def test_a_key_that_is_gone_counts(self):
        new = self.OLD.copy()
        del new["optimizer"]["lr"]
        assert "optimizer.lr" in " ".join(differences(self.OLD, new) + differences(new, self.OLD))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("name", "other"),
            ("overwrite", True),
            ("logger", {"csv": {"_target_": "x"}}),
            ("callbacks__keep_every", 100),
            ("trainer__profiler", "simple"),
            ("trainer__profiler", {"_target_": "x", "filename": "y"}),
            ("trainer__log_every_n_steps", 10),
            ("trainer__enable_progress_bar", False),
            ("trainer__enable_model_summary", False),
        ],
        ids=str,
    )
    def test_what_is_free(self, key, value):
        assert self.changed(**{key: value}) == []

    def test_every_free_key_is_one(self):
        config = compose(CONFIGS, "train", [])
        assert set(FREE) <= set(map(str, config))


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb", "a b"), ("  a\n\n   b\t c ", "a b c"), ("", "ValueError")],
    ids=["two lines", "indented", "empty"],
)
def test_one_line(text, line):
    assert one_line(ValueError(text)) == line


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {
        "a.b": 1,
        "a.c": {},
        "d": [1, {"e": 2}],
    }


GROUPS = ("task", "curriculum", "optimizer", "logger", "callbacks")


def nodes(config: Any, key: str = ""):
    """Every node with a target that is not inside another, and its key."""
    if not OmegaConf.is_dict(config):
        return
    if "_target_" in config:
        yield key, config
        return
    for name, value in config.items():
        yield from nodes(value, f"{key}.{name}" if key else str(name))


class TestConfigs:
    @pytest.mark.soak
    @pytest.mark.parametrize("model", options("model"))
    def test_every_combination_composes(self, model):
        for chosen in product(*map(options, GROUPS)):
            picks = [f"{group}={one}" for group, one in zip(GROUPS, chosen, strict=True)]
            config = compose(CONFIGS, "train", [f"model={model}", *picks])
            OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            check_values(config)
            assert config.model.name == model

    @pytest.mark.parametrize(
        ("group", "option"),
        [
            (group, option)
            for group in ("model", "experiment", "trainer", *GROUPS)
            for option in options(group)
        ],
    )
    def test_every_target_takes_its_arguments(self, group, option):
        config = compose(CONFIGS, "train", [f"{group}={option}"])
        check_values(config)
        for key, found in nodes(config):
            check_types(found, key)

    def test_evaluation_composes(self):
        config = compose(CONFIGS, "eval", ["run=x", "lengths=[10,20]", "memory_size=1100"])
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert config.checkpoint == "best"

    def test_defaults_that_users_rely_on(self):
        config = compose(CONFIGS, "train", [])
        assert (config.validate_every, config.threads, config.engine) == (1000, 1, "auto")
        assert config.trainer.accelerator == "auto"
        assert (config.model.network.memory_size, config.model.network.word_size) == (128, 20)
        assert config.folder == "outputs/copy/ntm/seed_0"
        chosen = compose(CONFIGS, "train", ["model=lstm", "seed=3", "name=x"])
        assert chosen.folder == "outputs/x/lstm/seed_3"

    def test_the_trainer_has_all_of_lightnings_arguments(self):
        import pytorch_lightning as pl

        free = {str(name) for name in OmegaConf.load(CONFIGS / "trainer" / "default.yaml")}
        assert not free & set(GOVERNED)
        accepted = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
        assert free | set(GOVERNED) == accepted

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("modl=ntm", "model"),
            ("model=nmt", "ntm, ntm_feedforward"),
            ("sequences=many", "sequences"),
            ("task.bitz=4", "bits"),
            ("trainer.max_epochs=3", "sequences"),
            ("optimizer.lr=fast", "optimizer.lr"),
        ],
    )
    def test_wrong_overrides_are_one_line(self, override, says):
        with pytest.raises(ConfigurationError) as caught:
            compose(CONFIGS, "train", [override])
        text = str(caught.value)
        assert says in text
        assert "\n" not in text
