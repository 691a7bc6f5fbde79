"""`Answers`: generates at every validation, so that a run shows how many answers it gets right meanwhile."""

from __future__ import annotations

from dataclasses import replace

from lightning import Callback, LightningModule, Trainer

from v1lit.data.datamodule import V1DataModule
from v1lit.inference.predictor import Predictor
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module
from v1lit.training.report import ask_held_out, score


class Answers(Callback):
    """Logs `val/answer_accuracy` and its groups over the first held-out examples at every validation.

    All ranks generate for the same examples side by side, since a model in parts needs them all for every
    token; none waits longer than for one rank alone.
    """

    run: RunConfig | None = None
    """Says for how many examples, `answers_at_validation`, and how the report generates."""

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if self.run is None or not self.run.answers_at_validation or trainer.sanity_checking:
            return
        assert isinstance(module, V1Module)
        assert isinstance(data, V1DataModule)
        run = replace(self.run, report_examples=self.run.answers_at_validation)
        answers = ask_held_out(Predictor(module.model, data.processor), data, run)
        names = "val/answer_accuracy", "val/pointer_first_in_region", "val/region_iou"
        scores = {name: value for name, value in score(answers).items() if name.startswith(names)}
        module.log_dict(scores, sync_dist=True)  # alike on all ranks; Lightning wants to hear it
