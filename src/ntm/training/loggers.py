"""Where a run is logged beside its folder: TensorBoard, Weights & Biases, MLflow.

A service is told what metrics.csv has, each row once. What it knows stands in result.json, so that
a run that goes on, or that a server did not hear for a while, is told on in the same place.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ntm.commands.configuration import ConfigurationError, one_line
from ntm.folders.runs import RunFolder, read_rows

logger = logging.getLogger("ntm")


SECONDS_TO_DISK = 0.01
"""How long the client of Weights & Biases keeps a row in memory."""


class EventLog(TensorBoardLogger):
    """TensorBoard's events and nothing else: the run folder has its own config.yaml."""

    def __init__(self, save_dir: str, **arguments: Any) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **arguments)

    def save(self) -> None:
        """Flush the events."""
        self.experiment.flush()


class Service(Logger):
    """Keeps runs under ids of its own; the x axis is sequences.

    A service that cannot be reached when a run begins is refused. One that falls silent later
    costs nothing but a warning, and is told what it missed when it answers again.

    Args:
        folder: The run's.

    Raises:
        ModuleNotFoundError: Its client is not installed; says how to.

    """

    kind = ""
    """As in ``logger=``; also the name of its client's package and of the optional install."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        if find_spec(self.kind) is None:
            raise ModuleNotFoundError(f"it is not installed: pip install -e '.[{self.kind}]'")
        self.folder = RunFolder(folder)
        self.known: dict[str, Any] = {}
        """What the service has: ``run``, its id; ``sequences``, the last row; ``ended``."""
        self._pictures: dict[int, dict[str, np.ndarray]] = {}
        self._silent = False

    @property
    def name(self) -> str:
        """Of the service."""
        return self.kind

    @property
    def version(self) -> str | None:
        """The service's id of the run."""
        return self.known.get("run")

    def open(self, config: Mapping[str, Any], afresh: bool) -> None:
        """Begin a run, or go on with the one in result.json unless ``afresh``; writes no file.

        Raises:
            ConfigurationError: The service cannot be reached, or no longer has the run.

        """
        logged = {} if afresh else self.folder.read_result().get("logged", {})
        known = {"run": None, "sequences": 0, "ended": False} | logged.get(self.kind, {})
        try:
            if known["run"] is not None and not re.fullmatch(r"\w+", known["run"]):
                raise ValueError(f"result.json names the run {known['run']!r}")
            run = self._begin(known["run"], config)
        except Exception as error:  # whatever a client raises
            raise ConfigurationError(
                f"logger={self.kind} does not take the run: {one_line(error)[:300]}; the same "
                "command with logger=none trains it, and may be given another logger later"
            ) from error
        self.known = known | {"run": run}

    def add_picture(self, name: str, image: np.ndarray, sequences: int) -> None:
        """Keep a picture, (height, width, 3) of bytes, for the row of so many sequences."""
        self._pictures.setdefault(sequences, {})[name] = image

    def catch_up(self) -> None:
        """Tell the service every row of metrics.csv that it does not have."""
        for row in read_rows(self.folder.metrics):
            sequences = int(row.pop("sequences"))
            pictures = self._pictures.pop(sequences, {})
            if sequences <= self.known["sequences"]:
                continue
            values = {name: float(value) for name, value in row.items() if value}
            if not self._tell(self._send, values, pictures, sequences):
                self._pictures[sequences] = pictures
                return
            self.keep(sequences=sequences)

    def end(self, values: Mapping[str, float]) -> None:
        """Tell what the run came to, and the rows of eval/results.csv."""
        self.catch_up()
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if not self.known["ended"] and self._tell(self._end, finite):
            self.keep(ended=True)

    def keep(self, **known: Any) -> None:
        """Remember in result.json what the service has."""
        self.known |= known
        others = self.folder.read_result().get("logged", {})
        self.folder.write_result(logged=others | {self.kind: self.known})

    def close(self, finished: bool) -> None:
        """Say that the run is over, or that it stopped."""
        self._tell(self._close, finished)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Tell what is not in metrics.csv, such as the user's own callbacks log."""
        if self.known:
            values = {name: float(value) for name, value in metrics.items()}
            self._tell(self._send, values, {}, step or 0)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Nothing: the whole configuration is there from the beginning."""

    def _tell(self, what: Callable[..., None], *arguments: Any) -> bool:
        """Whether the service took it; a run is worth more than its log."""
        try:
            what(*arguments)
        except Exception as error:  # whatever a client raises
            if not self._silent:
                logger.warning(
                    "logger=%s does not answer (%s); the run goes on, and metrics.csv has it all",
                    self.kind, one_line(error)[:200],
                )  # fmt: skip
            self._silent = True
            return False
        if self._silent:
            logger.warning("logger=%s answers again", self.kind)
        self._silent = False
        return True

    @abstractmethod
    def _begin(self, known: str | None, config: Mapping[str, Any]) -> str:
        """Begin a run, or go on with a known one; its id."""

    @abstractmethod
    def _send(
        self, values: Mapping[str, float], pictures: Mapping[str, np.ndarray], sequences: int
    ) -> None:
        """Log values and pictures."""

    @abstractmethod
    def _end(self, values: Mapping[str, float]) -> None:
        """Log the closing values and table."""

    @abstractmethod
    def _close(self, finished: bool) -> None:
        """End the run."""


class WandbLog(Service):
    """Weights & Biases: https://docs.wandb.ai; ``WANDB_MODE=offline`` needs no account.

    Args:
        folder: The run's.
        save_dir: Where wandb/ is, with what is not sent yet.
        project: Of the service.
        run_name: Of the run.
        group: Runs that belong together.
        entity: User or team; null for the account's own.

    """

    kind = "wandb"

    def __init__(
        self,
        folder: str,
        save_dir: str,
        project: str,
        run_name: str,
        group: str | None = None,
        entity: str | None = None,
    ) -> None:
        super().__init__(folder)
        self._save_dir = Path(save_dir)
        self._names: dict[str, Any] = {
            "project": project,
            "name": run_name,
            "group": group,
            "entity": entity,
        }

    def _begin(self, known: str | None, config: Mapping[str, Any]) -> str:
        import wandb

        self._save_dir.mkdir(parents=True, exist_ok=True)  # else it takes a temporary one
        self._run = wandb.init(
            **self._names,
            id=known,
            resume=None if known is None else "allow",
            config=dict(config),
            dir=self._save_dir,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_transaction_log_flush_interval=SECONDS_TO_DISK,  # a kill loses what is not there
            ),
        )
        self._run.define_metric("*", step_metric="sequences")
        place = Path(self._run.dir).parent if self._run.offline else self._run.url
        logger.info("logger=wandb: %s", place)
        return str(self._run.id)

    def _send(
        self, values: Mapping[str, float], pictures: Mapping[str, np.ndarray], sequences: int
    ) -> None:
        import wandb

        images = {name: wandb.Image(image) for name, image in pictures.items()}
        self._log({**values, **images, "sequences": sequences})

    def _end(self, values: Mapping[str, float]) -> None:
        import wandb

        rows = [[as_number(v) for v in row.values()] for row in self.folder.read_evaluations()]
        table = wandb.Table(columns=list(self.folder.read_evaluations()[0]), data=rows)
        self._log({**values, "eval/results": table, "sequences": self.known["sequences"]})

    def _log(self, row: dict[str, Any]) -> None:
        """Log a row and wait until the client's own process has it."""
        self._run.log(row)
        if self._run.summary.get("sequences") != row["sequences"]:
            raise ConnectionError("its client lost a row")
        time.sleep(2 * SECONDS_TO_DISK)

    def _close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflowLog(Service):
    """MLflow: https://mlflow.org/docs.

    Args:
        folder: The run's.
        tracking_uri: A server, or a folder as ``file:…``; null for ``MLFLOW_TRACKING_URI``, and
            where that is not set for outputs/mlruns.
        experiment: Its runs belong together.
        run_name: Of the run.

    """

    kind = "mlflow"

    def __init__(
        self, folder: str, tracking_uri: str | None, experiment: str, run_name: str
    ) -> None:
        super().__init__(folder)
        here = Path("outputs", "mlruns").absolute().as_uri()
        self._place = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or here
        self._experiment = experiment
        self._run_name = run_name

    def _begin(self, known: str | None, config: Mapping[str, Any]) -> str:
        # A run does not wait for minutes; folders are what needs no server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self._place)
        if known is None:
            experiment = self._find_experiment()
            run = self._client.create_run(experiment, run_name=self._run_name)
        else:
            run = self._client.get_run(known)
            self._client.update_run(known, status="RUNNING")
        missing = {key: str(v) for key, v in config.items() if key not in run.data.params}
        parameters = [Param(key, value) for key, value in missing.items()]
        for first in range(0, len(parameters), 100):  # as many as it takes at once
            self._client.log_batch(run.info.run_id, params=parameters[first : first + 100])
        logger.info("logger=mlflow: run %s at %s", run.info.run_id, self._place)
        return str(run.info.run_id)

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return self._client.create_experiment(self._experiment)
            except MlflowException:  # another run of a sweep was first
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return found.experiment_id

    def _send(
        self, values: Mapping[str, float], pictures: Mapping[str, np.ndarray], sequences: int
    ) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, sequences) for name, value in values.items()]
        self._client.log_batch(self.known["run"], metrics=metrics)
        for name, image in pictures.items():
            self._client.log_image(self.known["run"], image, key=name, step=sequences)

    def _end(self, values: Mapping[str, float]) -> None:
        self._send(values, {}, self.known["sequences"])
        self._client.log_artifact(self.known["run"], str(self.folder.evaluations), "eval")

    def _close(self, finished: bool) -> None:
        self._client.set_terminated(self.known["run"], "FINISHED" if finished else "KILLED")


def as_number(value: str) -> float | str | None:
    """A cell of a CSV file."""
    try:
        return float(value)
    except ValueError:
        return value or None
