"""The last stage of a run: the presence readout, on the finished student."""

from __future__ import annotations

from digseg_engine.data.batch import Batches
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.presence import PresenceLoss, PresenceReader
from digseg_engine.training.run import Run, freeze
from digseg_engine.training.thrift import keep_on_device


def teach_presence(run: Run, checkpoint: Checkpoint, batches: Batches, stage: StageConfig | None) -> None:
    """Train the readout of the checkpoint's student, all else frozen; nothing where there is no readout or no stage."""
    if stage is None or not checkpoint.student.config.presence_width:
        return
    freeze(checkpoint.student)
    keep_on_device(checkpoint, ("vae", "text_encoder", "student"))
    loss = PresenceLoss(batches, checkpoint.text_encoder, checkpoint.tokenizer, stage)
    run.stage("presence", PresenceReader(checkpoint.student), loss, stage)
    freeze(checkpoint.student)
