"""Every configuration of the project composes, builds, and runs a batch of each kind."""

from __future__ import annotations

import itertools
import re
import shlex
from importlib.util import find_spec

import pytest
from runners import ROOT

from ntm.commands import command, configuration

GROUPS = ("model", "task", "curriculum", "optimizer", "logger", "callbacks")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))


EACH = [f"{group}={option}" for group in GROUPS for option in options(group)]
BASIS = [*itertools.product(*map(options, ("task", "model", "optimizer")))]
BESIDE = [*itertools.product(*map(options, ("curriculum", "logger", "callbacks")))]
CHOICES = [
    dict(zip(("task", "model", "optimizer"), basis, strict=True))
    | dict(zip(("curriculum", "logger", "callbacks"), BESIDE[at % len(BESIDE)], strict=True))
    for at, basis in enumerate(BASIS)
    for at in [at + 5 * (at // len(BESIDE))]  # round and round, each time from elsewhere
]
"""Every task with every model and optimizer, and beside them what makes every two choices meet."""
RECIPES = [
    path.relative_to(ROOT / "configs" / "recipe") for path in (ROOT / "configs").glob("recipe/*/*")
]


def test_there_are_configurations_to_test():
    assert {"model=ntm", "model=lstm", "curriculum=staged", "task=copy"} <= set(EACH)


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(GROUPS, 2)])
def test_every_two_choices_are_composed(one, other):
    met = {(choice[one], choice[other]) for choice in CHOICES}
    assert met == {*itertools.product(options(one), options(other))}


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: " ".join(choice.values()))
def test_every_task_with_every_model_and_optimizer_composes(choice):
    asked = [f"{group}={option}" for group, option in choice.items()]
    config = command.compose(ROOT / "configs", "train", asked)
    configuration.check_values(config)
    made = configuration.plain(config)
    assert made["model"]["name"] == choice["model"]
    assert made["folder"].startswith(f"outputs/{choice['task']}/{choice['model']}/")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_is_of_a_choice_there_is_and_trains(recipe, run_command):
    """One that is named wrong would never be read."""
    named = (one for one in options("optimizer") if recipe.stem.endswith(f"_{one}"))
    optimizer = max(named, key=len)  # graves_rmsprop rather than rmsprop
    model = recipe.stem.removesuffix(f"_{optimizer}")
    assert (str(recipe.parent), model, optimizer) in BASIS
    overrides = [f"task={recipe.parent}", f"model={model}", f"optimizer={optimizer}"]
    quick = ["batch_size=2", "trainer.fast_dev_run=true", "trainer.enable_model_summary=false"]
    assert run_command("run_train", *overrides, *quick) == 0


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ([], 3e-3),
        (["batch_size=1"], 3e-3),
        (["batch_size=64"], 12e-3),
        (["batch_size=64", "optimizer=adam"], 12e-3),
        (["batch_size=216", "model=ntm_feedforward"], 27e-3),
        (["batch_size=64", "optimizer.lr=1e-3"], 1e-3),
        (["batch_size=64", "model=lstm"], 4e-3),
        (["batch_size=64", "task=associative_recall"], 2e-3),
    ],
    ids=str,
)
def test_larger_batches_take_larger_steps_where_no_recipe_says_otherwise(given, rate):
    config = configuration.plain(command.compose(ROOT / "configs", "train", given))
    assert config["optimizer"]["lr"] == config["optimizer"]["algorithm"]["lr"] == rate


PARAMETERS = {
    "copy": (67_561, 17_162, 1_352_969),
    "repeat_copy": (66_111, 16_712, 5_312_007),
    "associative_recall": (70_330, 146_845, 1_344_518),
    "dynamic_ngrams": (61_749, 14_656, 331_905),
    "priority_sort": (269_038, 508_305, 384_424),
}
"""Of G14's tables 2, 1 and 3."""
UNLIKE = {"priority_sort": (0.21, 0.08, 0.13), "associative_recall": (0.12, 0.19, 0.02)}
"""By what share ours are fewer at most, where the paper's do not follow from its sizes."""


@pytest.mark.parametrize("task", PARAMETERS)
def test_networks_of_the_paper_have_about_its_parameters(task):
    """What the paper leaves open (initial states, the shifts) is a few percent."""
    published = zip(
        options_in_order(), PARAMETERS[task], UNLIKE.get(task, (0.09, 0.24, 0.02)), strict=True
    )
    for model, paper, share in published:
        config = command.compose(
            ROOT / "configs", "train", [f"experiment=graves2014_{task}", f"model={model}"]
        )
        made = configuration.build(config.task, "task")
        sizes = {"input_size": made.input_size, "output_size": made.output_size}
        network = configuration.build(config.model.network, "model.network", **sizes)
        ours = sum(p.numel() for p in network.parameters())
        assert paper * (1 - share) <= ours <= paper * 1.01, (model, ours, paper)


@pytest.mark.parametrize(
    ("inputs", "outputs", "hidden", "published"),
    [
        (10, 9, 256, 1_352_969),
        (8, 7, 512, 5_312_007),
        (8, 6, 256, 1_344_518),
        (1, 1, 128, 331_905),
    ],
)
def test_the_papers_lstm_has_skip_connections_one_bias_and_learned_states(
    inputs, outputs, hidden, published
):
    """Which tells the widths of its inputs and outputs: the tasks here have them."""
    first = 4 * hidden * (inputs + hidden + 1)
    above = 4 * hidden * (2 * hidden + inputs + 1)
    states = 3 * 2 * hidden
    assert first + 2 * above + 3 * hidden * outputs + outputs + states == published


def options_in_order() -> tuple[str, str, str]:
    return "ntm", "ntm_feedforward", "lstm"


EXPERIMENTS = [
    [f"experiment={experiment}", f"model={model}"]
    for experiment, model in itertools.product(options("experiment"), options("model"))
]


@pytest.mark.parametrize("overrides", EXPERIMENTS, ids=" ".join)
def test_every_experiment_runs_a_batch_with_every_model(overrides, run_command):
    quick = ["batch_size=2", "trainer.fast_dev_run=true", "trainer.enable_model_summary=false"]
    assert run_command("run_train", *overrides, *quick) == 0


def compose(experiment: str, *overrides: str) -> dict:
    config = command.compose(ROOT / "configs", "train", [f"experiment={experiment}", *overrides])
    return configuration.plain(config)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_has_a_source_a_headline_and_a_folder_of_its_own(experiment):
    comment = (ROOT / "configs" / "experiment" / f"{experiment}.yaml").read_text()
    comment = comment.split("defaults:")[0]
    for part in ("http" if "graves" not in experiment else "arXiv", "Settings:", "Headline:"):
        assert part in comment
    assert compose(experiment)["name"] == experiment


@pytest.mark.parametrize("overrides", EXPERIMENTS, ids=" ".join)
def test_no_recipe_of_ours_reaches_into_an_experiment(overrides):
    """So it draws fair coins and prices nothing."""
    composed = compose_all(*overrides)
    assert composed == compose_all(*overrides, "~recipe")
    flat = configuration.flatten(composed)
    assert flat.get("task.mix", 0.0) == 0.0
    assert flat.get("model.penalty") is None


def compose_all(*overrides: str) -> dict:
    return configuration.plain(command.compose(ROOT / "configs", "train", list(overrides)))


PUBLISHED = {
    ("pytorch_ntm_copy", "ntm"): {
        "batch_size": 1,
        "sequences": 50_000,
        "optimizer.algorithm._target_": "torch.optim.RMSprop",
        "optimizer.algorithm.lr": 1e-4,
        "optimizer.algorithm.alpha": 0.95,
        "optimizer.algorithm.momentum": 0.9,
        "callbacks.keep_every": 5000,
        "model.network.controller.initial_state": "learned",
    },
    ("lightning_ntm_copy", "ntm"): {
        "batch_size": 8,
        "sequences": 80_000,
        "optimizer.algorithm.lr": 3e-5,
        "model.network.initial_memory": "random",
    },
    ("lightning_ntm_copy", "lstm"): {
        "sequences": 160_000,
        "model.network.hidden_size": 512,
        "model.network.num_layers": 1,
    },
    ("feedforward_ntm_copy", None): {
        "model.name": "ntm_feedforward",
        "model.network.controller.num_layers": 3,
        "model.network.controller.activation": "tanh",
        "model.network.initial_memory": "constant",
        "curriculum.upper": [5, 10, 20],
        "evaluation.at": [10, 20, 30, 50, 80, 120],
    },
    ("keras_ntm_copy", "lstm"): {
        "batch_size": 100,
        "task.min_length": 5,
        "task.start_flag": True,
        "optimizer.algorithm._target_": "torch.optim.Adam",
        "optimizer.algorithm.lr": 5e-4,
        "model.network.hidden_size": 256,
        "evaluation.at": [5, 10, 20, 40, 80],
    },
    ("keras_ntm_copy", "ntm_feedforward"): {
        "model.network.controller._target_": "torch.nn.Identity",
    },
    ("graves2014_copy", "ntm"): {"optimizer.algorithm.lr": 1e-4, "optimizer.clip_value": 10.0},
    ("graves2014_copy", "ntm_feedforward"): {"optimizer.algorithm.lr": 1e-4},
    ("graves2014_copy", "lstm"): {
        "optimizer.algorithm.lr": 3e-5,
        "model.network.hidden_size": 256,
        "model.network.num_layers": 3,
    },
}


@pytest.mark.parametrize(("key", "values"), PUBLISHED.items(), ids=lambda v: str(v)[:50])
def test_an_experiment_has_the_settings_of_its_source(key, values):
    experiment, model = key
    flat = configuration.flatten(compose(experiment, *([f"model={model}"] if model else [])))
    assert {name: flat[name] for name in values} == values


def test_the_double_dense_controller_runs_as_its_comment_says(run_command):
    double = "model.network.controller._target_=ntm.FeedforwardController"
    quick = ["batch_size=2", "trainer.fast_dev_run=true", "trainer.enable_model_summary=false"]
    keras = ["experiment=keras_ntm_copy", "model=ntm_feedforward"]
    assert run_command("run_train", *keras, double, *quick) == 0


@pytest.mark.parametrize("override", EACH)
def test_every_configuration_runs_a_batch_of_each_kind(override, run_command, tmp_path):
    quick = ["batch_size=2", "trainer.fast_dev_run=true", "trainer.enable_model_summary=false"]
    service = re.fullmatch("logger=(wandb|mlflow)", override)
    if service is not None and find_spec(service[1]) is None:
        pytest.skip(f"{service[1]} is not installed")
    assert run_command("run_train", override, *quick) == 0
    assert not (tmp_path / "outputs" / "copy").exists()


def test_lines_of_the_readme_can_be_run_one_after_another():
    """Two that differ in more than the seed and share a folder would be refused."""
    lines = re.findall(r"^python run_train\.py (?!-m)(.*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) > 10
    seen: dict[str, dict] = {}
    for line in lines:
        config = command.compose(ROOT / "configs", "train", shlex.split(line, comments=True))
        made = configuration.plain(config)
        assert seen.setdefault(made["folder"], made) == made, line
